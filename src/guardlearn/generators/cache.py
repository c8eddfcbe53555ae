"""Keys and values of all rows being decoded, and the attention that reads them in place.

A forward pass takes the new tokens of many rows in one flat sequence, without padding: the model's linear layers see
one dense matrix, and `attend`, registered as an attention implementation of transformers, writes the new keys and
values to their rows and lets each token see its own row. Rows are the slots 0..n-1 of preallocated tensors; when rows
finish, the last ones move into their slots, so the rows in use stay one view and nothing is copied at a step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from guardlearn.errors import ModelError

__all__ = ["ATTENTION", "RowCache", "Step", "register_attention"]

ATTENTION = "guardlearn_rows"
"""Name of the attention implementation a model must be loaded with."""

_UNSUPPORTED = ("softcap", "s_aux")
"""What some models ask of their attention beyond the standard; honouring it silently wrong would be worse."""


@dataclasses.dataclass(frozen=True)
class Step:
    """Which tokens of which rows one forward pass takes; T tokens in all, of `rows` neighbouring slots."""

    first: int
    """First slot."""
    rows: int
    slots_T: torch.Tensor
    positions_T: torch.Tensor
    columns_T: torch.Tensor
    """Each token's place among its row's tokens of this pass."""
    width: int
    """Most tokens a row has in this pass; 1 when decoding."""
    visible: int
    """Positions the pass looks at: the highest one plus 1, rounded up to whole vectors."""

    @classmethod
    def of(cls, pieces: Sequence[tuple[int, int, int]], device: torch.device) -> Step:
        """Lay out (slot, start, stop) pieces: positions start..stop-1 of neighbouring slots, in order."""
        slots = [slot for slot, start, stop in pieces for _ in range(start, stop)]
        positions = [position for _, start, stop in pieces for position in range(start, stop)]
        columns = [column for _, start, stop in pieces for column in range(stop - start)]
        table = torch.tensor([slots, positions, columns], device=device)
        return cls(
            first=pieces[0][0],
            rows=len(pieces),
            slots_T=table[0],
            positions_T=table[1],
            columns_T=table[2],
            width=max(stop - start for _, start, stop in pieces),
            visible=_whole_vectors(max(stop for _, _, stop in pieces)),
        )

    @cached_property
    def places(self) -> torch.Tensor:
        """Position of each query, int64 (rows, width); padding queries stand at position 0."""
        places = self.positions_T.new_zeros((self.rows, self.width))
        places[self.slots_T - self.first, self.columns_T] = self.positions_T
        return places

    @cached_property
    def _masks(self) -> dict[Any, torch.Tensor]:
        return {}

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor:
        """Return what is added to the scores, (rows, 1, width, visible): 0 where a query may look, else -inf."""
        if (window, dtype) not in self._masks:
            keys = torch.arange(self.visible, device=self.places.device)
            distance = self.places[:, :, None] - keys
            seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
            self._masks[window, dtype] = mask[:, None]
        return self._masks[window, dtype]


class RowCache:
    """Keys and values by layer, each (slots, heads, capacity, head size), made when a layer first writes."""

    def __init__(self, slots: int, capacity: int) -> None:
        """Make room for `slots` rows of at most `capacity` tokens."""
        self.slots, self.capacity = slots, _whole_vectors(capacity)
        self.step: Step | None = None
        """The forward pass under way."""
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def layers(self) -> int:
        """Layers that have written so far."""
        return len(self._layers)

    def write(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the pass's new keys and values, each (1, heads, T, size); return its rows' visible ones as views."""
        step = self.step
        assert step is not None  # set by whoever runs the forward pass
        if layer not in self._layers:
            self._layers[layer] = self._empty(key), self._empty(value)
        views = []
        for stored, new in zip(self._layers[layer], (key, value), strict=True):
            stored[step.slots_T, :, step.positions_T] = new[0].transpose(0, 1)
            views.append(stored[step.first : step.first + step.rows, :, : step.visible])
        return views[0], views[1]

    def copy(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` positions of rows to other rows; no row is both source and target."""
        with torch.inference_mode():  # the tensors were made in it
            for stored in (tensor for pair in self._layers.values() for tensor in pair):
                source = torch.tensor(sources, device=stored.device)
                stored[torch.tensor(targets, device=stored.device), :, :length] = stored[source, :, :length]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        # zeros, not garbage: masked positions are still multiplied, and 0 x NaN is NaN
        return like.new_zeros((self.slots, like.shape[1], self.capacity, like.shape[3]))


def _whole_vectors(length: int) -> int:
    """Round up to what a CPU's vector unit takes at once: sums then come out the same for any number of neighbours."""
    return -(-length // 32) * 32


def register_attention() -> None:
    """Make `attend` known to transformers under the name `ATTENTION`; may be called again."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, attend)


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    row_cache: RowCache | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend within each row; the signature is what transformers calls attention implementations with.

    Args:
        module: the attention layer; its `layer_idx` names the cache's layer.
        query: (1, query heads, T, size); T may exceed the step's tokens by padding at the end.
        key: (1, key heads, T, size); `value` likewise.
        attention_mask: unused, the step decides what is seen.
        scaling: factor of the scores; None: 1 / sqrt(size).
        row_cache: handed through the model's forward.
        sliding_window: how many positions back a query sees, itself included; None: all.
        options: anything else the model asks for.

    Returns:
        (1, T, query heads, size), and no attention weights.

    Raises:
        ModelError: the model's attention needs something this one does not have.
    """
    asked = [name for name in _UNSUPPORTED if options.get(name) is not None]
    if row_cache is None or row_cache.step is None or asked:
        reason = f"its attention uses {asked[0]}" if asked else "it does not hand the row cache to its attention"
        raise ModelError(f"{type(module).__name__} cannot be decoded in rows: {reason}; use another model")
    step = row_cache.step
    count, taken = len(step.slots_T), query.shape[2]  # what is taken beyond the step's tokens is padding
    keys, values = row_cache.write(module.layer_idx, key[:, :, :count], value[:, :, :count])
    new_TQD = query[0, :, :count].transpose(0, 1)
    if step.width == 1:
        queries = new_TQD.unsqueeze(2)
    else:
        padded = new_TQD.new_zeros((step.rows, step.width, *new_TQD.shape[1:]))
        padded[step.slots_T - step.first, step.columns_T] = new_TQD
        queries = padded.transpose(1, 2)
    mask = step.mask(sliding_window, query.dtype)
    seen = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    flat_TQD = seen.squeeze(2) if step.width == 1 else seen.transpose(1, 2)[step.slots_T - step.first, step.columns_T]
    if taken > count:
        flat_TQD = torch.nn.functional.pad(flat_TQD, (0, 0, 0, 0, 0, taken - count))
    return flat_TQD.unsqueeze(0), None
