"""How far a candidate has moved from the bare base: loss on general text, divergence on kept prompts.

- Loss: mean negative log-likelihood of plain texts, in nats per token, no chat template around them. Its rise is how
  forgetting in fine-tuned language models is measured (Luo et al. 2023, arXiv 2308.08747).
- Divergence: KL(base || candidate) of the next token, exact over the vocabulary, a mean over the tokens of an answer
  that the base itself gives to the prompt (one each, sampled as the generator samples). This direction, on the tasks at
  hand, is what Shenfeld, Pari & Agrawal 2025 (arXiv 2509.04259) found to go with forgetting; the penalty of RLHF
  (Ouyang et al. 2022, arXiv 2203.02155) is the other direction, over the candidate's answers.

The distributions are the models' own: temperature, top-k and the like play no part in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import msgspec

from guardlearn.attempts import constraints_of
from guardlearn.digests import digest_json, digest_text
from guardlearn.errors import DataError, ModelError, UsageError
from guardlearn.evidence import group_of
from guardlearn.forgetting.scoring import Adapter, Row, Scorer, compared, obstacle
from guardlearn.forgetting.texts import GeneralText
from guardlearn.prompts import Renderer, encode_completion, encode_prompt
from guardlearn.types import GenerationRequest, Generator, Guard, Message, OnProgress, Specification

__all__ = ["Divergence", "Forgetting", "TextLoss", "measure_forgetting", "prompts_of"]


class TextLoss(msgspec.Struct, frozen=True, kw_only=True):
    """One general text."""

    text: str
    """Start of its digest."""
    group: str
    tokens: int
    """Predicted ones: all but the first; what goes beyond the model's context is left out."""
    base: float
    """Nats per token."""
    candidate: float


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """One kept prompt."""

    id: str
    group: str
    tokens: int
    """Of the base's answer, its end token included where it ended itself."""
    kl: float
    """KL(base || candidate), mean over those tokens, in nats; ≥ 0."""


class Forgetting(msgspec.Struct, frozen=True, kw_only=True):
    """Candidate against the bare base. Means are means of group means; None where there is nothing to take one of."""

    loss_base: float | None
    loss_candidate: float | None
    loss_rise: float | None
    kl: float | None
    rise_by_group: dict[str, float]
    kl_by_group: dict[str, float]
    texts: list[TextLoss]
    prompts: list[Divergence]
    texts_digest: str
    """Of the text set, in its order."""
    prompts_digest: str
    """Of the kept prompts, in their order."""

    def general_loss(self) -> dict[str, list[float]]:
        """Return the rise of the loss on each text, by group, as the gate reads it."""
        return _grouped((each.group, each.candidate - each.base) for each in self.texts)

    def divergences(self) -> dict[str, list[float]]:
        """Return KL on each prompt, by group, as the gate reads it."""
        return _grouped((each.group, each.kl) for each in self.prompts)


def measure_forgetting(
    generator: Generator,
    candidate: Adapter,
    *,
    texts: Sequence[GeneralText],
    kept: Sequence[Specification],
    renderer: Renderer,
    guard: Guard,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Forgetting:
    """Measure a candidate's loss and divergence; the bare base is left in use. Equal calls give equal numbers.

    Args:
        generator: see `scoring.obstacle`.
        candidate: adapter.
        texts: general text set; may be empty.
        kept: specifications whose first prompts are kept, of the validation side, never held out; may be empty.
        renderer: makes the prompts.
        guard: its Ω is that of specifications that name none; it judges nothing here.
        seed: of the base's answers.
        on_progress: called with (texts and prompts done, those there are, note), each counted once a model.

    Raises:
        UsageError: the generator gives no probabilities.
        DataError: a text of one token.
        ModelError: a model gives no finite numbers.
    """
    if reason := obstacle(generator):
        raise UsageError(reason)
    scorer = cast(Scorer, generator)
    meter = _Meter(2 * len(texts) + 3 * len(kept), on_progress)
    try:
        losses = _text_losses(scorer, candidate, texts, meter)
        divergences = _divergences(scorer, candidate, kept, renderer, guard, seed, meter)
    finally:
        scorer.use_adapter(None)
    before = _means((each.group, each.base) for each in losses)
    after = _means((each.group, each.candidate) for each in losses)
    kl = _means((each.group, each.kl) for each in divergences)
    rise = {group: after[group] - before[group] for group in before}
    return Forgetting(
        loss_base=_mean(before.values()),
        loss_candidate=_mean(after.values()),
        loss_rise=_mean(rise.values()),
        kl=_mean(kl.values()),
        rise_by_group=rise,
        kl_by_group=kl,
        texts=losses,
        prompts=divergences,
        texts_digest=digest_json([[each.counted_in, each.text] for each in texts]),
        prompts_digest=digest_json([[spec.id, prompts_of([spec], renderer, guard)[0]] for spec in kept]),
    )


def prompts_of(specifications: Sequence[Specification], renderer: Renderer, guard: Guard) -> list[tuple[Message, ...]]:
    """Return the prompts of first attempts, in order."""
    return [
        tuple(renderer.messages(spec.specification, constraints_of(spec, guard), about=spec)) for spec in specifications
    ]


def _text_losses(generator: Scorer, candidate: Adapter, texts: Sequence[GeneralText], meter: _Meter) -> list[TextLoss]:
    rows = [list(generator.tokenizer(each.text)["input_ids"])[: generator.context] for each in texts]
    for each, tokens in zip(texts, rows, strict=True):
        if len(tokens) < 2:
            raise DataError(f"the general text {each.text!r} is one token; nothing in it is predicted: leave it out")
    base = _losses(generator, None, rows, meter.counter("general texts, base"))
    adapted = _losses(generator, candidate, rows, meter.counter("general texts, candidate"))
    return [
        TextLoss(
            text=digest_text(each.text)[:12],
            group=each.counted_in,
            tokens=len(tokens) - 1,
            base=_finite(before, "base"),
            candidate=_finite(after, "candidate"),
        )
        for each, tokens, before, after in zip(texts, rows, base, adapted, strict=True)
    ]


def _losses(
    generator: Scorer, adapter: Adapter, rows: Sequence[Sequence[int]], count: Callable[[int], None]
) -> list[float]:
    """Return the mean negative log-likelihood of each row's tokens after the first."""
    import torch

    generator.use_adapter(adapter)
    sums = [0.0] * len(rows)
    for row, position, chances_TV in generator.log_probabilities([(tokens[:-1], 0) for tokens in rows]):
        following = rows[row][position + 1 : position + 1 + len(chances_TV)]
        labels = torch.tensor(following, device=chances_TV.device)
        sums[row] -= float(chances_TV.gather(1, labels[:, None]).sum(dtype=torch.float64))
        count(row + 1)
    return [total / (len(tokens) - 1) for total, tokens in zip(sums, rows, strict=True)]


def _divergences(
    generator: Scorer,
    candidate: Adapter,
    kept: Sequence[Specification],
    renderer: Renderer,
    guard: Guard,
    seed: int,
    meter: _Meter,
) -> list[Divergence]:
    import torch

    rows = _answered(generator, kept, prompts_of(kept, renderer, guard), seed, meter.counter("the base's answers"))
    sums = [0.0] * len(rows)
    count = meter.counter("kept prompts, both")
    for row, _, base_TV, candidate_TV in compared(generator, None, candidate, rows):
        each_T = (base_TV.exp() * (base_TV - candidate_TV)).sum(-1, dtype=torch.float64)
        sums[row] += float(each_T.clamp(min=0).sum())  # below 0 is rounding: Gibbs' inequality
        count(2 * (row + 1))
    return [
        Divergence(
            id=spec.id,
            group=group_of(spec),
            tokens=len(tokens) - first,
            kl=_finite(total / (len(tokens) - first), "candidate"),
        )
        for spec, (tokens, first), total in zip(kept, rows, sums, strict=True)
    ]


def _answered(
    generator: Scorer,
    kept: Sequence[Specification],
    prompts: Sequence[tuple[Message, ...]],
    seed: int,
    count: Callable[[int], None],
) -> list[Row]:
    """Return prompts followed by the base's answers, but for the last token: its successor is nobody's business."""
    generator.use_adapter(None)
    requests = [
        GenerationRequest(messages=messages, key=f"{seed}/{spec.id}/0/1")
        for spec, messages in zip(kept, prompts, strict=True)
    ]
    made = 0

    def answered(*_: object) -> None:
        nonlocal made
        made += 1
        count(made)

    rows: list[Row] = []
    for messages, answer in zip(prompts, generator.generate(requests, answered), strict=True):
        prompt = encode_prompt(generator.tokenizer, messages)
        tokens = encode_completion(generator.tokenizer, answer.text)
        if answer.finish != "stop" or answer.text.endswith(generator.sampling.stop):
            tokens = tokens[:-1] or tokens  # cut, or ended by a stop string: it drew no end token
        rows.append(([*prompt, *tokens][: generator.context][:-1], len(prompt) - 1))
    return rows


class _Meter:
    """Progress over steps of known sizes, one after the other."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self._total, self._report = total, on_progress
        self._reached = 0

    def counter(self, note: str) -> Callable[[int], None]:
        """Return what is called with how many of the next step are done."""
        before = self._reached

        def count(done: int) -> None:
            self._reached = before + done
            if self._report:
                self._report(self._reached, self._total, note)

        return count


def _finite(value: float, which: str) -> float:
    if not math.isfinite(value):
        raise ModelError(f"the {which} gives no finite probabilities; its weights are damaged or overflow: train again")
    return value


def _grouped(values: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    groups: dict[str, list[float]] = {}
    for group, value in values:
        groups.setdefault(group, []).append(value)
    return groups


def _means(values: Iterable[tuple[str, float]]) -> dict[str, float]:
    return {group: math.fsum(each) / len(each) for group, each in _grouped(values).items()}


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None
