"""What every rendering says of a round: forgetting in nats, action pairs that were not trained, unlike measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from guardlearn.report import words

if TYPE_CHECKING:
    from guardlearn.forgetting import Forgetting
    from guardlearn.report.round_stories import OtherActionPair

__all__ = ["OTHER_COLUMNS", "forgetting", "nats", "nats_rows", "other_rows", "unlike_rounds"]

OTHER_COLUMNS = ["action pair", "specifications", "groups", "base", "candidate", "difference", "95 % interval"]
"""Columns of `other_rows`."""


def nats(value: float | None) -> str:
    """Return a difference in nats, with its sign."""
    return words.DASH if value is None else f"{value:+.4f}"


def forgetting(found: Forgetting) -> list[str]:
    """Return what a candidate lost of what the bare base knew, in sentences; what was not measured is not said."""
    said = []
    if found.loss_rise is not None:
        turn = f"{words.number(found.loss_base, 4)} → {words.number(found.loss_candidate, 4)}"
        size = f"{words.many(len(found.texts), 'text')} in {words.many(len(found.rise_by_group), 'group')}"
        said.append(f"Loss on general texts: {turn} nats a token ({nats(found.loss_rise)}; {size}).")
    if found.kl is not None:
        size = f"{words.many(len(found.prompts), 'prompt')} in {words.many(len(found.kl_by_group), 'group')}"
        said.append(f"KL(base ‖ candidate) on kept prompts: {words.number(found.kl, 4)} nats a token ({size}).")
    return said


def nats_rows(by_group: Mapping[str, float], *, sign: bool = True) -> list[list[str]]:
    """Return [group, nats a token], the largest first; with `sign`, of differences."""
    ordered = sorted(by_group.items(), key=lambda pair: (-pair[1], pair[0]))
    return [[group, nats(value) if sign else words.number(value, 4)] for group, value in ordered]


def other_rows(others: Sequence[OtherActionPair]) -> list[list[str]]:
    """Return the first attempts of action pairs that were not trained, by name."""
    return [
        [
            each.name,
            str(each.specs),
            str(each.groups),
            words.percent(each.base),
            words.percent(each.candidate),
            words.points(each.difference),
            words.interval(each.low, each.high),
        ]
        for each in sorted(others, key=lambda one: one.name)
    ]


def unlike_rounds(measured_on: Mapping[int, str]) -> str:
    """Return which rounds were measured on which specifications, where these differ; "" where they do not.

    Args:
        measured_on: by round, the digest of its held-out specifications.
    """
    alike: dict[str, list[int]] = {}
    for number, digest in measured_on.items():
        alike.setdefault(digest, []).append(number)
    if len(alike) < 2:
        return ""
    sets = "; ".join(f"{', '.join(map(str, numbers))} on {digest[:12]}" for digest, numbers in alike.items())
    return (
        f"Not all rounds were measured on the same held-out specifications (rounds {sets}): their shares are not "
        "comparable, each round's own difference is."
    )
