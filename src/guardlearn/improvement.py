"""The guide's section 8: answers of a model in memory, and what training did to first attempts.

The same loop, pairing and statistics as `guardlearn evaluate` (`evaluation.py`); this module turns the guide's
arguments into that, and its evidence into the guide's keys. Definition 7; errata 46-52.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.errors import UsageError
from guardlearn.evaluation import Evidence, evaluate
from guardlearn.generators.sampling import SamplingConfig
from guardlearn.guards import as_guard
from guardlearn.prompts import PromptConfig, Renderer, as_messages, format_prompt, special_tokens
from guardlearn.training.weights import PROVENANCE
from guardlearn.types import GenerationRequest, OnProgress, Specification

__all__ = ["evaluate_improvement", "generate"]

_GUIDE_PROMPTS = PromptConfig(retry="artifact")  # as `format_prompt` asks, and `extract_training_data` with it


def generate(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[Mapping[str, str]],
    max_new_tokens: int = 1024,
    *,
    temperature: float = 0.7,
    seed: int | None = None,
) -> str:
    """Return a model's answer to one prompt, the prompt itself not included (the guide's section 8, erratum 46).

    Args:
        model: what `load_model_for_training`, `add_lora_adapters` or `run_training_pipeline` returned.
        tokenizer: the model's; its chat template makes the tokens, as in training (erratum 29).
        prompt: text of one user message, or chat messages.
        max_new_tokens: most tokens of the answer.
        temperature: 0 always takes the likeliest token.
        seed: equal seeds give equal answers; None: another answer each time.

    Raises:
        ModelError: the prompt fills the model's context.
    """
    from guardlearn.generators.in_memory import InMemoryGenerator

    chosen = secrets.randbits(62) if seed is None else seed
    sampling = SamplingConfig(temperature=temperature, max_new_tokens=max_new_tokens, seed=chosen)
    generator = InMemoryGenerator(model, None, tokenizer, sampling=sampling)
    request = GenerationRequest(messages=tuple(as_messages(prompt, special_tokens(tokenizer))), key="generate")
    return generator.generate([request])[0].text


def evaluate_improvement(
    model_before: Any,
    model_after: Any,
    tokenizer: Any,
    test_specs: Sequence[str | Specification],
    guard: Callable[..., Any],
    num_samples: int = 5,
    *,
    constraints: str = "",
    r_max: int = 4,
    temperature: float = 0.7,
    max_new_tokens: int = 1024,
    seed: int = 0,
    manifest: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Measure the first-attempt success rate before and after fine-tuning, and E[retries] beside it.

    Both models answer with the same sampling noise; intervals are by group (give `Specification`s with a `group` where
    some belong together; equal texts always do).

    Args:
        model_before: the base model, or the very PEFT model given as `model_after`: its adapters are then switched off.
        model_after: the model with what it learned.
        tokenizer: of both.
        test_specs: Ψ of each test, as text or as `Specification`; none of them may have been trained on.
        guard: G: takes the artifact (and the context); returns an object with `passed`, a bool, (bool, feedback) or a
            `Verdict`.
        num_samples: chains a specification.
        constraints: Ω of specifications that name none.
        r_max: R_max, attempts a chain may take, the first included; 1 measures first attempts only.
        temperature: of sampling; 0 always takes the likeliest token, so that more than one sample is a waste.
        max_new_tokens: most tokens of an answer.
        seed: of the noise both models share.
        manifest: what `model_after` learned from; None: what `run_training_pipeline` and `incremental_training_loop`
            left on it. Without any, prompts are asked as `format_prompt` writes them and leakage cannot be checked.
        on_progress: called with (attempts made or no longer needed, those possible, note).

    Returns:
        The guide's keys `before_success_rate`, `after_success_rate`, `improvement` and `relative_improvement` (null
        where the rate before is 0), as shares; the interval, p-value and smallest detectable improvement; E[retries]
        and the share solved within R_max, before and after; and the whole `evidence`. Numbers, texts and None only.

    Raises:
        UsageError: no test specification, num_samples or r_max below 1, or models that cannot be told apart.
        LeakageError: a test specification was trained on (erratum 49).
        ModelError: the model was trained with other prompts than this tokenizer's template makes.
    """
    if isinstance(test_specs, str):
        raise UsageError("test_specs is one text; give a list of specifications")
    known = manifest if manifest is not None else getattr(model_after, PROVENANCE, None)
    config = PromptConfig(**known["prompts"]) if known and "prompts" in known else _GUIDE_PROMPTS
    renderer = Renderer(config=config, special_tokens=special_tokens(tokenizer))
    specs = _specifications(test_specs, constraints, as_one_text=known is None)
    from guardlearn.generators.in_memory import InMemoryGenerator

    sampling = SamplingConfig(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    generator = InMemoryGenerator(model_before, model_after, tokenizer, sampling=sampling, renderer=renderer)
    with tempfile.TemporaryDirectory(prefix="guardlearn-") as folder:
        evidence = evaluate(
            specs,
            generator,
            as_guard(guard),
            adapter="model_after",
            renderer=renderer,
            folder=Path(folder),
            r_max=r_max,
            samples=num_samples,
            seed=seed,
            manifest=known,
            on_progress=on_progress,
        )
    return _summary(evidence)


def _specifications(
    given: Sequence[str | Specification], constraints: str, *, as_one_text: bool
) -> list[Specification]:
    specs = [
        Specification(id=f"test-{number:04}", specification=each) if isinstance(each, str) else each
        for number, each in enumerate(given, start=1)
    ]
    filled = [
        spec if spec.constraints is not None else msgspec.structs.replace(spec, constraints=constraints)
        for spec in specs
    ]
    if not as_one_text:
        return filled
    return [
        msgspec.structs.replace(
            spec, specification=format_prompt(spec.specification, constraints=spec.constraints or ""), constraints=""
        )
        for spec in filled
    ]


def _summary(evidence: Evidence) -> dict[str, Any]:
    before, after, difference = evidence.base, evidence.candidate, evidence.difference
    assert after is not None and difference is not None  # an adapter was named
    rate = before.first_attempt.rate
    return {
        "before_success_rate": rate,
        "after_success_rate": after.first_attempt.rate,
        "improvement": difference.rate,
        "relative_improvement": difference.rate / rate if rate and difference.rate is not None else None,
        "improvement_low": difference.low,
        "improvement_high": difference.high,
        "p_value": difference.p_value,
        "minimum_detectable": difference.minimum_detectable,
        "before_expected_retries": before.expected_retries,
        "after_expected_retries": after.expected_retries,
        "before_solved_within_r_max": before.solved_within_r_max,
        "after_solved_within_r_max": after.solved_within_r_max,
        "evidence": msgspec.to_builtins(evidence),
    }
