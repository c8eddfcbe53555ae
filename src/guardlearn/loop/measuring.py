"""The measured step of a round: from a trained candidate to all that the gate decides on.

In this order: can it answer differently at all; loss and divergence against the bare base; candidate against what is
live on the held-out specifications; the same on action pairs that were not trained; hidden guards on what was sampled.
Every part leaves its result in the folder as it goes, so that the same call after a crash goes on, and ends in the same
figures. Nothing is decided here.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import msgspec

from guardlearn import evaluation, forgetting
from guardlearn.attempts import Attempt
from guardlearn.digests import digest_files, digest_json, digest_text
from guardlearn.engines import Engine
from guardlearn.errors import LeakageError, UsageError
from guardlearn.evidence import Evidence
from guardlearn.forgetting import Change, Forgetting, GeneralText
from guardlearn.forgetting.measuring import prompts_of
from guardlearn.gate import GateFigures, Paired
from guardlearn.loop.hidden import HiddenGuard, check_hidden, guard_gap, judge_hidden
from guardlearn.loop.steps import Steps
from guardlearn.prompts import Renderer
from guardlearn.training.saving import ADAPTER_CONFIG, WEIGHTS
from guardlearn.types import Generator, Guard, OnProgress, Specification

__all__ = ["SINCE_THE_BASE", "Measured", "measure", "paired"]

SINCE_THE_BASE = ", since the base"
"""Added to an action pair's name where a candidate is held against the bare base and not against what is live."""


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured of a candidate."""

    figures: GateFigures
    """All that the gate reads."""
    evidence: Evidence | None
    """On the held-out specifications; None: nothing was sampled, for nothing can have changed."""
    regressions: dict[str, Evidence] = {}
    """By action pair that was not trained, and `SINCE_THE_BASE` where that is another comparison; first attempts."""
    forgetting: Forgetting | None = None
    hidden: dict[str, HiddenGuard] = {}
    """By name."""
    checked: str
    """Whether it differs from what is live, and what that rests on."""
    unmeasured: dict[str, str] = {}
    """What was asked for and could not be measured, and why: the gate then has no such check."""
    seconds: dict[str, float] = {}
    """Wall seconds by step, over all calls; the step that a kill -9 ended is in it from its next call on."""

    @property
    def changed(self) -> bool:
        """Whether any answer differs; False with evidence: they might have, and none did."""
        return self.figures.changed


def measure(
    specs: Sequence[Specification],
    generator: Generator,
    guard: Guard,
    *,
    incumbent: str | Path | None,
    candidate: str | Path,
    renderer: Renderer,
    folder: Path,
    look: int,
    manifest: Mapping[str, Any] | None,
    r_max: int = 4,
    samples: int = 1,
    seed: int = 0,
    regressions: Sequence[Specification] = (),
    trained_action_pairs: Collection[str] = (),
    texts: Sequence[GeneralText] = (),
    kept: Sequence[Specification] = (),
    hidden: Sequence[Guard] = (),
    engine: Engine | None = None,
    on_progress: OnProgress | None = None,
) -> Measured:
    """Measure a candidate; the same call after a crash continues. The generator is left on the bare base.

    Args:
        specs: held-out specifications, as in `evaluation.evaluate`.
        generator: π_θ; one that gives probabilities also shows forgetting.
        guard: G, whose feedback retries are shown.
        incumbent: adapter that is live; None: the bare base.
        candidate: adapter in question.
        renderer: the one the candidate was trained with.
        folder: gets attempts.jsonl, evidence.json, forgetting.json, hidden.jsonl and regressions/; of this candidate
            alone.
        look: the how manyth test on these held-out specifications this is, from 1.
        manifest: what the candidate learned from, checked for leakage and prompts.
        r_max: R_max on the held-out specifications; elsewhere first attempts are all that is read.
        samples: chains a specification.
        seed: of the noise that both models share.
        regressions: specifications of action pairs that were not trained.
        trained_action_pairs: those that were.
        texts: general text set; empty: no loss is measured.
        kept: specifications whose prompts are kept, of the validation side; empty: no divergence is measured.
        hidden: guards that no feedback shows.
        engine: where `generator` and `guard` run; hidden guards run in threads here.
        on_progress: called with (done, total, note).

    Raises:
        UsageError: as `evaluation.evaluate`; hidden guards that cannot be told apart; another process measures here.
        LeakageError: a specification was trained on, or one of the regressions is of a trained action pair.
        ModelError: an adapter that cannot be used.
    """
    trained = {*trained_action_pairs, *(manifest or {}).get("action_pairs", ())}
    _check_regressions(regressions, trained)
    check_hidden(hidden, guard)
    if manifest is not None:
        evaluation.check_leakage(specs, manifest)
    measuring = _Measuring(generator, renderer, incumbent, candidate, folder, manifest, samples, seed)
    with _alone(folder), contextlib.closing(measuring):
        change = measuring.change(specs, kept, guard)
        if not change.changed:
            nothing = Paired(judged={}, against={})
            figures = GateFigures(held_out=nothing, look=look, changed=False)
            return Measured(figures=figures, evidence=None, checked=change.checked, seconds=measuring.seconds)
        chains = len(specs) * samples
        steps = Steps(
            on_progress,
            forgetting=0 if forgetting.obstacle(generator) else 2 * len(texts) + 3 * len(kept),
            held_out=2 * chains * r_max,
            regressions=2 * len(regressions) * samples * (1 if incumbent is None else 2),
            hidden=2 * chains * len(hidden),
        )
        lost, reason = measuring.forgetting(texts, kept, guard, steps.of("forgetting"))
        evidence, attempts = measuring.held_out(specs, guard, r_max, engine, steps.of("held_out"))
        elsewhere = measuring.elsewhere(regressions, guard, engine, steps)
        gap, said = measuring.hidden(hidden, attempts, steps.of("hidden"))
    differs = _texts(attempts["base"]) != _texts(attempts["candidate"])
    same = "" if differs else f"; yet all {len(attempts['base'])} answers are the same"
    figures = GateFigures(
        held_out=paired(evidence),
        look=look,
        changed=differs,
        regressions={name: paired(each) for name, each in elsewhere.items()},
        general_loss=lost.general_loss() if lost else {},
        kl=lost.divergences() if lost else {},
        guard_gap=gap,
    )
    return Measured(
        figures=figures,
        evidence=evidence,
        regressions=elsewhere,
        forgetting=lost,
        hidden=said,
        checked=change.checked + same,
        unmeasured={"forgetting": reason} if reason else {},
        seconds=measuring.seconds,
    )


def paired(evidence: Evidence) -> Paired:
    """Return the first attempts of an evaluation's pairs as the gate reads them.

    In `judged` are the pairs in which both got a verdict; in `against` are all, a missing verdict of the candidate's as
    a failure, one of the base's as a pass.
    """
    judged: dict[str, list[float]] = {}
    against: dict[str, list[float]] = {}
    for pair in evidence.per_spec:
        before, after = pair.base.first, pair.candidate.first if pair.candidate else None
        if before is not None and after is not None:
            judged.setdefault(pair.group, []).append(float(after - before))
        against.setdefault(pair.group, []).append(float((after is True) - (before is not False)))
    return Paired(judged=judged, against=against)


class _Measuring:
    """One candidate, its incumbent and where their figures go."""

    def __init__(
        self,
        generator: Generator,
        renderer: Renderer,
        incumbent: str | Path | None,
        candidate: str | Path,
        folder: Path,
        manifest: Mapping[str, Any] | None,
        samples: int,
        seed: int,
    ) -> None:
        self._generator, self._renderer = generator, renderer
        self._incumbent, self._candidate = incumbent, candidate
        self._folder, self._manifest = folder, manifest
        self._samples, self._seed = samples, seed
        self.seconds: dict[str, float] = {}

    def close(self) -> None:
        self._generator.use_adapter(None)

    def change(self, specs: Sequence[Specification], kept: Sequence[Specification], guard: Guard) -> Change:
        """Compare candidate and incumbent on prompts, kept ones first; no verdict is read."""
        with self._timed("change"):
            prompts = prompts_of([*kept, *specs], self._renderer, guard)
            return forgetting.compare_outputs(self._generator, self._incumbent, self._candidate, prompts)

    def forgetting(
        self,
        texts: Sequence[GeneralText],
        kept: Sequence[Specification],
        guard: Guard,
        on_progress: OnProgress | None,
    ) -> tuple[Forgetting | None, str]:
        """Return what was measured, or None and why it was not, "" where nothing was asked for."""
        if not texts and not kept:
            return None, ""
        if reason := forgetting.obstacle(self._generator):
            return None, reason
        file = self._folder / "forgetting.json"
        plan = self._forgetting_plan(texts, kept, guard)
        with self._timed("forgetting"):
            stored = _stored(file)
            if stored is not None and stored.plan == plan:
                return stored.forgetting, ""
            measured = forgetting.measure_forgetting(
                self._generator,
                self._candidate,
                texts=texts,
                kept=kept,
                renderer=self._renderer,
                guard=guard,
                seed=self._seed,
                on_progress=on_progress,
            )
            _write(file, _Stored(plan=plan, forgetting=measured))
        return measured, ""

    def held_out(
        self,
        specs: Sequence[Specification],
        guard: Guard,
        r_max: int,
        engine: Engine | None,
        on_progress: OnProgress | None,
    ) -> tuple[Evidence, dict[str, list[Attempt]]]:
        """Return the evidence, and the attempts it rests on."""
        with self._timed("held out"):
            evidence = self._evaluate(specs, guard, self._folder, r_max, engine, on_progress, self._incumbent)
        return evidence, evaluation.read_attempts(self._folder, specs)

    def elsewhere(
        self, regressions: Sequence[Specification], guard: Guard, engine: Engine | None, steps: Steps
    ) -> dict[str, Evidence]:
        """Return the evidence of each action pair that was not trained, both models freshly sampled on all of it.

        Against what is live, and where that is no bare base against the bare base too: losses of several rounds, each
        within the margin, add up.
        """
        pairs: dict[str, list[Specification]] = {}
        for spec in regressions:
            pairs.setdefault(spec.action_pair_id, []).append(spec)
        found, done = {}, 0
        rivals = [("", self._incumbent)] + ([(SINCE_THE_BASE, None)] if self._incumbent is not None else [])
        with self._timed("regressions"):
            for name, own in sorted(pairs.items()):
                for since, against in rivals:
                    report = steps.of("regressions", 2 * done * self._samples, 2 * len(own) * self._samples)
                    folder = self._folder / "regressions" / _folder_name(name + since)
                    found[name + since] = self._evaluate(own, guard, folder, 1, engine, report, against)
                    done += len(own)
        return found

    def hidden(
        self, guards: Sequence[Guard], attempts: Mapping[str, Sequence[Attempt]], on_progress: OnProgress | None
    ) -> tuple[dict[str, list[float]], dict[str, HiddenGuard]]:
        """Return the change of the gap by group, and what each guard said."""
        if not guards:
            return {}, {}
        with self._timed("hidden guards"):
            verdicts = judge_hidden(guards, attempts, self._folder / "hidden.jsonl", on_progress)
        return guard_gap(guards, attempts, verdicts)

    def _evaluate(
        self,
        specs: Sequence[Specification],
        guard: Guard,
        folder: Path,
        r_max: int,
        engine: Engine | None,
        on_progress: OnProgress | None,
        against: str | Path | None,
    ) -> Evidence:
        evidence = evaluation.evaluate(
            specs,
            self._generator,
            guard,
            adapter=self._candidate,
            against=against,
            renderer=self._renderer,
            folder=folder,
            r_max=r_max,
            samples=self._samples,
            seed=self._seed,
            manifest=self._manifest,
            on_progress=on_progress,
            engine=engine,
        )
        _write(folder / "evidence.json", evidence)
        return evidence

    def _forgetting_plan(
        self, texts: Sequence[GeneralText], kept: Sequence[Specification], guard: Guard
    ) -> dict[str, Any]:
        """Return everything that decides the numbers."""
        return {
            "model": self._generator.model,
            "sampling": digest_json(msgspec.to_builtins(dict(self._generator.describe()))),
            "prompt": self._generator.prompt_digest,
            "candidate": digest_files(Path(self._candidate), WEIGHTS, ADAPTER_CONFIG),
            "texts": digest_json([[each.counted_in, each.text] for each in texts]),
            "kept": digest_json([[spec.id, spec.group, *prompts_of([spec], self._renderer, guard)] for spec in kept]),
            "seed": self._seed,
        }

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        file = self._folder / "seconds.json"
        before, began = _earlier_seconds(file), time.perf_counter()
        try:
            yield
        finally:
            self.seconds = before | {step: before.get(step, 0.0) + time.perf_counter() - began}
            _write(file, self.seconds)


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    """forgetting.json."""

    plan: dict[str, Any]
    forgetting: Forgetting


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".measuring.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise UsageError(f"another process measures in {folder}; wait for it, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def _check_regressions(regressions: Sequence[Specification], trained: Collection[str]) -> None:
    for spec in regressions:
        if spec.action_pair_id in trained:
            raise LeakageError(
                f"regression specification {spec.id!r} is of action pair {spec.action_pair_id!r}, which was trained; a "
                "regression set holds action pairs that were not: leave it out"
            )


def _texts(attempts: Sequence[Attempt]) -> dict[tuple[str, int, int], str]:
    return {(*attempt.chain, attempt.attempt): attempt.generation.text for attempt in attempts}


def _folder_name(action_pair: str) -> str:
    """Return a name of its own that any file system takes."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", action_pair).strip("-")[:40]
    return f"{readable}-{digest_text(action_pair)[:8]}"


def _stored(file: Path) -> _Stored | None:
    """Return what an earlier call left; None: nothing, or nothing that can be read, and it is measured again."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Stored)
    except (OSError, msgspec.MsgspecError):
        return None


def _earlier_seconds(file: Path) -> dict[str, float]:
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, float])
    except (OSError, msgspec.MsgspecError):
        return {}


def _write(file: Path, value: Any) -> None:
    staged = file.with_name(f".{file.name}.part")
    staged.write_bytes(msgspec.json.encode(value) + b"\n")
    staged.replace(file)
