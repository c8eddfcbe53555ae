"""AtomicGuard's side: its own extraction of refinements from one of its stores; run by an interpreter that has it.

python benchmarks/atomicguard_side.py version | extract STORE | again STORE

Its predicate walks each chain, so the history is in memory afterwards; joining artifacts to it is not asked of it.
"""

from __future__ import annotations

import platform
import sys
import time
from importlib import metadata

from measuring import Meter, report

_STARTED = time.perf_counter()

from atomicguard.domain.extraction import RefinementPredicate, extract  # noqa: E402
from atomicguard.infrastructure.persistence.filesystem import FilesystemArtifactDAG  # noqa: E402

_IMPORTED = time.perf_counter()


def main() -> None:
    case, *store = sys.argv[1:]
    if case == "version":
        report(version=metadata.version("atomicguard"), python=platform.python_version())
        return
    with Meter() as meter:
        dag = FilesystemArtifactDAG(store[0])
        found = len(extract(dag, RefinementPredicate(dag)))
    if case == "again":  # everything is in its memory now
        with Meter() as meter:
            found = len(extract(dag, RefinementPredicate(dag)))
    report(**meter.result(), found=found, import_seconds=round(_IMPORTED - _STARTED, 4))


if __name__ == "__main__":
    main()
