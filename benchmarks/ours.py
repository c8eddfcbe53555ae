"""Our side of each comparison; one process measures one case.

python benchmarks/ours.py CASE PATH [TARGET]
"""

from __future__ import annotations

import itertools
import resource
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

_STARTED = time.perf_counter()

from bare import CHUNK  # noqa: E402 - the clock runs before anything is imported
from measuring import Meter, report  # noqa: E402
from stores import attempts  # noqa: E402

from guardlearn import ArtifactDAG, RepositoryItem, export_items, refinement  # noqa: E402
from guardlearn.types import ArtifactStatus  # noqa: E402

_IMPORTED = time.perf_counter()


def main() -> None:
    case, path, *target = sys.argv[1:]
    report(**CASES[case](path, *target), import_seconds=round(_IMPORTED - _STARTED, 4))


def count(path: str) -> dict[str, Any]:
    return _reading(path, lambda dag: dag.count(refinement()))


def ids(path: str) -> dict[str, Any]:
    return _reading(path, lambda dag: sum(1 for _ in dag.ids(refinement())))


def extract(path: str) -> dict[str, Any]:
    entries = 0

    def work(dag: ArtifactDAG) -> int:
        nonlocal entries
        found = entries = 0
        for item in dag.extract(refinement()):
            found += 1
            entries += len(item.history)
        return found

    return _reading(path, work) | {"entries": entries}


def extract_once(path: str) -> dict[str, Any]:
    """What a user's script does: open (a file, or a folder of AtomicGuard stores), extract once, end."""
    with Meter() as meter, ArtifactDAG.load(path) as dag:
        entries = [len(item.history) for item in dag.extract(refinement())]
    return meter.result() | {"found": len(entries), "entries": sum(entries)}


def append(size: str, target: str) -> dict[str, Any]:
    """Append the attempts of a store, made here, a transaction a chunk; what the first one loads is timed by itself."""
    meter, made, loading = Meter(), attempts(int(size)), Meter()
    with ArtifactDAG.create(target) as dag:
        with loading:
            dag.append(_item(next(made)))
        while chunk := [_item(value) for value in itertools.islice(made, CHUNK)]:
            with meter:
                dag.append_many(chunk)
        found = dag.count()
    return meter.result() | {"found": found, "first_append_seconds": loading.result()["seconds"]}


def _item(value: dict[str, Any]) -> RepositoryItem:
    """Return one of AtomicGuard's objects as an agent of ours would have recorded it."""
    return RepositoryItem(
        id=value["artifact_id"],
        parent_id=value["previous_attempt_id"],
        artifact=value["content"],
        specification=value["context"]["specification"],
        constraints=value["context"]["constraints"],
        action_pair_id=value["action_pair_id"],
        workflow_id=value["workflow_id"],
        status=ArtifactStatus(value["status"]),
        feedback=value["guard_result"]["feedback"],
        guard=value["guard_result"]["guard_name"],
        created_at=datetime.fromisoformat(value["created_at"]),
        metadata=value["metadata"],
    )


def empty(path: str) -> dict[str, Any]:
    """Make an empty repository, for the bare loop to fill."""
    with ArtifactDAG.create(path) as dag:
        return {"found": dag.count()}


def import_folder(store: str, target: str) -> dict[str, Any]:
    from guardlearn.dag.importers.atomicguard import import_atomicguard

    with ArtifactDAG.create(target) as dag, Meter() as meter:
        read = import_atomicguard(dag, store).read
    helper = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # 0 where none was started
    return meter.result() | {"found": read, "largest_helper_mib": round(helper / 1024, 1)}


def export_lines(path: str, target: str) -> dict[str, Any]:
    with ArtifactDAG.load(path, read_only=True) as dag, Meter() as meter:
        written = export_items(dag, target).items
    return meter.result() | {"found": written}


def import_lines(path: str, target: str) -> dict[str, Any]:
    from guardlearn import import_repository

    with ArtifactDAG.create(target) as dag, Meter() as meter:
        read = import_repository(dag, path).new
    return meter.result() | {"found": read}


def _reading(path: str, work: Callable[[ArtifactDAG], int]) -> dict[str, Any]:
    started = time.perf_counter()
    with ArtifactDAG.load(path, read_only=True) as dag:
        opened = time.perf_counter() - started
        with Meter() as first:
            found = work(dag)
        with Meter() as again:
            work(dag)
    return first.result() | {"again": again.result(), "found": found, "open_seconds": round(opened, 4)}


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    case.__name__: case
    for case in (
        *(count, ids, extract, extract_once, append, empty, import_folder),
        *(export_lines, import_lines),
    )
}


if __name__ == "__main__":
    main()
