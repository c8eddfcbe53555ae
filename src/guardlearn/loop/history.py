"""A learner's rounds as ℛ tells them, and the page that shows them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.rounds import RoundStep, State
from guardlearn.loop.advice import advice
from guardlearn.loop.config import LoopConfig
from guardlearn.loop.planning import rounds_of
from guardlearn.report import html
from guardlearn.report.gathering import Finder
from guardlearn.report.history import RoundRow, history_page

__all__ = ["history", "write_history"]

PAGE = "report.html"


def history(dag: ArtifactDAG, learner: str) -> list[RoundRow]:
    """Return what is known of each round of a learner, the first one first."""
    return [_row(steps) for steps in rounds_of(dag, learner)]


def write_history(dag: ArtifactDAG, config: LoopConfig, min_gain: float) -> Path:
    """Write the page of a loop's rounds into its folder, each whole or not at all; return its path.

    The page that the last measured round left in its own folder is written again, now with what was decided.
    """
    steps, rows = rounds_of(dag, config.learner), history(dag, config.learner)
    if measured := [each for each in steps if any(step.details.get("evidence_file") for step in each)]:
        last = measured[-1]
        file = next(step.details["evidence_file"] for step in last if step.details.get("evidence_file"))
        if Path(file).parent.is_dir():
            found = Finder(dag, lambda name: None).of_round(config.learner, last[0].round, rows)
            _write(Path(file).with_name(PAGE), html(found.evidence, story=found.story, round_story=found.round_story))
    folder = Path(config.folder)
    folder.mkdir(parents=True, exist_ok=True)
    said = advice(steps, config.patience, min_gain).reason
    return _write(folder / PAGE, history_page(config.learner, rows, said))


def _write(page: Path, text: str) -> Path:
    staged = page.with_name(f".{PAGE}.{os.getpid()}")
    staged.write_bytes(text.encode("utf-8", "backslashreplace"))
    staged.replace(page)
    return page


def _row(steps: Sequence[RoundStep]) -> RoundRow:
    details = {step.state: step.details for step in steps}
    plan, last = details[State.PLANNED], steps[-1]
    measured: Mapping[str, Any] = details.get(State.MEASURED, {})
    evidence: Mapping[str, Any] = measured.get("evidence") or {}
    difference: Mapping[str, Any] = evidence.get("difference") or {}
    forgetting: Mapping[str, Any] = measured.get("forgetting") or {}
    others = {
        name: (each.get("difference") or {}).get("rate") for name, each in measured.get("regressions", {}).items()
    }
    return RoundRow(
        round=last.round,
        decision=last.state.value if last.state.decided else f"under way ({last.state})",
        reason=last.details.get("reason", "") if last.state.decided else "",
        new_traces=len(plan["new_item_ids"]),
        rows=details.get(State.EXTRACTED, {}).get("rows", 0),
        adapter=details.get(State.TRAINED, {}).get("adapter_digest", ""),
        look=plan["look"],
        incumbent=_rate(evidence.get("base")),
        candidate=_rate(evidence.get("candidate")),
        gain=difference.get("rate"),
        gain_low=difference.get("low"),
        gain_high=difference.get("high"),
        detectable=(last.details.get("decision") or {}).get("detectable") if last.state.decided else None,
        loss_rise=forgetting.get("loss_rise"),
        divergence=forgetting.get("kl"),
        others=others,
    )


def _rate(performance: Mapping[str, Any] | None) -> tuple[float, float | None, float | None] | None:
    first = (performance or {}).get("first_attempt") or {}
    return None if first.get("rate") is None else (first["rate"], first["low"], first["high"])
