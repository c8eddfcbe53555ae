"""Linear layers as a CPU decodes fastest: weights kept in the layout its matrix units read.

Decoding streams every weight once a step. In bfloat16 on a CPU, torch rearranges a plain weight at every call, which
doubles and triples that traffic; oneDNN can keep it arranged (measured on two cores: a fifth off a step's time).
The operators are those torch's own compiler emits; where they are missing, layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

__all__ = ["pack_linears", "repack"]

_MOST_BYTES = 2 << 30
"""Weights beyond this stay plain: a second copy of them is no longer small change."""


class _PackedLinear(torch.nn.Linear):  # type: ignore[misc]  # torch is untyped to mypy here
    """A linear layer that multiplies with `packed`, a rearranged copy of its weight."""

    packed: torch.Tensor

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return input W^T + b."""
        return _multiply(input, self.packed, self.bias)


def pack_linears(model: Any) -> None:
    """Rearrange the bfloat16 linear layers of a model that lies on a CPU; for inference only."""
    linears = [module for module in model.modules() if type(module) is torch.nn.Linear]
    fit = all(layer.weight.dtype == torch.bfloat16 and layer.weight.device.type == "cpu" for layer in linears)
    if not fit or sum(layer.weight.nbytes for layer in linears) > _MOST_BYTES or not _available():
        return
    for layer in linears:
        layer.__class__ = _PackedLinear
    repack(linears)


def repack(modules: Iterable[Any]) -> None:
    """Rearrange those of `modules` that `pack_linears` has taken over, after their weights changed."""
    for module in modules:
        if isinstance(module, _PackedLinear):
            module.packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())


def _multiply(input: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, packed, bias, "none", [], "")


def _available() -> bool:
    """Whether the operators exist here and give what torch's own layer gives."""
    weight = torch.linspace(-1, 1, 32 * 32).reshape(32, 32).to(torch.bfloat16)
    try:
        product = _multiply(weight, torch.ops.mkldnn._reorder_linear_weight(weight), None)
    except (AttributeError, RuntimeError, TypeError):  # another torch, or one built without oneDNN
        return False
    return bool(torch.allclose(product.float(), torch.nn.functional.linear(weight, weight).float(), atol=0.05))
