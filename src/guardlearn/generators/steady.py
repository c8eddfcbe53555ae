"""Row counts at which a row's numbers do not depend on its neighbours.

Matrix libraries choose their kernels by size, and kernels add in different orders: the same row can come out a bit
apart in a batch of 5 and of 96, and in bfloat16 that bit can become another token. Measured on the demo's model, every
fifth answer changed with the batch size. So each layer is probed once for the sizes that agree with the largest one,
whatever the number of threads, and passes are padded to such sizes. Attention needs no more than whole vectors
(`cache`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

__all__ = ["SteadySizes"]

_STEP_SIZES = (16, 32, 48, 64, 96, 128)
"""Tried for decoding steps and for the vocabulary matrix."""
_PROMPT_SIZES = (128, 192, 256, 384, 512)
"""Tried for passes over prompts."""


class SteadySizes:
    """What to pad passes to, for one model on one machine."""

    def __init__(self, model: Any, threads: Sequence[int]) -> None:
        """Probe `model` with each of these numbers of threads.

        Only bfloat16 and float16 on a CPU need it; float32 leaves no near-ties worth padding for.
        """
        self.step: tuple[int, ...] = ()
        """Sizes of a decoding step, ascending; () where nothing is to be padded."""
        self.prompt: tuple[int, ...] = ()
        """Sizes of a pass over prompts, ascending."""
        if model.device.type != "cpu" or model.dtype == torch.float32:
            return
        head = model.get_output_embeddings()
        layers = {
            tuple(module.weight.shape): module
            for module in model.modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
        before = torch.get_num_threads()
        try:
            with torch.inference_mode():
                self.step = _agreeing([*layers.values(), head], _STEP_SIZES, threads)
                self.prompt = _agreeing(list(layers.values()), _PROMPT_SIZES, threads)
        finally:
            torch.set_num_threads(before)

    @staticmethod
    def padded(count: int, sizes: Sequence[int]) -> int:
        """Return the size to pad `count` rows to: the next of `sizes`, or whole multiples of the largest."""
        if not sizes:
            return count
        return next((size for size in sizes if size >= count), -(-count // sizes[-1]) * sizes[-1])


def _agreeing(layers: Sequence[Any], sizes: Sequence[int], threads: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes at which every layer gives every row what it gives at the largest, wherever the row stands.

    Another order of adding shows in one of several thousand results, so whole passes of noise are compared.
    """
    agreeing = set(sizes)
    for layer in layers:
        noise = torch.Generator().manual_seed(0)
        rows = torch.randn(sizes[-1], layer.in_features, generator=noise).to(layer.weight.dtype)
        torch.set_num_threads(threads[0])
        expected = layer(rows[None])[0]
        if not torch.equal(layer(rows.flip(0)[None])[0].flip(0), expected):
            return ()  # a row's place matters: no size is steady
        for count in threads:
            torch.set_num_threads(count)
            for size in tuple(agreeing):
                parts = slice(None, size), slice(-size, None)
                if not all(torch.equal(layer(rows[None, part])[0], expected[part]) for part in parts):
                    agreeing.discard(size)
    return tuple(sorted(agreeing))
