"""Chat logs in OpenAI's message form into ℛ: JSON Lines of conversations with a verdict.

A log of calls repeats the conversation so far on every line, so an attempt is known by what was said up to it: it is
one item, however many lines show it. The file is read twice, as in `log`: first every line is checked and what it says
of each attempt is kept in an index; then each attempt is taken from the line that says most about it.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from guardlearn.dag import imports
from guardlearn.dag.importers.chat_line import CHAT_KEYS, ChatLine, Stated, read_line
from guardlearn.dag.importers.conversation import Turn, holds_messages
from guardlearn.dag.importers.fields import MISSING
from guardlearn.dag.importers.intake import Intake, store_all
from guardlearn.dag.importers.lines import open_log, raw_lines, read_again, read_record
from guardlearn.dag.importers.mapping import check_mapping, find, parse_pairs
from guardlearn.dag.importers.protocol import Given, ImportedItem, ImportFault
from guardlearn.dag.imports import ImportReport
from guardlearn.dag.rows import storable
from guardlearn.digests import digest_json, digest_text
from guardlearn.errors import LogError
from guardlearn.types import ArtifactStatus, FeedbackEntry, OnProgress, RepositoryItem

if TYPE_CHECKING:
    from guardlearn.dag.store import ArtifactDAG

__all__ = ["import_chat", "is_chat", "read_chat"]

_NONE, _IMPLIED, _STATED = range(3)
"""How much a line says of an attempt's verdict."""


def import_chat(
    dag: ArtifactDAG,
    path: str | os.PathLike[str],
    mapping: Mapping[str, str] | str = "",
    on_progress: OnProgress | None = None,
    *,
    workflows: Collection[str] | None = None,
) -> ImportReport:
    """Append the attempts of a chat log to ℛ: all that are new or have a new verdict, in one transaction, or none.

    A line that cannot be read is named by its number, all others are taken.

    Args:
        dag: ℛ, open for writing.
        path: UTF-8, one JSON object with `messages` a line; it may grow meanwhile.
        mapping: any of CHAT_KEYS → field of the log, as in `log.read_log`; or its text, "accepted=reward>=0.5".
        on_progress: called with (bytes read, bytes, "reading"), then (attempts, attempts, "storing").
        workflows: see `intake.import_items`.

    Raises:
        UsageError: the mapping has an unknown key.
        LogError: it cannot be read, or no line holds an attempt.
        RepositoryError: ℛ cannot be written.
    """
    with open_log(path) as file:
        log = _Log(file, Path(path).name, _mapping(mapping), on_progress)
        log.known = dag.known_ids(key.hex() for key in log.claims)
        with dag.writing() as connection:
            intake = Intake(connection, "chat import", workflows=workflows)
            store_all(intake, log.given(), on_progress, len(log.claims))
            report = intake.report()
            imports.record(connection, os.fspath(path), report)
    return report


def read_chat(path: str | os.PathLike[str], mapping: Mapping[str, str] | str = "") -> Iterator[Given]:
    """Yield what a chat log holds, earlier attempts first; see `import_chat`."""
    with open_log(path) as file:
        yield from _Log(file, Path(path).name, _mapping(mapping), None).given()


def is_chat(path: str | os.PathLike[str]) -> bool:
    """Whether the first line of a file that is not blank holds messages.

    Raises:
        LogError: it cannot be read.
    """
    with open_log(path) as file:
        first = next(raw_lines(file), None)
        try:
            return first is not None and holds_messages(read_record(first, ""))
        except LogError:
            return False


def _mapping(given: Mapping[str, str] | str) -> Mapping[str, str]:
    mapping = parse_pairs(given) if isinstance(given, str) else given
    check_mapping(mapping, (), CHAT_KEYS)
    return mapping


@dataclass(slots=True)
class _Claim:
    """What is known of one attempt after the first reading."""

    first: int
    """The line that shows it first."""
    best: int
    """The line that says most of its verdict."""
    rank: int
    status: ArtifactStatus
    said: bytes = b""
    """Digest of the feedback that the best line states; b"" for none."""
    followed: int = 0
    """The first line that shows what was said after it."""
    heard: bytes = b""
    """Digest of that."""
    taken: bool = False

    @property
    def feedback(self) -> bytes:
        """Digest of the feedback it is stored with."""
        return self.said or (self.heard if self.status is ArtifactStatus.REJECTED else b"")


class _Shown(NamedTuple):
    """An attempt as one line shows it."""

    key: bytes
    turn: Turn
    stated: Stated
    before: list[tuple[bytes, Turn]]
    """The attempts before it, with their keys, oldest first."""
    final: bool
    """Whether the line is about it."""


class _Log:
    """A chat log after its first reading."""

    def __init__(self, file: BinaryIO, name: str, mapping: Mapping[str, str], on_progress: OnProgress | None) -> None:
        self.claims: dict[bytes, _Claim] = {}
        """By the attempt's key: a digest of all that was said up to it."""
        self.known: set[str] = set()
        """Ids that ℛ holds already."""
        self._file, self._name, self._mapping = file, name, mapping
        self._offsets, self._lengths = array("Q", [0]), array("Q", [0])  # by line number
        self._faults: list[ImportFault] = []
        self._repeats: Counter[bytes] = Counter()
        self._again: dict[int, list[bytes]] = {}
        """Keys of the attempts that a line is about, where an earlier line gave a verdict on the same words."""
        self._index(on_progress)

    def given(self) -> Iterator[Given]:
        """Yield every fault and every attempt."""
        yield from self._faults
        now = datetime.now(UTC)
        for number in sorted({claim.first for claim in self.claims.values()}):
            line = self._line(number)
            for shown in self._shown(line, number):
                claim = self.claims.get(shown.key)
                if claim is None:
                    raise self._changed(number)
                if claim.first == number and not claim.taken:
                    claim.taken = True
                    best = (line, shown) if claim.best == number else self._find(shown.key, claim.best)
                    yield self._item(*best, claim, now)

    def _index(self, on_progress: OnProgress | None) -> None:
        used: set[str] = set()
        score, stated = "", False
        for raw in raw_lines(self._file, on_progress):
            place = f"{self._name} line {raw.number}"
            missing = raw.number + 1 - len(self._offsets)
            self._offsets.extend([raw.offset] * missing)
            self._lengths.extend([len(raw.body)] * missing)
            try:
                record = read_record(raw, self._name)
                used.update(key for key, path in self._mapping.items() if find(record, key, path) is not MISSING)
                line = read_line(record, self._mapping)
            except (LogError, ValueError) as error:
                self._faults.append(ImportFault(place=place, reason=str(error).removeprefix(f"{place}: ")))
                continue
            score = score or line.score
            stated |= self._claim(line, raw.number)
            said = [*line.faults, *(each.fault for each in (*line.stated, *line.alternatives) if each.fault)]
            self._faults += [ImportFault(place=place, reason=each, skipped=False) for each in dict.fromkeys(said)]
        self._must_hold(used | {"feedback"} | ({"accepted"} if stated else set()))
        if not stated:
            field = f"{score}>=0.5" if score else "FIELD"
            reason = f"no line states a verdict; name its field, as in accepted={field}"
            self._faults.append(ImportFault(place=self._name, reason=reason, skipped=False))

    def _must_hold(self, used: set[str]) -> None:
        if not self.claims:
            first = f"; {self._faults[0].place}: {self._faults[0].reason}" if self._faults else ""
            raise LogError(f"{self._name} holds no attempt; give JSON Lines with messages on each line{first}")
        for key in self._mapping.keys() - used:
            field = self._mapping[key]
            raise LogError(f"{self._name}: no line has the field {field!r} (for {key}); leave {key} out or correct it")

    def _claim(self, line: ChatLine, number: int) -> bool:
        """Note what a line says of each attempt; returns whether it states a verdict."""
        every = self._shown(line, number)
        keys = [self._repeated(shown) for shown in every if shown.final]
        if keys != [shown.key for shown in every if shown.final]:
            self._again[number] = keys
            every = self._shown(line, number)
        for key, turn, stated, *_ in every:
            implied = turn.followed and turn.message.get("weight") != 1
            rank = _STATED if stated.status is not None else _IMPLIED if implied else _NONE
            status = stated.status or (ArtifactStatus.REJECTED if implied else ArtifactStatus.PENDING)
            claim = self.claims.get(key)
            if claim is None:
                claim = self.claims[key] = _Claim(first=number, best=number, rank=-1, status=status)
            if rank > claim.rank:
                claim.best, claim.rank, claim.status, claim.said = number, rank, status, _digest(stated.feedback)
            if turn.followed and not claim.followed:
                claim.followed, claim.heard = number, _digest(turn.feedback)
        return any(shown.stated.status is not None for shown in every)

    def _repeated(self, shown: _Shown) -> bytes:
        """Return an attempt's key: lines that state a verdict on the same words are about attempts of their own."""
        if shown.stated.status is None:
            return shown.key
        self._repeats[shown.key] += 1
        again = self._repeats[shown.key]
        return shown.key if again == 1 else _key(shown.key.hex(), again)

    def _shown(self, line: ChatLine, number: int) -> list[_Shown]:
        """Return the attempts of a line, oldest first."""
        talk = line.conversation
        running = _key(line.chain, digest_text(talk.constraints), digest_text(talk.specification))
        before: list[tuple[bytes, Turn]] = []
        shown = []
        for turn, stated in zip(talk.turns[:-1], line.stated, strict=False):
            key = _key(running.hex(), digest_text(turn.artifact))
            shown.append(_Shown(key, turn, stated, list(before), False))
            before.append((key, turn))
            running = _key(key.hex(), digest_text(turn.feedback))
        several = len(talk.alternatives) > 1
        last = (
            zip(talk.alternatives, line.alternatives, strict=True) if several else [(talk.turns[-1], line.stated[-1])]
        )
        finals = [
            _Shown(_key(running.hex(), digest_text(turn.artifact)), turn, stated, before, True) for turn, stated in last
        ]
        again = self._again.get(number)
        if again:
            finals = [each._replace(key=key) for each, key in zip(finals, again, strict=True)]
        return [*shown, *finals]

    def _line(self, number: int) -> ChatLine:
        place = (number, self._offsets[number], self._lengths[number])
        try:
            return read_line(read_again(self._file, self._name, *place), self._mapping)
        except ValueError:
            raise self._changed(number) from None

    def _find(self, key: bytes, number: int) -> tuple[ChatLine, _Shown]:
        line = self._line(number)
        found = next((shown for shown in self._shown(line, number) if shown.key == key), None)
        if found is None:
            raise self._changed(number)
        return line, found

    def _changed(self, number: int) -> LogError:
        return LogError(f"{self._name} line {number}: it changed while it was read; import again", number)

    def _item(self, line: ChatLine, shown: _Shown, claim: _Claim, now: datetime) -> ImportedItem:
        """Return an attempt as the line shows it that says most of its verdict."""
        feedback = shown.stated.feedback
        if not feedback and claim.feedback:
            heard = shown.turn.feedback  # the line that says most may be another than the first that shows an answer
            same = _digest(heard) == claim.feedback
            feedback = heard if same else self._find(shown.key, claim.followed)[1].turn.feedback
        talk = line.conversation
        latest = line.time or now + timedelta(microseconds=claim.best)  # keeps the file's order
        item = RepositoryItem(
            **line.item,
            id=shown.key.hex(),
            parent_id=shown.before[-1][0].hex() if shown.before else None,
            artifact=shown.turn.artifact,
            specification=talk.specification,
            constraints=talk.constraints,
            status=claim.status,
            fatal=shown.stated.fatal,
            feedback=feedback,
            # an earlier turn's time is not known, only that it came before
            created_at=latest - timedelta(microseconds=0 if shown.final else len(talk.turns) - len(shown.before)),
            seen_history=self._seen(shown),
            metadata={**line.metadata, "log": self._name, "line": claim.best, "chain": line.chain},
        )
        odd = [
            name
            for name in ("artifact", "feedback", "specification", "constraints")
            if not storable(getattr(item, name))
        ]
        faults = [f"its {', '.join(odd)} holds NUL or lone surrogates: kept as it is, but no trace is made of it"]
        empty = [] if item.artifact.strip() else [f"its answer is empty (line {claim.best})"]
        return ImportedItem(
            item=item,
            faults=tuple((faults if odd else []) + empty),
            unknown=() if line.time and shown.final else ("time",),
            exclude=self._exclusion(shown, claim),
            implied=claim.rank == _IMPLIED,
        )

    def _exclusion(self, shown: _Shown, claim: _Claim) -> str:
        if shown.turn.exclude:
            return shown.turn.exclude
        if shown.turn.message.get("weight") == 0 and claim.status is not ArtifactStatus.REJECTED:
            return "the log gives it weight 0"
        accepted = any(self.claims[key].status is ArtifactStatus.ACCEPTED for key, _ in shown.before)
        return "it goes on from an accepted answer: not Ψ was asked" if accepted else ""

    def _seen(self, shown: _Shown) -> tuple[FeedbackEntry, ...] | None:
        """Return what the generator was shown, where the chain in ℛ would say otherwise."""
        for key, turn in shown.before:
            claim = self.claims[key]
            same = claim.status is ArtifactStatus.REJECTED and claim.feedback == _digest(turn.feedback)
            if not same or key.hex() in self.known:  # what ℛ holds may have had no feedback yet
                break
        else:
            return None
        return tuple(
            FeedbackEntry(artifact=turn.artifact, feedback=turn.feedback, item_id=key.hex())
            for key, turn in shown.before
        )


def _key(*parts: object) -> bytes:
    return bytes.fromhex(digest_json(list(parts))[:32])


def _digest(text: str) -> bytes:
    return bytes.fromhex(digest_text(text)[:32]) if text else b""
