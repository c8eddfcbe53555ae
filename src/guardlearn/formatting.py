"""Views: what a trace becomes. `first_attempt` prompts with Ψ alone, `repair` with Ψ and H (Definition 24).

Every trace gives one row a view; a row weighs 1 / (rows of its trace), so that the loss stays a mean over traces.
Budgets are in tokens: the oldest history goes first, the completion is never cut, and a row that cannot fit is
dropped, counted and listed. No tokenizer is imported here: counting is passed in. Errata 24-30, 34 and 39.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import msgspec

from guardlearn.errors import UsageError
from guardlearn.prompts import Renderer
from guardlearn.types import ArtifactStatus, Example, FeedbackEntry, Message, TrainingTrace, View

__all__ = ["NOT_ACCEPTED", "NO_HISTORY", "Formatted", "chosen_views", "examples"]

NO_HISTORY = "no history for the repair view"
NOT_ACCEPTED = "not accepted: only an accepted artifact is worth imitating"


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
