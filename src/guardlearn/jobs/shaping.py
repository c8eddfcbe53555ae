"""What traces become in a job folder: each stage's rows of both sides, and the settings.

A stage imitates accepted artifacts (sft), prefers them to the rejected attempts of their chains (dpo), or takes each
judged attempt by its verdict (kto). Which items a trace's rows were made of is kept beside them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from guardlearn.digests import digest_bytes
from guardlearn.formatting import Pair, Room, Verdict, chosen_views, examples, pairs, verdicts
from guardlearn.jobs.config import TrainingConfig
from guardlearn.prompts import PromptConfig, Renderer, encode_completion, encode_prompt
from guardlearn.types import Example, OnProgress, Side, TrainingTrace, View

__all__ = ["SIDES", "Contents", "Made", "made_of", "room_of", "rows_of", "shape"]

SIDES = (Side.TRAIN, Side.VALIDATION)
"""Sides that a job has rows of."""

_SHORT_DIGEST = 16  # hex digits that tell which trace differs; the digests of the files vouch for all of them
_PLACES = ("", ".second")  # of a stage's files


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one side's traces."""

    rows: list[int]
    """Each stage's."""
    row_digests: dict[str, str]
    """Digest of each trace's lines, by item id, in the order of the traces; those without a row are absent."""
    used: dict[str, list[str]]
    """Items that a trace's rows were made of, by item id, in the order of their chain."""
    labels: set[bool]
    """Verdicts among kto's rows."""
    left_out: list[tuple[str, str]]
    """(Row, trace or attempt; reason) of what is no row."""

    @property
    def item_ids(self) -> list[str]:
        """The items that rows were made of, each once, in order."""
        return list(dict.fromkeys(name for names in self.used.values() for name in names))

    @property
    def attempts(self) -> list[list[Any]]:
        """[trace, [rejected attempts that its rows were made of]] of each trace that has rows, in order."""
        return [[trace, [name for name in names if name != trace]] for trace, names in self.used.items()]


class Contents(msgspec.Struct, frozen=True, kw_only=True):
    """A job's files but its manifest, and what they were made of."""

    files: dict[str, bytes]
    sides: dict[Side, Made]
    renderer: Renderer
    tokenizer: Any


def shape(
    traces: Sequence[TrainingTrace],
    renderer: Renderer,
    tokenizer: Any,
    config: TrainingConfig,
    *,
    settings: Mapping[str, Any],
    weights: Mapping[str, float],
    on_progress: OnProgress | None = None,
) -> Contents:
    """Return what traces become: rows of both sides, and settings.

    Args:
        traces: both sides, in order; with their attempts where a method is made of those.
        renderer: makes the prompts.
        tokenizer: decides what fits.
        config: method, views and the most tokens of a row.
        settings: keys of job.toml.
        weights: by item id, where not 1.
        on_progress: called with (sides shaped, sides, note).
    """
    room = room_of(tokenizer, config.max_length)
    files = {"job.toml": _toml(settings, renderer.config).encode()}
    sides: dict[Side, Made] = {}
    for step, side in enumerate(SIDES, start=1):
        own = [trace for trace in traces if trace.side is side]
        sides[side], data = _side(own, renderer, config, room, weights if side is Side.TRAIN else {})
        files |= {f"{side}{place}.jsonl": lines for place, lines in zip(_PLACES, data, strict=False)}
        if on_progress:
            on_progress(step, len(SIDES), f"{sum(sides[side].rows)} {side} rows")
    return Contents(files=files, sides=sides, renderer=renderer, tokenizer=tokenizer)


def room_of(tokenizer: Any, max_length: int) -> Room:
    """Return how long rows may be, in the tokens that training will see."""
    return Room(
        count_tokens=lambda messages: len(encode_prompt(tokenizer, messages)),
        count_completion=lambda text: len(encode_completion(tokenizer, text)),
        max_length=max_length,
    )


def _side(
    traces: Sequence[TrainingTrace],
    renderer: Renderer,
    config: TrainingConfig,
    room: Room,
    weights: Mapping[str, float],
) -> tuple[Made, list[bytes]]:
    """Return what became of a side, and each stage's lines."""
    data: list[bytes] = []
    rows: list[int] = []
    left_out: list[tuple[str, str]] = []
    by_trace: dict[str, list[bytes]] = {}
    items: dict[str, set[str]] = {}
    labels: set[bool] = set()
    for method in config.methods:
        lines: list[bytes] = []
        for row in rows_of(method, traces, renderer, chosen_views(config.views), room, left_out):
            lines.append(_line(row, row.weight * weights.get(row.trace_id, 1.0)))
            by_trace.setdefault(row.trace_id, []).append(lines[-1])
            items.setdefault(row.trace_id, set()).update(made_of(row))
            labels |= {row.label} if isinstance(row, Verdict) else set()
        data.append(b"".join(lines))
        rows.append(len(lines))
    chains = {trace.item.id: [*(each.id for each in trace.attempts), trace.item.id] for trace in traces}
    used = {name: [each for each in chain if each in items[name]] for name, chain in chains.items() if name in items}
    digests = {name: digest_bytes(b"".join(by_trace[name]))[:_SHORT_DIGEST] for name in used}
    return Made(rows=rows, row_digests=digests, used=used, labels=labels, left_out=left_out), data


def rows_of(
    method: str,
    traces: Sequence[TrainingTrace],
    renderer: Renderer,
    views: Sequence[View],
    room: Room,
    left_out: list[tuple[str, str]],
) -> list[Example | Pair | Verdict]:
    """Return the rows that a method makes of traces.

    Args:
        method: sft, kto or dpo.
        traces: with their attempts where the method is made of those.
        renderer: makes the prompts.
        views: what `chosen_views` returned.
        room: how long rows may be.
        left_out: gets (row, trace or attempt; reason) of what is no row.
    """
    if method == "dpo":
        return [row for trace in traces for row in pairs(trace, renderer, views, left_out, room)]
    if method == "kto":
        seen: set[str] = set()
        return [row for trace in traces for row in verdicts(trace, renderer, views, left_out, seen, room)]
    formatted = examples(traces, renderer, views, **msgspec.structs.asdict(room))
    left_out += formatted.left_out
    return list(formatted.examples)


def made_of(row: Example | Pair | Verdict) -> set[str]:
    """Return the items that a row shows as answers."""
    if isinstance(row, Pair):
        return {row.trace_id, row.rejected_id}
    return {row.item_id if isinstance(row, Verdict) else row.trace_id}


def _line(row: Example | Pair | Verdict, weight: float) -> bytes:
    fields = msgspec.structs.asdict(row) | {"view": row.view.value, "weight": weight}
    return (json.dumps(fields, sort_keys=True) + "\n").encode()


def _toml(settings: Mapping[str, Any], prompts: PromptConfig) -> str:
    said = {"retry": prompts.retry, "layout": prompts.layout}
    lines = ["# A guardlearn training job: python -m guardlearn.training FOLDER --model PATH", ""]
    order = [field.name for field in dataclasses.fields(TrainingConfig)]  # a manifest's keys are sorted
    lines += [f"{name} = {json.dumps(said.get(name, settings[name]))}" for name in order if name in settings]
    return "\n".join(lines) + "\n"
