"""Several processes that train one job together, as `accelerate launch` and `torchrun` start them.

Each holds the whole model and takes its share of every batch. Only the main one writes. Nothing here is felt where
there is one process.
"""

from __future__ import annotations

import datetime
import os
from typing import TypeVar

__all__ = ["count", "from_main", "is_main", "join", "number", "share", "wait"]

_PATIENCE = datetime.timedelta(days=1)  # what one process does alone may take long: the default is ten minutes

T = TypeVar("T")


def count() -> int:
    """Return how many processes train together; 1 where no launcher started this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1


def number() -> int:
    """Return this one's number, from 0."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def is_main() -> bool:
    """Whether this is the one that writes."""
    return number() == 0


def join() -> None:
    """Find the others, once; no process goes on before all are there."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        if torch.distributed.is_initialized():
            return
        cpu = not torch.cuda.is_available()
        if cpu:  # accelerate would name it "cpu:0", which torch reads no weights checkpoint to
            os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
        PartialState(cpu=cpu, timeout=_PATIENCE)


def wait() -> None:
    """Wait until every process is here."""
    if count() > 1:
        import torch

        join()
        torch.distributed.barrier()


def from_main(value: T) -> T:
    """Return the main process's `value`, on every one; it is pickled."""
    if count() == 1:
        return value
    import torch

    join()
    held = [value]
    torch.distributed.broadcast_object_list(held)
    return held[0]


def share(rows: int) -> tuple[int, int]:
    """Return from which row up to which this process takes of a batch: shares differ by one row at most."""
    return rows * number() // count(), rows * (number() + 1) // count()
