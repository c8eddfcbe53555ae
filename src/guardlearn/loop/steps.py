"""One progress display over several steps of known sizes."""

from __future__ import annotations

from guardlearn.types import OnProgress

__all__ = ["Steps"]


class Steps:
    """One progress over steps of known sizes, some of which may turn out shorter."""

    def __init__(self, on_progress: OnProgress | None, **sizes: int) -> None:
        self._report, self._sizes = on_progress, sizes

    def of(self, step: str, begin: int = 0, size: int | None = None) -> OnProgress | None:
        """Return what takes the progress of a step, or of the part of it that begins at `begin`."""
        if self._report is None:
            return None
        report, total = self._report, sum(self._sizes.values())
        names = list(self._sizes)
        offset = begin + sum(self._sizes[name] for name in names[: names.index(step)])
        room = self._sizes[step] if size is None else size

        def scaled(done: int, of: int, note: str) -> None:
            report(offset + (room * done // of if of else room), total, note)

        return scaled
