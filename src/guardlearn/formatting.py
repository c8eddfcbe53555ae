"""Views: what a trace becomes. `first_attempt` prompts with Ψ alone, `repair` with Ψ and H (Definition 24).

An accepted artifact to imitate gives one row a view (`examples`); with the attempts rejected before it, a pair for each
(`pairs`); each judged attempt by itself gives rows with its verdict (`verdicts`, R_sparse of Definition 23, erratum
20). A row weighs 1 / (rows of its trace, of its item for verdicts), so that the loss stays a mean over those.
Budgets are in tokens: the oldest history goes first, the completion is never cut, and a row that cannot fit is
dropped, counted and listed. No tokenizer is imported here: counting is passed in. Errata 24-30, 34 and 39.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from guardlearn.errors import UsageError
from guardlearn.prompts import Renderer
from guardlearn.traces import sparse_reward, unusable
from guardlearn.types import ArtifactStatus, Example, FeedbackEntry, Message, RepositoryItem, TrainingTrace, View

__all__ = [
    "NOT_ACCEPTED",
    "NO_HISTORY",
    "Formatted",
    "Pair",
    "Room",
    "Verdict",
    "chosen_views",
    "examples",
    "pairs",
    "verdicts",
]

NO_HISTORY = "no history for the repair view"
NOT_ACCEPTED = "not accepted: only an accepted artifact is worth imitating"
_BOTH = (ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED)


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """A row of two artifacts of one chain: the accepted one is preferred to one that was rejected before it."""

    id: str
    """`<trace id>/<rejected item's id>/<view>`."""
    trace_id: str
    rejected_id: str
    view: View
    prompt: tuple[Message, ...]
    """Asked as the rejected attempt was, under the view."""
    chosen: str
    rejected: str
    weight: float
    """1 / (pairs of its trace)."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """A row of one judged attempt."""

    id: str
    """`<item id>/<view>`."""
    trace_id: str
    """The trace in whose chain the item was found."""
    item_id: str
    view: View
    prompt: tuple[Message, ...]
    completion: str
    label: bool
    """Whether it was accepted."""
    weight: float
    """1 / (rows of its item)."""


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """How long rows may be."""

    count_tokens: Callable[[list[Message]], int]
    """Tokens of a rendered prompt, up to where the answer begins."""
    count_completion: Callable[[str], int]
    """Tokens of a completion, its end token included."""
    max_length: int
    """Most tokens of prompt and completion together."""


class Formatted(msgspec.Struct, frozen=True, kw_only=True):
    """Training rows, and the account of every row that did not come to be."""

    examples: list[Example]
    """In the order of the traces, views in the order asked for."""
    left_out: list[tuple[str, str]]
    """(row id, reason) of each row dropped, or (trace id, reason) where a trace has no row at all."""

    @property
    def dropped(self) -> dict[str, int]:
        """Rows left out, by reason."""
        return dict(sorted(Counter(reason for _, reason in self.left_out).items()))


def examples(
    traces: Iterable[TrainingTrace],
    renderer: Renderer,
    views: Sequence[View | str] = (View.FIRST_ATTEMPT, View.REPAIR),
    *,
    count_tokens: Callable[[list[Message]], int] | None = None,
    count_completion: Callable[[str], int] | None = None,
    max_length: int | None = None,
) -> Formatted:
    """Turn traces into training rows.

    Args:
        traces: accepted artifacts with what they were conditioned on.
        renderer: makes the prompts; the same one that collects and evaluates.
        views: what each trace becomes; `repair` only applies to a trace with a history.
        count_tokens: tokens of a rendered prompt, up to where the answer begins.
        count_completion: tokens of a completion, its end token included.
        max_length: most tokens of prompt and completion together; None: no limit.

    Raises:
        UsageError: no view, an unknown or a repeated one, or a limit without the counters.
    """
    wanted = chosen_views(views)
    if max_length is not None and (count_tokens is None or count_completion is None):
        raise UsageError(f"max_length {max_length} needs count_tokens and count_completion; pass them, or no limit")
    rows: list[Example] = []
    left_out: list[tuple[str, str]] = []
    for trace in traces:
        if trace.item.status is not ArtifactStatus.ACCEPTED:
            left_out.append((trace.item.id, NOT_ACCEPTED))
            continue
        kept: list[tuple[View, tuple[Message, ...]]] = []
        applicable = [view for view in wanted if view is not View.REPAIR or trace.history]
        if not applicable:
            left_out.append((trace.item.id, NO_HISTORY))
        for view in applicable:
            history = trace.history if view is View.REPAIR else ()
            if obstacle := renderer.obstacle(trace.item, history):
                left_out.append((f"{trace.item.id}/{view}", obstacle))
                continue
            prompt = _prompt(trace, history, renderer, count_tokens, count_completion, max_length)
            if prompt is None:
                left_out.append((f"{trace.item.id}/{view}", f"{view} row longer than {max_length} tokens"))
            else:
                kept.append((view, tuple(prompt)))
        rows.extend(
            Example(
                id=f"{trace.item.id}/{view}",
                trace_id=trace.item.id,
                view=view,
                prompt=prompt,
                completion=trace.item.artifact,
                weight=1 / len(kept),
            )
            for view, prompt in kept
        )
    return Formatted(examples=rows, left_out=left_out)


def pairs(
    trace: TrainingTrace,
    renderer: Renderer,
    views: Sequence[View],
    left_out: list[tuple[str, str]],
    room: Room | None = None,
) -> list[Pair]:
    """Return a pair for each rejected attempt of a trace and each view.

    Args:
        trace: extracted with its attempts.
        renderer: makes the prompts.
        views: what `chosen_views` returned.
        left_out: gets (trace id, or trace id/attempt id with or without a view; reason) of what is no pair.
        room: None: no limit.
    """
    item = trace.item
    if item.status is not ArtifactStatus.ACCEPTED:
        left_out.append((item.id, NOT_ACCEPTED))
        return []
    if not trace.attempts:
        left_out.append((item.id, "no rejected attempt before it to be preferred to"))
    found: list[tuple[RepositoryItem, View, list[Message]]] = []
    for attempt in trace.attempts:
        reason = _unusable(attempt, trace, renderer) or _no_pair(item, attempt)
        texts, name = (item.artifact, attempt.artifact), f"{item.id}/{attempt.id}"
        told: list[tuple[str, str]] = []
        prompts = [] if reason else _prompts(attempt, attempt.history, texts, name, renderer, views, told, room)
        if not prompts and not told:
            told.append((name, reason or NO_HISTORY))
        left_out += told
        found += [(attempt, view, prompt) for view, prompt in prompts]
    return [
        Pair(
            id=f"{item.id}/{attempt.id}/{view}",
            trace_id=item.id,
            rejected_id=attempt.id,
            view=view,
            prompt=tuple(prompt),
            chosen=item.artifact,
            rejected=attempt.artifact,
            weight=1 / len(found),
        )
        for attempt, view, prompt in found
    ]


def verdicts(
    trace: TrainingTrace,
    renderer: Renderer,
    views: Sequence[View],
    left_out: list[tuple[str, str]],
    seen: set[str],
    room: Room | None = None,
) -> list[Verdict]:
    """Return the rows of a trace's item and of its rejected attempts, each judged item once.

    Args:
        trace: extracted with its attempts; of either verdict.
        renderer: makes the prompts.
        views: what `chosen_views` returned.
        left_out: gets (item id, or item id/view; reason) of what is no row.
        seen: ids of the items that have been taken; grows.
        room: None: no limit.
    """
    rows: list[Verdict] = []
    for item in (*trace.attempts, trace.item):
        if item.id in seen:
            continue
        seen.add(item.id)
        reason = _unusable(item, trace, renderer)
        history = trace.history if item is trace.item else item.history
        told: list[tuple[str, str]] = []
        texts = (item.artifact,)
        prompts = [] if reason else _prompts(item, history, texts, item.id, renderer, views, told, room)
        if not prompts and not told:
            told.append((item.id, reason or NO_HISTORY))
        left_out += told
        rows += [
            Verdict(
                id=f"{item.id}/{view}",
                trace_id=trace.item.id,
                item_id=item.id,
                view=view,
                prompt=tuple(prompt),
                completion=item.artifact,
                label=sparse_reward(item) > 0,
                weight=1 / len(prompts),
            )
            for view, prompt in prompts
        ]
    return rows


def chosen_views(views: Sequence[View | str]) -> list[View]:
    """Return views as values.

    Raises:
        UsageError: no view, an unknown or a repeated one.
    """
    try:
        wanted = [View(view) for view in views]
    except ValueError as error:
        raise UsageError(f"{error}; views are {', '.join(View)}") from None
    if not wanted or len(set(wanted)) < len(wanted):
        raise UsageError(f"views {[str(view) for view in wanted]}: name each of {', '.join(View)} at most once")
    return wanted


def _prompt(
    trace: TrainingTrace,
    history: Sequence[FeedbackEntry],
    renderer: Renderer,
    count_tokens: Callable[[list[Message]], int] | None,
    count_completion: Callable[[str], int] | None,
    max_length: int | None,
) -> list[Message] | None:
    item = trace.item
    if max_length is None or count_tokens is None or count_completion is None:
        return renderer.messages(item.specification, item.constraints, history, about=item)
    budget = max_length - count_completion(item.artifact)
    return renderer.fit(item.specification, item.constraints, history, count_tokens, budget, about=item)


def _prompts(
    asked: RepositoryItem,
    history: Sequence[FeedbackEntry],
    completions: Sequence[str],
    name: str,
    renderer: Renderer,
    views: Sequence[View],
    left_out: list[tuple[str, str]],
    room: Room | None,
) -> list[tuple[View, list[Message]]]:
    """Return the prompt of each view that applies to an item and leaves room for each of `completions`."""
    found: list[tuple[View, list[Message]]] = []
    for view in views:
        shown = history if view is View.REPAIR else ()
        if (view is View.REPAIR and not history) or renderer.obstacle(asked, shown):
            continue
        prompt: list[Message] | None
        said, constraints = asked.specification, asked.constraints
        if room is None:
            prompt = renderer.messages(said, constraints, shown, about=asked)
        else:
            budget = room.max_length - max(map(room.count_completion, completions))
            prompt = renderer.fit(said, constraints, shown, room.count_tokens, budget, about=asked)
        if prompt is None:
            assert room is not None
            left_out.append((f"{name}/{view}", f"{view} row longer than {room.max_length} tokens"))
        else:
            found.append((view, prompt))
    return found


def _unusable(item: RepositoryItem, trace: TrainingTrace, renderer: Renderer) -> str | None:
    reason = unusable(item, trace.side, (trace.side,), _BOTH) or renderer.obstacle(item)
    return f"rejected attempt: {reason}" if reason and item is not trace.item else reason


def _no_pair(item: RepositoryItem, attempt: RepositoryItem) -> str | None:
    if item.artifact == attempt.artifact:
        return "rejected attempt: the very text that was accepted later"
    if (item.specification, item.constraints) != (attempt.specification, attempt.constraints):
        return "rejected attempt: its specification or constraints were amended before the accepted one"
    return None
