"""`guardlearn stats`: what ℛ holds, and what each policy would find."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from guardlearn import predicates
from guardlearn.cli import console

if TYPE_CHECKING:
    from guardlearn.dag import ArtifactDAG


def command(
    db: Annotated[str, typer.Argument(help="The repository; it is only read.")],
    as_json: console.Json = False,
) -> None:
    """Count items by status, policy and side; estimate how many attempts a chain takes."""
    from guardlearn.dag import ArtifactDAG

    with ArtifactDAG.load(db, read_only=True) as dag:
        found = _gather(dag)
    if as_json:
        console.emit(found)
        return
    console.table(f"{found['items']} items in {db}", ["status", "items"], _rows(found["by_status"]))
    console.table("What each policy selects", ["policy", "items"], _rows(found["policies"]))
    attempts = [[row["attempt"], row["judged"], row["accepted"], f"{row['rate']:.0%}"] for row in found["attempts"]]
    console.table("Acceptance by attempt", ["attempt", "judged", "accepted", "rate"], attempts)
    console.table("Specifications by side", ["side", "specifications"], _rows(found["sides"]))
    if found["expected_attempts"] is not None:
        console.say(f"expected attempts within {len(attempts)}: {found['expected_attempts']:.2f}")


def _gather(dag: ArtifactDAG) -> dict[str, Any]:
    attempts = _by_attempt(dag)
    return {
        "items": dag.count(),
        "by_status": dag.count_by(None, "status"),
        "policies": {name: dag.count(predicates.policy(name)) for name in predicates.POLICIES},
        "expected_attempts": _expected_attempts(attempts),
        "attempts": attempts,
        "by_action_pair": dag.count_by(None, "action_pair_id"),
        "by_source": dag.count_by(None, "source"),
        "sides": {side.value: count for side, count in dag.sides().items()},
    }


def _by_attempt(dag: ArtifactDAG) -> list[dict[str, Any]]:
    accepted = dag.count_by(predicates.status("accepted"), "attempt")
    judged = dag.count_by(predicates.status("accepted", "rejected"), "attempt")
    return [
        {
            "attempt": int(attempt),
            "judged": judged[attempt],
            "accepted": accepted.get(attempt, 0),
            "rate": accepted.get(attempt, 0) / judged[attempt],
        }
        for attempt in sorted(judged, key=int)
    ]


def _expected_attempts(attempts: list[dict[str, Any]]) -> float | None:
    """Return Σ_{k<R} S(k), S by Kaplan and Meier (1958): a chain cut early counts for the attempts it made."""
    if not attempts:
        return None
    unsolved, expected = 1.0, 0.0
    for row in attempts:
        expected += unsolved
        unsolved *= 1.0 - row["rate"]
    return expected


def _rows(counts: dict[str, int]) -> list[list[Any]]:
    return [[name, count] for name, count in counts.items()]
