"""The part of the page that a round of learning gives: what was forgotten, the decision, the rounds before it."""

from __future__ import annotations

from guardlearn.report import round_words
from guardlearn.report.frame import figures_of
from guardlearn.report.history import rounds_figures
from guardlearn.report.round_stories import RoundStory
from guardlearn.report.tables import table
from guardlearn.report.texts import folded, visible

__all__ = ["decision", "forgetting", "others", "rounds"]

_GROUPS_OPEN = 12
"""A longer table of groups is folded."""


def forgetting(told: RoundStory) -> str:
    """Return how far the candidate moved from the bare base, on general texts and on kept prompts."""
    unmeasured = "".join(
        f'<p class="soft">{visible(f"{what} was not measured: {why}")}</p>' for what, why in told.unmeasured.items()
    )
    found = told.forgetting
    if found is None:
        return unmeasured
    sentences = [visible(sentence) for sentence in round_words.forgetting(found)]
    tables = [
        _by_group("Rise of the loss on general texts, by group", round_words.nats_rows(found.rise_by_group)),
        _by_group(
            "KL(base ‖ candidate) on kept prompts, by group", round_words.nats_rows(found.kl_by_group, sign=False)
        ),
    ]
    beside = "".join(f"<div>{each}</div>" for each in tables if each)
    said = f"<p>{'<br>'.join(sentences)}</p>" if sentences else ""
    return said + (f'<div class="columns">{beside}</div>' if beside else "") + unmeasured


def _by_group(title: str, rows: list[list[str]]) -> str:
    if not rows:
        return ""
    return folded(title, table(["group", "nats a token"], rows, caption=title), unfolded=len(rows) <= _GROUPS_OPEN)


def others(told: RoundStory) -> str:
    """Return the first attempts of action pairs that were not trained: they must not have lost."""
    rows = round_words.other_rows(told.others)
    return table(round_words.OTHER_COLUMNS, rows, caption="Action pairs that were not trained") if rows else ""


def decision(told: RoundStory) -> str:
    """Return what the gate said, condition by condition."""
    if not told.reason:
        return ""
    kind = "holds" if told.state == "promoted" else "fails"
    parts = [f'<p class="outcome {kind}">{visible(f"Round {told.round} of {told.learner}: {told.state}")}</p>']
    parts.append(f"<p>{visible(told.reason)}</p>")
    if told.conditions:
        rows = [[each.name, "holds" if each.passed else "FAILS", each.found, each.needed] for each in told.conditions]
        columns = ["condition", "", "found", "needed"]
        parts.append(table(columns, rows, numbers=False, caption="Conditions of promotion"))
    if told.checked:
        parts.append(f'<p class="soft">{visible(f"Its answers and those before it: {told.checked}")}</p>')
    return "".join(parts)


def rounds(told: RoundStory, missing: set[str]) -> str:
    """Return the learner's rounds: how often first attempts passed, and what was decided.

    Args:
        told: the round.
        missing: see `figures_of`.
    """
    if not told.rounds:
        return ""
    rows = [[str(row.round), row.decision, row.reason] for row in told.rounds]
    note = round_words.unlike_rounds(told.measured_on)
    return "".join(
        [
            figures_of(rounds_figures(told.rounds), missing),
            f"<p>{visible(note)}</p>" if note else "",
            table(["round", "decision", "why"], rows, numbers=False, caption="Rounds"),
        ]
    )
