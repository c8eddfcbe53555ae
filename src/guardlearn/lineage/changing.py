"""Changes of what is live that a person makes, and the removal of folders nobody needs any more.

Rows stay: a promotion is appended, never taken back, and a pruned adapter's round is still told by ℛ.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from guardlearn.dag import ArtifactDAG, rounds
from guardlearn.dag.rounds import Promotion, State
from guardlearn.errors import ModelError, UsageError
from guardlearn.lineage import folders
from guardlearn.lineage.finding import find, one_learner
from guardlearn.lineage.records import AdapterRecord, records

__all__ = ["BASE", "Pruned", "promote", "prune", "roll_back"]

BASE = "base"
"""Where a rollback may go: no adapter at all."""


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one adapter's folder."""

    name: str
    folder: str
    size_bytes: int
    removed: bool
    """False: it stays, or a dry run only named it."""
    said: str
    """In words, for people."""


class _Live(NamedTuple):
    """One state of what is live."""

    adapter: str
    digest: str


_BARE = _Live("", "")


def promote(dag: ArtifactDAG, record: AdapterRecord, *, actor: str, reason: str) -> Promotion:
    """Make a decided round's adapter live by hand, whatever the gate said.

    Args:
        dag: ℛ, open for writing.
        record: what `find` returned.
        actor: who says so.
        reason: why; not empty.

    Raises:
        UsageError: no reason, a round that is still under way, an adapter of no round, or one that is live already.
        ModelError: its folder is gone or was edited by hand.
    """
    if not reason.strip():
        raise UsageError("promoting by hand needs a reason, which is stored; give --reason")
    if not record.round:
        raise UsageError(f"{record.folder} was made by no round of {dag.target}; only a round's adapter is promoted")
    if not record.decided:
        raise UsageError(f"round {record.name} is still {record.state}; let it be decided first")
    folder = folders.check(record)
    with dag.writing() as connection:
        now = rounds.live(connection, record.learner)
        if now and (now.adapter, now.adapter_digest) == (record.folder, record.digest):
            raise UsageError(f"{record.name} is live already, since {now.created_at.isoformat()}")
        if not folder.is_dir():  # pruned since it was checked
            raise ModelError(f"adapter {record.name} has just gone from {folder}; put it back")
        return rounds.promote(
            connection,
            record.learner,
            action="promote",
            adapter=record.folder,
            adapter_digest=record.digest,
            actor=actor,
            reason=reason,
        )


def roll_back(
    dag: ArtifactDAG, learner: str | None = None, *, to: str | None = None, actor: str, reason: str
) -> Promotion:
    """Go back to what was live before, or to what `to` names.

    Args:
        dag: ℛ, open for writing.
        learner: whose; None: the only one.
        to: a name for `find`, or "base"; None: what was live before, which after one rollback is what was before that.
        actor: who says so.
        reason: why; may be empty.

    Raises:
        UsageError: nothing to go back from or to, or a name that is none.
        ModelError: the folder to go back to is gone or was edited by hand.
    """
    chosen = one_learner(dag, learner)
    if chosen is None:
        raise UsageError(f"{dag.target} has no round and no promotion; there is nothing to go back from")
    with dag.reading() as connection:
        past = _stack(rounds.read_promotions(connection, chosen))
    now = past[-1] if past else _BARE
    target = _target(dag, chosen, to, past)
    if target == now:
        raise UsageError(f"{_said(target)} is live for {chosen!r} already; name another with --to")
    with dag.writing() as connection:
        found = rounds.live(connection, chosen)
        if (_Live(found.adapter, found.adapter_digest) if found else _BARE) != now:
            raise UsageError(f"what is live for {chosen!r} has just changed; look again, then run the same command")
        return rounds.promote(
            connection,
            chosen,
            action="rollback",
            adapter=target.adapter,
            adapter_digest=target.digest,
            actor=actor,
            reason=reason,
        )


def prune(
    dag: ArtifactDAG,
    learner: str | None = None,
    *,
    actor: str,
    keep: int = 0,
    promoted_too: bool = False,
    dry_run: bool = False,
) -> list[Pruned]:
    """Remove the folders of refused adapters; ℛ still tells their rounds, and a note stands where each folder was.

    Never touched: what is live for any learner, what a round under way builds on, a folder that is not as its round
    left it.

    Args:
        dag: ℛ, open for writing unless `dry_run`.
        learner: whose; None: of all.
        actor: who says so.
        keep: leave the newest so many of each learner's; at least 0.
        promoted_too: also those that were live once.
        dry_run: remove nothing.

    Raises:
        UsageError: `keep` below 0.
    """
    if keep < 0:
        raise UsageError(f"keep is {keep}; allowed: 0 or more")
    known = records(dag)
    with dag.reading() as connection:
        live = _last(rounds.read_promotions(connection))
    if not dry_run:
        for each in known:
            if each.folder:  # what a kill left of an earlier call
                shutil.rmtree(_aside(Path(each.folder)), ignore_errors=True)
    chosen = _prunable(known, {Path(each.adapter).absolute() for each in live}, learner, keep, promoted_too)
    return [_pruned(dag, record, actor, dry_run) for record in chosen]


def _prunable(
    known: Sequence[AdapterRecord], held: set[Path], learner: str | None, keep: int, promoted_too: bool
) -> list[AdapterRecord]:
    """Return those that may go, by learner and round, and whose folder is not gone already.

    Args:
        known: every record of ℛ.
        held: folders of what is live.
        learner: of this one alone; None: of all.
        keep: leave the newest so many of each learner's.
        promoted_too: also those that were live once.
    """
    under_way = [each for each in known if not each.decided]
    needed = {digest for each in under_way for digest in (each.parent, each.incumbent) if digest}
    promoted = {_place(each) for each in known if each.promotions or each.state == State.PROMOTED}
    found: dict[str, list[AdapterRecord]] = {}
    for each in known:
        if not each.decided or not each.folder or not Path(each.folder).is_dir() or each.digest in needed:
            continue
        if _place(each) in held or (_place(each) in promoted and not promoted_too):
            continue
        found.setdefault(each.learner, []).append(each)
    return [each for name, own in sorted(found.items()) if learner in (None, name) for each in own[: len(own) - keep]]


def _pruned(dag: ArtifactDAG, record: AdapterRecord, actor: str, dry_run: bool) -> Pruned:
    folder = Path(record.folder)
    size = sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())

    def told(said: str, removed: bool = False) -> Pruned:
        return Pruned(name=record.name, folder=record.folder, size_bytes=size, removed=removed, said=said)

    found = folders.presence(record)
    if found.state != "there" or folder.is_symlink():
        said = "a link" if folder.is_symlink() else found.said
        return told(f"left alone, {said}")
    if dry_run:
        return told("would be removed")
    note = {"digest": record.digest, "actor": actor, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    aside = _aside(folder)
    with dag.writing() as connection:  # nobody can promote it meanwhile
        if _named_live(rounds.read_promotions(connection), record):
            return told("left alone, it has just been promoted")
        folders.pruned_note(record).write_text(json.dumps(note) + "\n", encoding="utf-8")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    shutil.rmtree(aside)
    return told("removed", removed=True)


def _named_live(promotions: Sequence[Promotion], record: AdapterRecord) -> bool:
    return any((each.adapter, each.adapter_digest) == (record.folder, record.digest) for each in _last(promotions))


def _last(promotions: Sequence[Promotion]) -> list[Promotion]:
    """Return what is live, an adapter each; learners whose bare base is live are left out."""
    last = {each.learner: each for each in promotions}
    return [each for each in last.values() if each.adapter_digest]


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.pruned")


def _target(dag: ArtifactDAG, learner: str, to: str | None, past: Sequence[_Live]) -> _Live:
    """Return what to go back to, its folder checked.

    Raises:
        UsageError: nothing before, or a name that is none or another learner's.
        ModelError: the folder is gone or was edited by hand.
    """
    if to == BASE:
        return _BARE
    if to is None:
        if not past:
            raise UsageError(f"the bare base is live for {learner!r}; there is nothing to go back from")
        before = past[-2] if len(past) > 1 else _BARE
        if before == _BARE:
            return _BARE
        folders.check(_record_of(records(dag, learner), before, learner))
        return before
    record = find(dag, to, learner)
    if record.learner != learner:
        raise UsageError(f"{to!r} is no round's adapter of learner {learner!r}; name one of its rounds, or base")
    folders.check(record)
    return _Live(record.folder, record.digest)


def _record_of(known: Sequence[AdapterRecord], live: _Live, learner: str) -> AdapterRecord:
    made = next((each for each in known if (each.folder, each.digest) == live), None)
    return made or AdapterRecord(learner=learner, round=0, state="", folder=live.adapter, digest=live.digest)


def _stack(promotions: Sequence[Promotion]) -> list[_Live]:
    """Return what is live, last, after what was live before it: a rollback takes away what it went back over."""
    past: list[_Live] = []
    for each in promotions:
        live = _Live(each.adapter, each.adapter_digest)
        if each.action == "rollback" and (live == _BARE or live in past):
            while past and past[-1] != live:
                past.pop()
        else:
            past.append(live)
    return past


def _said(live: _Live) -> str:
    return f"the adapter in {live.adapter}" if live.digest else "the bare base"


def _place(record: AdapterRecord) -> Path:
    return Path(record.folder).absolute()
