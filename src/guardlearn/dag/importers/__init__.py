"""Readers of what others stored; what opens a folder of theirs as ℛ is loaded where one is opened."""

from __future__ import annotations

import os
from pathlib import Path

from guardlearn.types import OnProgress

__all__ = ["by_way_of"]


def by_way_of(
    target: str | os.PathLike[str], read_only: bool, on_progress: OnProgress | None = None
) -> tuple[str | os.PathLike[str], bool]:
    """Return what to open for `target`, and whether to refuse appends: a folder's side file, anything else itself.

    Raises:
        RepositoryError: a folder holds no AtomicGuard store, or the cache takes no file.
    """
    if not Path(target).is_dir():
        return target, read_only
    from guardlearn.dag.importers.atomicguard_folder import side_file

    return side_file(target, on_progress), True
