"""What an item becomes under each view: the training rows its trace gives, or why it gives none.

Rows come from the same `formatting` that fills a job folder, tokens and loss masks from the trainer's own
(`report.masks`). Without a tokenizer rows are shown as messages; nothing of transformers is imported then.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.sides import placements
from guardlearn.errors import UsageError
from guardlearn.formatting import NO_HISTORY, Pair, Verdict, chosen_views, examples, pairs, verdicts
from guardlearn.jobs import TrainingConfig
from guardlearn.jobs.shaping import room_of
from guardlearn.prompts import PromptConfig, Renderer, special_tokens
from guardlearn.report.masks import MaskedRow, masked_rows
from guardlearn.traces import unusable
from guardlearn.types import ArtifactStatus, Example, Message, RepositoryItem, Side, TrainingTrace

__all__ = ["ROWS_SHOWN", "VIEWS", "Answer", "Shaped", "ShapedRow", "Shaping", "shape_item"]

VIEWS = {
    "first_attempt": "the accepted artifact, asked for with the specification alone",
    "repair": "the accepted artifact, asked for with the specification and the feedback before it",
    "both": "the two above; each weighs half where both apply",
    "preference": "the accepted artifact preferred to each one rejected before it in its chain (DPO)",
    "verdict": "each judged attempt by its verdict (KTO)",
}
"""Name of a view → what it makes of a trace."""

ROWS_SHOWN = 12
"""Most rows on a page: a long chain has a pair for each rejected attempt."""
_ACCEPTED = (ArtifactStatus.ACCEPTED,)
_JUDGED = (ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED)
_TRAINED = (Side.TRAIN, Side.VALIDATION)


class Shaping:
    """How rows are made: the training's settings, and the base model's tokenizer where one was named.

    Args:
        config: retry, layout, views and the most tokens of a row.
        model: the base model's folder; None: rows are shown without tokens.
    """

    def __init__(self, config: TrainingConfig | None = None, model: Path | None = None) -> None:
        self.config = config or TrainingConfig()
        self.model = model
        self._loading = threading.Lock()

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, loaded when it is first asked for; None where no model was named.

        Raises:
            ModelError: the folder holds none that can be used.
            BackendUnavailable: transformers is missing.
        """
        if self.model is None:
            return None
        with self._loading:  # requests come in threads
            return self._loaded

    @functools.cached_property
    def _loaded(self) -> Any:
        from guardlearn.training.model import load_tokenizer

        return load_tokenizer(str(self.model), self.config.max_length)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt with one answer that carries loss."""

    label: str
    """What training does with it."""
    prompt: tuple[Message, ...]
    completion: str
    masked: MaskedRow | None
    """The same as tokens; None: no tokenizer, or none can read these texts."""


class ShapedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One training row; a pair has two answers."""

    id: str
    view: str
    weight: float
    answers: tuple[Answer, ...]


class Shaped(msgspec.Struct, frozen=True, kw_only=True):
    """What an item becomes under one view."""

    view: str
    rows: list[ShapedRow]
    """At most `ROWS_SHOWN` of them."""
    rows_left_out: int
    unusable: str
    """Why no extraction would take the item as it is now; "": one would."""
    left_out: list[tuple[str, str]]
    """(Row, item or attempt; reason) of what is no row."""
    tokens: bool
    """Whether rows come with tokens."""


def shape_item(dag: ArtifactDAG, item_id: str, view: str, shaping: Shaping) -> Shaped:
    """Return the rows that an item's trace gives under a view, whether or not an extraction would take it now.

    Args:
        dag: ℛ; it is only read.
        item_id: the item.
        view: a key of `VIEWS`.
        shaping: how rows are made.

    Raises:
        UsageError: no such view.
        RepositoryError: no such item.
        ModelError: the tokenizer cannot be loaded.
    """
    if view not in VIEWS:
        raise UsageError(f"view {view!r} is unknown; allowed: {', '.join(VIEWS)}")
    *before, item = dag.provenance(item_id)
    trace = _trace(dag, item, before)
    reason = unusable(item, trace.side, _TRAINED, _JUDGED if view == "verdict" else _ACCEPTED) or ""
    if item.facts and item.facts.redacted:
        return Shaped(view=view, rows=[], rows_left_out=0, unusable=reason, left_out=[], tokens=False)
    left_out: list[tuple[str, str]] = []
    tokenizer = shaping.tokenizer if _readable(trace) else None
    made = _rows(trace, view, shaping.config, tokenizer, left_out)
    return Shaped(
        view=view,
        rows=[_shown(row, tokenizer, shaping.config.max_length) for row in made[:ROWS_SHOWN]],
        rows_left_out=max(0, len(made) - ROWS_SHOWN),
        unusable=reason,
        left_out=left_out,
        tokens=tokenizer is not None,
    )


def _trace(dag: ArtifactDAG, item: RepositoryItem, before: Sequence[RepositoryItem]) -> TrainingTrace:
    root = item.facts.root_id if item.facts else item.id
    with dag.reading() as connection:
        place = placements(connection, [root])[root]
    rejected = tuple(each for each in before if each.status is ArtifactStatus.REJECTED)
    return TrainingTrace(item=item, history=item.history, group=place.cluster, side=place.side, attempts=rejected)


def _rows(
    trace: TrainingTrace, view: str, config: TrainingConfig, tokenizer: Any, left_out: list[tuple[str, str]]
) -> list[Example | Pair | Verdict]:
    prompts = PromptConfig(retry=config.retry, layout=config.layout)
    renderer = Renderer(config=prompts, special_tokens=special_tokens(tokenizer) if tokenizer else ())
    room = room_of(tokenizer, config.max_length) if tokenizer else None
    views = chosen_views(config.views)
    if view == "preference":
        return list(pairs(trace, renderer, views, left_out, room))
    if view == "verdict":
        return list(verdicts(trace, renderer, views, left_out, set(), room))
    wanted = ("first_attempt", "repair") if view == "both" else (view,)
    limits = msgspec.structs.asdict(room) if room else {}
    formatted = examples([trace], renderer, wanted, **limits)
    left_out += formatted.left_out
    if view == "both" and not trace.history and formatted.examples:
        left_out.append((f"{trace.item.id}/repair", NO_HISTORY))
    return list(formatted.examples)


def _shown(row: Example | Pair | Verdict, tokenizer: Any, max_length: int) -> ShapedRow:
    if isinstance(row, Pair):
        said = [("chosen", row.chosen), ("rejected", row.rejected)]
    elif isinstance(row, Verdict):
        said = [("accepted" if row.label else "rejected", row.completion)]
    else:
        said = [("imitated", row.completion)]
    return ShapedRow(
        id=row.id,
        view=row.view.value,
        weight=row.weight,
        answers=tuple(
            Answer(
                label=label,
                prompt=row.prompt,
                completion=text,
                masked=_masked(row, text, tokenizer, max_length) if tokenizer and text else None,
            )
            for label, text in said
        ),
    )


def _masked(row: Example | Pair | Verdict, completion: str, tokenizer: Any, max_length: int) -> MaskedRow:
    fields = {"id": row.id, "view": row.view.value, "prompt": list(row.prompt), "completion": completion}
    return masked_rows([fields | {"weight": row.weight}], tokenizer, max_length)[0]


def _readable(trace: TrainingTrace) -> bool:
    """Whether a tokenizer can read all that the trace's rows are made of: none takes lone surrogates."""
    items = (*trace.attempts, trace.item)
    texts = [text for item in items for text in (item.specification, item.constraints, item.artifact, item.feedback)]
    texts += [text for entry in trace.history for text in (entry.artifact, entry.feedback)]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
