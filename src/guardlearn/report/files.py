"""Evidence and whole reports as files: read and found sound, or refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.errors import DataError
from guardlearn.evidence import Evidence
from guardlearn.printing import json_text
from guardlearn.report.round_stories import RoundStory
from guardlearn.report.stories import Story

__all__ = ["Report", "load", "load_report", "report_json", "to_json"]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """All that a rendering shows; as JSON, report.json."""

    evidence: Evidence
    story: Story | None = None
    limits: tuple[str, ...] = ()
    round_story: RoundStory | None = None


def to_json(evidence: Evidence) -> str:
    """Return the evidence as JSON, indented; it holds no inf and no nan."""
    return json_text(evidence)


def report_json(report: Report) -> str:
    """Return all of a report as JSON, indented; a loss that is no number is null."""
    return json_text(report)


def load(path: Path) -> Evidence:
    """Read an evidence file.

    Raises:
        DataError: no such file, or it is no evidence.
    """
    return _evidence(_content(path), path)


def load_report(path: Path) -> Report:
    """Read a whole report, or an evidence file, which then is all of it.

    Raises:
        DataError: no such file, or it is neither.
    """
    content = _content(path)
    if not (isinstance(content, dict) and "evidence" in content):
        return Report(evidence=_evidence(content, path))
    evidence = _evidence(content["evidence"], path)
    try:
        _restore_losses(content.get("story"))
        whole = msgspec.convert(content, type=Report, str_keys=True)
    except (TypeError, ValueError, AttributeError, msgspec.ValidationError) as error:
        raise DataError(f"{path} is no report of guardlearn ({error}); make it again") from error
    return msgspec.structs.replace(whole, evidence=evidence)


def _content(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"no evidence at {path}; run: guardlearn evaluate")
    try:
        return json.loads(path.read_bytes())  # json reads lone surrogates, msgspec not
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no evidence of guardlearn ({error}); evaluate again") from error


def _evidence(content: Any, path: Path) -> Evidence:
    try:
        evidence = msgspec.convert(content, type=Evidence)
    except (ValueError, msgspec.ValidationError) as error:
        raise DataError(f"{path} is no evidence of guardlearn ({error}); evaluate again") from error
    fault = next(_faults(evidence, content), None)
    if fault:
        raise DataError(f"{path} is no evidence of guardlearn ({fault}); evaluate again")
    return evidence


def _faults(evidence: Evidence, content: Any) -> Iterator[str]:
    """Yield what no evaluation writes, and what a rendering would stumble over."""
    if evidence.r_max < 1:
        yield f"r_max is {evidence.r_max}, from 1 on is allowed"
    for name, side in (("base", evidence.base), ("candidate", evidence.candidate)):
        if side is not None and len(side.solved_by_attempt) not in (0, evidence.r_max):
            yield f"{name}.solved_by_attempt has {len(side.solved_by_attempt)} entries, r_max is {evidence.r_max}"
    if any((pair.candidate is None) != (evidence.candidate is None) for pair in evidence.per_spec):
        yield "per_spec and candidate do not agree on whether there is a candidate"
    if not all(math.isfinite(number) for number in _floats(content)):
        yield "it holds a number that is not finite"


def _floats(content: Any) -> Iterator[float]:
    """Yield the numbers in JSON; deep nesting was refused when it was read."""
    if isinstance(content, float):
        yield content
    elif isinstance(content, dict | list):
        for part in content.values() if isinstance(content, dict) else content:
            yield from _floats(part)


def _restore_losses(story: Any) -> None:
    """Put back the losses of a diverged training, which JSON could not hold."""
    if story:
        for name in ("losses", "looks"):
            pairs = story.get(name, [])
            story[name] = [[step, math.nan if loss is None else loss] for step, loss in pairs]
