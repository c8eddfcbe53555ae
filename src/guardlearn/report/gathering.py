"""What a report can say, found where it lies: beside an evidence file, in its folder, or in the rounds that ℛ keeps.

What cannot be found, or does not belong to what was measured, is left out and said; the evidence itself must be there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from guardlearn import adapters
from guardlearn.dag import ArtifactDAG, rounds
from guardlearn.dag.rounds import RoundStep, State
from guardlearn.errors import DataError, GuardlearnError, JobError, UsageError
from guardlearn.evidence import Evidence
from guardlearn.report.files import Report, load, load_report
from guardlearn.report.history import RoundRow
from guardlearn.report.round_stories import evidence_of_round, measured_rounds, round_story
from guardlearn.report.stories import Story, story, story_of_adapter
from guardlearn.training.settings import read_job
from guardlearn.types import OnProgress

__all__ = ["Finder", "round_of_file"]

_EVIDENCE, _WHOLE = "evidence.json", "report.json"

_DIGEST = re.compile("[0-9a-f]{64}")

Models = Callable[[str], Path | None]
"""Takes the name of a job's base model and returns its folder; None where it is not at hand."""


class _Made(NamedTuple):
    """Where an adapter may have come from."""

    job: Path | None
    adapter: Path | None
    dropped: dict[str, int] | None = None
    """As the extraction counted them; None: not known."""
    base_model: str = ""
    """Its name; "": the job's."""


class Finder:
    """Gathers a report; `notes` says, in sentences, what it had to leave out and why."""

    def __init__(self, dag: ArtifactDAG | None, models: Models, on_progress: OnProgress | None = None) -> None:
        """Begin.

        Args:
            dag: ℛ that the traces came from, only read; None: not at hand.
            models: finds base models, for the tokens of the training rows.
            on_progress: called with (chains told, chains, note).
        """
        self._dag, self._models, self._on_progress = dag, models, on_progress
        self.notes: list[str] = []

    def beside(self, place: Path) -> Report:
        """Return the report of an evidence file, or of the one in a folder, with what its folder tells of the adapter.

        Args:
            place: evidence.json, report.json, or a folder that holds one of them.

        Raises:
            DataError: there is none, or it is no evidence.
        """
        file = place
        if place.is_dir():
            file = place / _EVIDENCE if (place / _EVIDENCE).is_file() else place / _WHOLE
            if not file.is_file():
                raise DataError(f"{place} holds no {_EVIDENCE}; name a folder of guardlearn evaluate, run or demo")
        found = load_report(file)
        if found.story is not None:
            return found
        folder = file.parent
        made = _Made(job=folder / "job", adapter=folder / "adapter")
        told = self._optional(lambda: self._made(found.evidence, made))
        return msgspec.structs.replace(found, story=told)

    def of_round(self, learner: str, number: int | None, rows: Sequence[RoundRow]) -> Report:
        """Return the report of a round that ℛ keeps.

        Args:
            learner: whose round.
            number: the round's, from 1; None: the last one that was measured.
            rows: what is known of all rounds of the learner.

        Raises:
            UsageError: no such round, or it was not measured.
        """
        steps = self._steps(learner)
        measured = measured_rounds(steps)
        if number is None and not measured:
            raise UsageError(f"no round of {learner} was measured yet; run: guardlearn loop")
        chosen = measured[-1] if number is None else number
        told = round_story(steps, chosen, rows)
        short, file = evidence_of_round(steps, chosen)
        evidence = self._whole(short, file)
        return Report(
            evidence=evidence,
            story=self._optional(lambda: self._of_steps(evidence, [step for step in steps if step.round == chosen])),
            round_story=told,
        )

    def _steps(self, learner: str) -> list[RoundStep]:
        if self._dag is None:
            raise UsageError("a round is kept in a repository; name it")
        with self._dag.reading() as connection:
            return rounds.read(connection, learner)

    def _whole(self, short: Evidence, file: str) -> Evidence:
        """Return the evidence with its single pairs where its file still holds them, else as ℛ keeps it."""
        try:
            found = load(Path(file))
        except DataError as error:
            self.notes.append(f"single specifications and groups are left out: {error}")
            return short
        if msgspec.structs.replace(found, per_spec=[]) != short:
            self.notes.append(f"single specifications and groups are left out: {file} is not what the round measured")
            return short
        return found

    def _optional(self, gather: Callable[[], Story | None]) -> Story | None:
        try:
            return gather()
        except GuardlearnError as error:
            self.notes.append(f"how the adapter was made is left out: {error}")
            return None

    def _made(self, evidence: Evidence, made: _Made) -> Story | None:
        """Return what a job or an adapter tells, if it is the one that was measured."""
        if evidence.candidate is None:
            return None
        measured = evidence.digests.get("adapter", "")
        if not _DIGEST.fullmatch(measured):  # a server's name of it
            measured = ""
        job, adapter = made.job, made.adapter
        if job and (job / "result.json").is_file():
            digest = _made_by(job)
            if not measured or not digest or digest == measured:
                return self._of_job(job, made)
            self.notes.append(f"{job} is left out: it made adapter {digest[:12]}, measured was {measured[:12]}")
        if adapter and (adapter / adapters.MANIFEST).is_file():
            if not measured or (digest := adapters.adapter_digest(adapter)) == measured:
                return story_of_adapter(adapter)
            self.notes.append(f"{adapter} is left out: it is {digest[:12]}, measured was {measured[:12]}")
        return None

    def _of_job(self, job: Path, made: _Made) -> Story:
        given: dict[str, Any] = {"dropped": made.dropped, "on_progress": self._on_progress}
        if self._dag is None:
            self.notes.append("chains are left out: no repository is at hand; name it with --db")
            return story(None, job, None, **given)
        model = self._models(made.base_model or read_job(job).settings.base_model)
        told = None
        if model is None:
            self.notes.append("tokens are left out: the base model is not at hand; name it with --model")
        else:
            try:
                told = story(self._dag, job, model, **given)
            except GuardlearnError as error:
                self.notes.append(f"tokens are left out: {error}")
        told = told or story(self._dag, job, None, **given)
        if not told.traces:
            self.notes.append(f"chains are left out: {self._dag.target} holds none of those that {job} was made from")
        return told

    def _of_steps(self, evidence: Evidence, steps: Sequence[RoundStep]) -> Story | None:
        details = {step.state: step.details for step in steps}
        extracted, trained = details.get(State.EXTRACTED, {}), details.get(State.TRAINED, {})
        job, adapter = (Path(each) if each else None for each in (extracted.get("job"), trained.get("adapter")))
        loop = ((details.get(State.PLANNED) or {}).get("settings") or {}).get("loop") or {}
        made = _Made(
            job=job,
            adapter=adapter,
            dropped=extracted.get("dropped"),
            base_model=str(loop.get("base") or loop.get("model") or ""),
        )
        found = self._optional(lambda: self._made(evidence, made))
        if found is None and trained:
            found = Story(
                manifest=trained.get("manifest") or {},
                result=trained.get("result") or {},
                dropped=extracted.get("dropped"),
                dropped_rows=extracted.get("dropped_rows") or {},
            )
        return found


def _made_by(job: Path) -> str:
    """Return the digest of the adapter that a job made, as its result says it or its weights show; "": neither does."""
    try:
        said = json.loads((job / "result.json").read_text(encoding="utf-8")).get("adapter_digest")
    except (ValueError, AttributeError) as error:
        raise JobError(f"{job / 'result.json'} cannot be read ({error}); train again") from error
    there = (job / "adapter" / adapters.WEIGHTS).is_file()
    return str(said or (adapters.adapter_digest(job / "adapter") if there else ""))


def round_of_file(dag: ArtifactDAG, file: Path) -> tuple[str, int] | None:
    """Return learner and number of the round whose evidence a file holds; None where ℛ knows of none."""
    with dag.reading() as connection:
        steps = rounds.read(connection)
    for step in steps:
        named = step.details.get("evidence_file") if step.state is State.MEASURED else None
        if named and Path(named).resolve() == file.resolve():
            return step.learner, step.round
    return None
