"""Evidence made from words, for tests of what is done with evidence: each chain is the list of its verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guardlearn.chains import Attempt
from guardlearn.digests import digest_json
from guardlearn.evidence import Evidence, group_of, summarise
from guardlearn.types import ArtifactStatus, Generation, Specification, Verdict

VERDICTS = {
    "pass": Verdict(status=ArtifactStatus.ACCEPTED),
    "fail": Verdict(status=ArtifactStatus.REJECTED, cause="style"),
    "fatal": Verdict(status=ArtifactStatus.REJECTED, fatal=True),
    "silent": Verdict(status=ArtifactStatus.PENDING),
}

Chains = Mapping[str, Sequence[Sequence[str]]]
"""Specification id → a list of verdicts for each sample. What stands before the first "." of the id is the group."""


def spec(name: str, **given: Any) -> Specification:
    return Specification(**{"id": name, "specification": f"Do {name}", "group": name.split(".")[0]} | given)


def attempts(specs: Sequence[Specification], chains: Chains, tokens: int, seconds: float) -> list[Attempt]:
    """Each attempt reads 10 tokens, writes `tokens` and takes `seconds`."""
    written = Generation(text="", finish="stop", prompt_tokens=10, completion_tokens=tokens, seconds=seconds)
    return [
        Attempt(specification=each, sample=sample, attempt=number, generation=written, verdict=VERDICTS[word])
        for each in specs
        for sample, chain in enumerate(chains[each.id])
        for number, word in enumerate(chain, 1)
    ]


def evidence_of(
    base: Chains,
    candidate: Chains | None = None,
    *,
    r_max: int = 4,
    seed: int = 0,
    specs: Sequence[Specification] | None = None,
    cost: tuple[int, float] = (0, 0.0),
    **about: Any,
) -> Evidence:
    """Return what an evaluation of these chains would say.

    Args:
        base: how the base's chains went.
        candidate: how the candidate's went; None: only the base was measured.
        r_max: R_max.
        seed: of the noise.
        specs: what was evaluated; None: one of each id.
        cost: tokens and seconds of an attempt.
        about: other values of what was measured with what.
    """
    specs = specs or [spec(name) for name in base]
    named = {
        "model": "m",
        "adapter": "learned" if candidate is not None else None,
        "pairing": "common random numbers",
        "leakage": "none",
        "sampling": {"generator": "transformers", "temperature": 0.7, "seed": seed},
        "guard": "style",
        "guard_version": "v1",
        "digests": {
            "specifications": digest_json([[each.id, each.specification, group_of(each)] for each in specs]),
            "prompt": "p",
            "renderer": "r",
        },
        "versions": {},
    }
    return summarise(
        specs,
        attempts(specs, base, *cost),
        attempts(specs, candidate, *cost) if candidate is not None else None,
        r_max=r_max,
        samples=len(next(iter(base.values()))),
        seed=seed,
        about=named | about,
    )
