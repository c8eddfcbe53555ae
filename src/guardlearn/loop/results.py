"""What a round came to, from the rows that its steps left; and what ℛ keeps of a measurement. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn import report
from guardlearn.comparing import Payback, pays_after
from guardlearn.dag.rounds import RoundStep, State
from guardlearn.gate import Decision
from guardlearn.loop.measuring import Measured

__all__ = ["RoundResult", "cost_of", "measurement", "result_of"]


class RoundResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a round came to."""

    learner: str
    round: int
    state: State
    reason: str
    """Why it was promoted or refused, in one line."""
    adapter: str
    """Folder of the round's adapter; "" where it came to none."""
    adapter_digest: str
    new_traces: int
    traces: int
    rows: int
    gain: float | None
    """Candidate minus incumbent, share of first attempts; None: not measured."""
    gain_low: float | None
    gain_high: float | None
    detectable: float | None
    """The smallest true gain that its measurement would have found."""
    look: int
    folder: str
    payback: Payback | None
    """After how many tasks the round would have paid for itself, were its candidate live; None: not measured."""


def result_of(steps: Sequence[RoundStep]) -> RoundResult:
    """Return what the steps of a decided round came to."""
    details = {step.state: step.details for step in steps}
    plan, last = details[State.PLANNED], steps[-1]
    trained, extracted = details.get(State.TRAINED, {}), details.get(State.EXTRACTED, {})
    decision = msgspec.convert(last.details["decision"], Decision | None)
    difference = (details.get(State.MEASURED, {}).get("evidence") or {}).get("difference") or {}
    return RoundResult(
        learner=last.learner,
        round=last.round,
        state=last.state,
        reason=last.details["reason"],
        adapter=trained.get("adapter", ""),
        adapter_digest=trained.get("adapter_digest", ""),
        new_traces=len(plan["new_item_ids"]),
        traces=len(plan["item_ids"]),
        rows=extracted.get("rows", 0),
        gain=difference.get("rate"),
        gain_low=difference.get("low"),
        gain_high=difference.get("high"),
        detectable=decision.detectable if decision else None,
        look=plan["look"],
        folder=str(Path(plan["settings"]["loop"]["folder"]).absolute() / f"{last.round:03}"),
        payback=msgspec.convert(details.get(State.MEASURED, {}).get("cost", {}).get("payback"), Payback | None),
    )


def measurement(measured: Measured, folder: Path) -> dict[str, Any]:
    """Return what ℛ keeps of a measurement: every figure that decides, and the evidence without its single pairs."""

    def short(evidence: Any) -> dict[str, Any]:
        said: dict[str, Any] = msgspec.to_builtins(evidence)
        del said["per_spec"]
        return said

    return {
        "figures": msgspec.to_builtins(measured.figures),
        "evidence": short(measured.evidence) if measured.evidence else None,
        "evidence_file": str(folder / report.EVIDENCE) if measured.evidence else "",
        "regressions": {name: short(each) for name, each in measured.regressions.items()},
        "forgetting": msgspec.to_builtins(measured.forgetting),
        "hidden": msgspec.to_builtins(measured.hidden),
        "checked": measured.checked,
        "unmeasured": measured.unmeasured,
    }


def cost_of(measured: Measured, training: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the round cost, and after how many tasks its candidate has paid for it, were it live."""
    trained = float(training.get("seconds", 0.0))
    said: dict[str, Any] = {"trained_seconds": trained, "measured_seconds": measured.seconds, "payback": None}
    if measured.evidence is not None:
        spent = trained + sum(measured.seconds.values())
        said["payback"] = msgspec.to_builtins(pays_after(measured.evidence.costs, spent_seconds=spent))
    return said
