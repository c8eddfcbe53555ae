"""Formats: training rows in the shapes other tools read, as JSON Lines or Parquet.

    rows = format_traces(extraction.traces, "preference")
    write_rows(rows, Path("pairs.parquet"))
    print(rows.dropped)

Every format is the same traces under the same views in the renderer's words (errata 24-28); nothing is cut. Rows are
made one trace at a time. guardlearn's own trainer reads job folders (`jobs.py`), never these files. Errata 20, 30, 35.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import msgspec

from guardlearn.errors import GuardlearnError, NoTracesError, UsageError, missing_library
from guardlearn.formatting import Pair, Verdict, chosen_views, examples, pairs, verdicts
from guardlearn.prompts import Renderer, alpaca_row, chat_text, special_tokens
from guardlearn.types import (
    Example,
    Message,
    OnProgress,
    TrainingTrace,
    View,
)

__all__ = ["FORMATS", "Format", "TrainingRows", "format_traces", "parquet_library", "write_rows"]

Row = dict[str, Any]
"""One row: texts, numbers, flags, and lists of messages or turns; no enums (erratum 35)."""

_ROW_GROUP = 1000  # rows of Parquet written at once
_SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One shape of training rows."""

    shape: Callable[[_Shaper, TrainingTrace], Iterator[Row]]
    columns: dict[str, str]
    """Column → "text", "number", "flag", "messages" (role, content) or "turns" (from, value)."""
    attempts: bool = False
    """Made of a trace's rejected attempts too: extract with `attempts=True`."""
    rejected: bool = False
    """Takes traces of rejected items too: extract with both verdicts."""
    tokenizer: bool = False
    """Needs the tokenizer whose chat template writes its text."""


class TrainingRows:
    """Rows of one format, made as they are taken; taken again, they are made again.

    Attributes:
        format: its name in FORMATS.
        left_out: (trace, attempt or row id, reason) of all that is no row, once every row was taken.
    """

    def __init__(
        self, name: str, traces: Sequence[TrainingTrace], shaper: _Shaper, progress: OnProgress | None
    ) -> None:
        self.format = name
        self.left_out: list[tuple[str, str]] = []
        self._traces, self._shaper, self._progress = traces, shaper, progress

    @property
    def columns(self) -> dict[str, str]:
        """Column → kind, as in `Format`; `system` only where some trace has constraints."""
        columns = FORMATS[self.format].columns
        return {name: kind for name, kind in columns.items() if name != "system" or self._shaper.constrained}

    @property
    def dropped(self) -> dict[str, int]:
        """What was left out, by reason."""
        return dict(sorted(Counter(reason for _, reason in self.left_out).items()))

    def __iter__(self) -> Iterator[Row]:
        shaper = dataclasses.replace(self._shaper, left_out=[], seen=set())
        self.left_out = shaper.left_out
        made = 0
        for done, trace in enumerate(self._traces, start=1):
            for row in FORMATS[self.format].shape(shaper, trace):
                made += 1
                yield row
            if self._progress:
                self._progress(done, len(self._traces), f"{made} rows")


def format_traces(
    traces: Sequence[TrainingTrace],
    format: str = "messages",
    *,
    views: Sequence[View | str] = (View.FIRST_ATTEMPT, View.REPAIR),
    renderer: Renderer | None = None,
    tokenizer: Any = None,
    on_progress: OnProgress | None = None,
) -> TrainingRows:
    """Return traces as rows of a format.

    Args:
        traces: what `extract_traces` returned; with `attempts=True` for preference and kto.
        format: prompt_completion, messages, chatml, alpaca, sharegpt, preference or kto.
        views: what a prompt conditions on: first_attempt is Ψ alone, repair is Ψ and the H that stood before the
            completion (for preference: before the rejected one).
        renderer: makes the prompts; None: as `guardlearn collect` asks, with the tokenizer's special tokens broken up.
        tokenizer: of the model to be trained; chatml needs it. Special tokens inside texts are then broken up.
        on_progress: called with (traces shaped, traces, note) as rows are taken.

    Raises:
        UsageError: no such format or view, no tokenizer for chatml, or rejected attempts were not extracted.
    """
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}; use {', '.join(FORMATS)}")
    wanted = FORMATS[format]
    if wanted.tokenizer and tokenizer is None:
        raise UsageError(f"format {format} is written by a tokenizer's chat template; give the tokenizer")
    if wanted.attempts and (bare := next((trace for trace in traces if trace.retries and not trace.attempts), None)):
        raise UsageError(
            f"format {format} is made of rejected attempts too, and trace {bare.item.id!r} came without its "
            f"{bare.retries}; extract with attempts=True"
        )
    if renderer is None:
        renderer = Renderer(special_tokens=special_tokens(tokenizer) if tokenizer is not None else ())
    shaper = _Shaper(
        renderer=renderer,
        views=tuple(chosen_views(views)),
        tokenizer=tokenizer,
        constrained=_system_messages(renderer, traces),
    )
    return TrainingRows(format, traces, shaper, on_progress)


def _system_messages(renderer: Renderer, traces: Sequence[TrainingTrace]) -> bool:
    """Whether any prompt has one."""
    if renderer.config.layout == "atomicguard":
        return bool(renderer.config.system)
    return any(trace.item.constraints for trace in traces)


def write_rows(rows: TrainingRows, output: Path) -> int:
    """Write rows to `output`, whole or not at all; return how many.

    Args:
        rows: what `format_traces` returned.
        output: Parquet where its name ends in .parquet, else JSON Lines; an older file is replaced.

    Raises:
        NoTracesError: not one row remains; the message says why.
        BackendUnavailable: Parquet, and pyarrow is missing.
        GuardlearnError: the disk is full, or the place cannot be written to.
    """
    write = _write_parquet if output.suffix.lower() == ".parquet" else _write_lines
    staged = output.with_name(f".{output.name}.{os.getpid()}.new")
    try:
        with staged.open("wb") as file:
            count = write(rows, file)
            file.flush()
            os.fsync(file.fileno())  # a disk may say only now that it is full
        if not count:
            reasons = ", ".join(f"{reason}: {number}" for reason, number in rows.dropped.items())
            raise NoTracesError(
                f"no {rows.format} row remains ({reasons or 'no trace'}); choose other views or another policy"
            )
        staged.replace(output)
    except OSError as error:
        reason = error.strerror or str(error)
        raise GuardlearnError(
            f"{output} cannot be written ({reason}); nothing was left there: make room or name another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            staged.unlink(missing_ok=True)
    return count


def parquet_library() -> Any:
    """Return pyarrow, its Parquet part loaded.

    Raises:
        BackendUnavailable: it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise missing_library("pyarrow", "parquet", "writing Parquet") from None
    return pyarrow


def _write_lines(rows: TrainingRows, file: IO[bytes]) -> int:
    count = 0
    for row in rows:
        count += 1
        line = msgspec.json.encode(row)
        for mark in _LINE_MARKS:
            line = line.replace(mark.encode(), b"\\u%04x" % ord(mark))
        file.write(line + b"\n")
    return count


_LINE_MARKS = "\x85\u2028\u2029"  # JSON allows them as they are, but Python's splitlines() would break a row there


def _write_parquet(rows: TrainingRows, file: IO[bytes]) -> int:
    arrow = parquet_library()
    speech = {"messages": ("role", "content"), "turns": ("from", "value")}
    kinds = {"text": arrow.string(), "number": arrow.float64(), "flag": arrow.bool_()} | {
        kind: arrow.list_(arrow.struct([(name, arrow.string()) for name in names])) for kind, names in speech.items()
    }
    schema = arrow.schema([(name, kinds[kind]) for name, kind in rows.columns.items()])
    count, remaining = 0, iter(rows)
    with arrow.parquet.ParquetWriter(file, schema) as writer:
        while batch := list(itertools.islice(remaining, _ROW_GROUP)):
            writer.write_table(arrow.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


@dataclasses.dataclass(slots=True, kw_only=True)
class _Shaper:
    """What the shapes below work with."""

    renderer: Renderer
    views: tuple[View, ...]
    tokenizer: Any
    constrained: bool
    """Whether any prompt has a system message: then every alpaca row has one, so that the rows are alike."""
    left_out: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    seen: set[str] = dataclasses.field(default_factory=set)
    """Ids of the items that kto has taken."""

    def examples(self, trace: TrainingTrace) -> list[Example]:
        formatted = examples([trace], self.renderer, self.views)
        self.left_out += formatted.left_out
        return formatted.examples

    def answer(self, artifact: str) -> list[Message]:
        return [{"role": "assistant", "content": self.renderer.neutralise(artifact)}]


def _prompt_completion(shaper: _Shaper, trace: TrainingTrace) -> Iterator[Row]:
    for row in shaper.examples(trace):
        yield _head(row) | {"prompt": list(row.prompt), "completion": shaper.answer(row.completion)}


def _messages(shaper: _Shaper, trace: TrainingTrace) -> Iterator[Row]:
    for row in shaper.examples(trace):
        yield _head(row) | {"messages": [*row.prompt, *shaper.answer(row.completion)]}


def _chatml(shaper: _Shaper, trace: TrainingTrace) -> Iterator[Row]:
    for row in shaper.examples(trace):
        completion = shaper.renderer.neutralise(row.completion)
        yield _head(row) | {"text": chat_text(shaper.tokenizer, row.prompt, completion)}


def _alpaca(shaper: _Shaper, trace: TrainingTrace) -> Iterator[Row]:
    for row in shaper.examples(trace):
        told = alpaca_row(shaper.renderer, trace.item, trace.history if row.view is View.REPAIR else ())
        yield told | {"system": told.get("system", "")} if shaper.constrained else told


def _sharegpt(shaper: _Shaper, trace: TrainingTrace) -> Iterator[Row]:
    for row in shaper.examples(trace):
        said = [*row.prompt, *shaper.answer(row.completion)]
        yield {"conversations": [{"from": _SPEAKERS[each["role"]], "value": each["content"]} for each in said]}


def _preference(shaper: _Shaper, trace: TrainingTrace) -> Iterator[Row]:
    """Yield a row for each rejected attempt of the chain."""
    for row in pairs(trace, shaper.renderer, shaper.views, shaper.left_out):
        sides = {"chosen": shaper.answer(row.chosen), "rejected": shaper.answer(row.rejected)}
        yield _head(row) | {"prompt": list(row.prompt)} | sides


def _kto(shaper: _Shaper, trace: TrainingTrace) -> Iterator[Row]:
    """Yield each judged item once, labelled by R_sparse (Definition 23)."""
    for row in verdicts(trace, shaper.renderer, shaper.views, shaper.left_out, shaper.seen):
        completion = shaper.answer(row.completion)
        yield _head(row) | {"prompt": list(row.prompt), "completion": completion, "label": row.label}


def _head(row: Example | Pair | Verdict) -> Row:
    return {"id": row.id, "view": row.view.value, "weight": row.weight}


_HEAD = {"id": "text", "view": "text", "weight": "number"}

FORMATS: dict[str, Format] = {
    "prompt_completion": Format(
        shape=_prompt_completion, columns=_HEAD | {"prompt": "messages", "completion": "messages"}
    ),
    "messages": Format(shape=_messages, columns=_HEAD | {"messages": "messages"}),
    "chatml": Format(shape=_chatml, columns=_HEAD | {"text": "text"}, tokenizer=True),
    "alpaca": Format(
        shape=_alpaca, columns={"instruction": "text", "input": "text", "output": "text", "system": "text"}
    ),
    "sharegpt": Format(shape=_sharegpt, columns={"conversations": "turns"}),
    "preference": Format(
        shape=_preference,
        columns=_HEAD | {"prompt": "messages", "chosen": "messages", "rejected": "messages"},
        attempts=True,
    ),
    "kto": Format(
        shape=_kto,
        columns=_HEAD | {"prompt": "messages", "completion": "messages", "label": "flag"},
        attempts=True,
        rejected=True,
    ),
}
"""Each format's name, and how its rows are made."""
