"""Evaluations that can be shown: those that rounds of ℛ measured, and evidence files of folders named at the start.

An address names one by a digest of where it came from, so no path of the file system is ever taken from a request.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from starlette.responses import HTMLResponse, Response

from guardlearn import report
from guardlearn.dag import ArtifactDAG, rounds
from guardlearn.dag.rounds import RoundStep
from guardlearn.errors import DataError, UsageError
from guardlearn.evidence import Evidence
from guardlearn.loop.history import history
from guardlearn.report import Report
from guardlearn.report.gathering import Finder
from guardlearn.report.round_stories import evidence_of_round, measured_rounds

__all__ = ["Shown", "drawing", "evidence_files", "key_of_round", "of_files", "of_rounds", "report_answer", "report_of"]

_DEPTH = 4
"""How deep folders are looked through for evidence files."""
_FOLDERS = 5_000
_FILES = 500
_KEY = 16
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""A report's page has its own style sheet inside, and nothing else."""

_drawing = threading.Lock()


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation."""

    key: str
    """What its address ends with."""
    origin: str
    """The round, or the file."""
    version: tuple[int, int] = (0, 0)
    """Of a file: its time in nanoseconds and its size; another one is another evaluation."""
    evidence: Evidence | None = None
    """None: it cannot be read."""
    fault: str = ""
    """Why it cannot."""
    learner: str = ""
    round: int = 0
    path: Path | None = None
    """None: a round's."""


def key_of_round(learner: str, number: int) -> str:
    """Return what the address of a round's evaluation ends with."""
    return _key(f"round\0{learner}/{number}")


def of_rounds(dag: ArtifactDAG) -> list[Shown]:
    """Return the evaluation of each round that measured one, without its single pairs."""
    with dag.reading() as connection:
        steps = rounds.read(connection)
    by_learner: dict[str, list[RoundStep]] = {}
    for step in steps:
        by_learner.setdefault(step.learner, []).append(step)
    found = []
    for learner, own in by_learner.items():
        for number in measured_rounds(own):
            told = Shown(key=key_of_round(learner, number), origin=f"{learner}/{number}", learner=learner, round=number)
            with contextlib.suppress(UsageError):  # nothing was sampled
                found.append(_read(told, functools.partial(_of_round, own, number)))
    return found


def of_files(folders: Sequence[Path]) -> list[Shown]:
    """Return the evaluation of each evidence file below the folders, in the order of their paths."""
    found = []
    for path in evidence_files(folders):
        told = Shown(key=_key(f"file\0{path.absolute()}"), origin=str(path), path=path)
        try:
            state = path.stat()
        except OSError as error:
            found.append(msgspec.structs.replace(told, fault=f"{path} cannot be read: {error.strerror}"))
            continue
        told = msgspec.structs.replace(told, version=(state.st_mtime_ns, state.st_size))
        found.append(_read(told, functools.partial(_loaded, path, *told.version)))
    return found


def evidence_files(folders: Sequence[Path]) -> list[Path]:
    """Return the evidence files below folders, a bounded number; a file among `folders` is taken as it is."""
    found: dict[Path, None] = {}
    for folder in folders:
        found |= dict.fromkeys([folder] if folder.is_file() else _below(folder))
    return list(found)[:_FILES]


def report_of(dag: ArtifactDAG, shown: Shown, model: str | None = None) -> str:
    """Return an evaluation's report page, with what ℛ and the evaluation's folder tell of the adapter.

    Args:
        dag: ℛ; it is only read.
        shown: what `of_rounds` or `of_files` returned, readable.
        model: folder of the base model whose tokenizer shows training rows; None: they are not shown.
    """
    finder = Finder(dag, lambda name: Path(model) if model else None)
    found: Report
    if shown.path is None:
        found = finder.of_round(shown.learner, shown.round, history(dag, shown.learner))
    else:
        found = finder.beside(shown.path)
    limits = [*found.limits, *(f"{note[:1].upper()}{note[1:]}." for note in finder.notes)]
    with drawing():
        return report.html(found.evidence, story=found.story, limits=limits, round_story=found.round_story)


def report_answer(page: str) -> Response:
    """Return a page of `report` as an answer, under a policy of its own."""
    body = page.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    return HTMLResponse(body, headers={"Content-Security-Policy": _POLICY})


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Let one thread draw at a time: figures share state of their library."""
    with _drawing:
        yield


@functools.lru_cache(maxsize=64)
def _loaded(path: Path, _mtime_ns: int, _size: int) -> Evidence:
    return report.load_report(path).evidence


def _of_round(steps: Sequence[RoundStep], number: int) -> Evidence:
    return evidence_of_round(steps, number)[0]


def _read(told: Shown, read: Callable[[], Evidence]) -> Shown:
    try:
        return msgspec.structs.replace(told, evidence=read())
    except DataError as error:
        return msgspec.structs.replace(told, fault=str(error))
    except OSError as error:
        return msgspec.structs.replace(told, fault=f"{told.origin} cannot be read: {error.strerror}")


def _below(folder: Path) -> Iterator[Path]:
    for looked, (at, folders, files) in enumerate(os.walk(folder), 1):
        here = Path(at)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if looked >= _FOLDERS or len(here.relative_to(folder).parts) >= _DEPTH:
            folders.clear()
        if report.EVIDENCE in files:
            yield here / report.EVIDENCE


def _key(origin: str) -> str:
    return hashlib.sha256(origin.encode("utf-8", "surrogatepass")).hexdigest()[:_KEY]
