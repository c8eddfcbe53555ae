"""Several decoding loops at once, each with its own rows and its share of the cores.

One loop with all cores waits at every one of its hundreds of small parallel regions for the slowest core. When
anything else runs (guards do), that wait becomes the rule: measured on two busy cores, one loop on both was 2 to 30
times slower than on one. Two loops that share nothing but the weights do not wait for each other.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator

import torch

from guardlearn.generators.decoding import Answer, Decoder, Work

__all__ = ["computing_with", "decode", "stream_threads"]

_STREAMS = 2
"""More loops would wait for Python's lock, and each streams all weights once more."""
_ROWS_WORTH_A_STREAM = 8


def stream_threads(device: torch.device) -> int:
    """Return how many threads each loop computes with: its share of those torch was given."""
    threads = int(torch.get_num_threads())
    return threads if device.type != "cpu" else max(1, threads // _STREAMS)


@contextlib.contextmanager
def computing_with(threads: int) -> Generator[None]:
    """Give torch's operators this many threads, and put back what they had before."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def decode(decoder: Decoder, work: Work, rows: int, threads: int) -> Generator[Answer]:
    """Yield answers as they finish; closing the iterator stops all loops.

    Args:
        decoder: shared by the loops.
        work: what they take their prompts from.
        rows: most rows at once, all loops together, at least 1.
        threads: from `stream_threads`.
    """
    rows = min(rows, work.count)
    streams = min(_STREAMS, max(1, torch.get_num_threads() // threads), max(1, rows // _ROWS_WORTH_A_STREAM))
    slots = [rows // streams + (n < rows % streams) for n in range(streams)]
    ended: queue.SimpleQueue[Answer | BaseException | None] = queue.SimpleQueue()
    loops = [threading.Thread(target=_loop, args=(decoder, work, n, threads, ended), daemon=True) for n in slots]
    with computing_with(threads):  # torch keeps one default for new threads; it is put back at the end
        for loop in loops:
            loop.start()
        try:
            running = streams
            while running:
                answer = ended.get()
                if isinstance(answer, BaseException):
                    raise answer
                if answer is None:
                    running -= 1
                else:
                    yield answer
        finally:
            work.stop()
            for loop in loops:
                loop.join()


def _loop(
    decoder: Decoder, work: Work, slots: int, threads: int, ended: queue.SimpleQueue[Answer | BaseException | None]
) -> None:
    try:
        torch.set_num_threads(threads)
        for answer in decoder.run(work, slots):
            ended.put(answer)
        ended.put(None)
    except BaseException as error:  # raised again where the answers are read
        ended.put(error)
