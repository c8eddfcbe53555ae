"""How near training comes to what this machine can do: its measured matrix product, and what a step has to multiply.

A share of the ceiling says what a rate of tokens cannot: whether another machine, or another model, is used as well.
It is the model FLOPs utilisation of Chowdhery et al. 2022 (PaLM, appendix B), for LoRA and with a ceiling that is
measured where the training runs instead of taken from a data sheet. Only needed work counts: nothing for padding,
for what gradient checkpointing computes twice, or for the half of the attention that a causal mask hides. Rows count
whole, although what a batch's rows begin with is computed once (`sharing`): with a long system message a share may
exceed 1.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from guardlearn.errors import UsageError

__all__ = ["Costs", "Meter", "Speed", "matmul_ceiling", "step_flops"]

_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_SIZES = (256, 512, 1024, 2048, 4096, 8192)
"""Of squares; the first that keeps the unit busy for `_FILLED` is measured."""
_FILLED = 0.01
"""Seconds of one product beside which starting it is nothing."""
_SECONDS = 0.5
"""Of measuring."""
_LEAST, _MOST = 3, 50
"""Products measured."""


def matmul_ceiling(precision: str = "fp32", device: Any = None) -> float:
    """Return the floating point operations a second of a large matrix product here; measured once a process.

    The median of several `torch.matmul` of random squares, with the threads that torch uses now. What the machine has
    to do meanwhile lowers it as it lowers the training's own speed.

    Args:
        precision: "fp32", "bf16" or "fp16".
        device: a torch device or its name; None: the GPU if there is one, else the CPU.

    Raises:
        UsageError: no such precision.
    """
    import torch

    if precision not in _PRECISIONS:
        raise UsageError(f"precision is {precision!r}; allowed: {', '.join(_PRECISIONS)}")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return _measured(precision, str(place), torch.get_num_threads())


@functools.cache
def _measured(precision: str, device: str, threads: int) -> float:
    import torch

    place, dtype = torch.device(device), getattr(torch, _PRECISIONS[precision])
    wait = torch.cuda.synchronize if place.type == "cuda" else (lambda: None)
    noise = torch.Generator().manual_seed(0)

    def product(factors: list[Any]) -> float:
        began = time.perf_counter()
        torch.matmul(*factors)
        wait()
        return time.perf_counter() - began

    for size in _SIZES:
        factors = [torch.randn(size, size, generator=noise).to(place, dtype) for _ in range(2)]
        product(factors)  # the first pays for lazy initialisation
        if product(factors) >= _FILLED:
            break
    seconds: list[float] = []
    ends = time.perf_counter() + _SECONDS
    while len(seconds) < _LEAST or (time.perf_counter() < ends and len(seconds) < _MOST):
        seconds.append(product(factors))
    return 2.0 * size**3 / statistics.median(seconds)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Multiplications of one forward pass, counted on the model's own weights."""

    frozen: int
    """A token's, in linear layers that get no gradient."""
    trained: int
    """A token's, in linear layers that get one: the adapters, for LoRA."""
    head: int
    """A completion token's, against the vocabulary."""
    attention: int
    """Of a pair of tokens of which one sees the other, over all layers: scores and values."""

    @classmethod
    def of(cls, model: Any) -> Costs:
        """Count them in a causal language model of transformers, with PEFT's adapters or without."""
        import torch

        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        head = base.get_output_embeddings()
        weights = [
            module.weight
            for module in base.modules()
            if isinstance(module, torch.nn.Linear) and module is not head and module.weight.dim() == 2
        ]
        config = base.config.get_text_config()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            frozen=sum(_size(weight) for weight in weights if not weight.requires_grad),
            trained=sum(_size(weight) for weight in weights if weight.requires_grad),
            head=0 if head is None else _size(head.weight),
            attention=2 * config.num_hidden_layers * config.num_attention_heads * size,
        )


def _size(weight: Any) -> int:
    shape = getattr(getattr(weight, "quant_state", None), "shape", None)  # 4-bit weights lie packed
    rows, columns = shape if shape is not None else weight.shape
    return int(rows * columns)


def step_flops(costs: Costs, sequences: Sequence[tuple[int, int]]) -> float:
    """Return the floating point operations that a forward and a backward pass over `sequences` need.

    A multiplication counts twice, with its addition. Backward, a frozen layer has its input's gradient to compute, as
    much as its forward pass; a trained one its weight's as well; attention those of both factors of each product.

    Args:
        costs: the model's.
        sequences: (tokens, completion tokens) of each.
    """
    tokens = sum(length for length, _ in sequences)
    learned = sum(completion for _, completion in sequences)
    pairs = sum(length * (length + 1) / 2 for length, _ in sequences)
    forward_and_backward = tokens * (2 * costs.frozen + 3 * costs.trained) + learned * 2 * costs.head
    return 2.0 * (forward_and_backward + pairs * 3 * costs.attention)


class Speed(NamedTuple):
    """How fast some steps were."""

    tokens_per_second: float
    """Prompt and completion tokens, padding apart."""
    completion_tokens_per_second: float
    share_of_ceiling: float
    """Needed operations a second, of `matmul_ceiling`; above 1 where sharing saves more than is lost."""


class Meter:
    """Adds up what the steps of a training took."""

    def __init__(self, model: Any, precision: str) -> None:
        """Measure the ceiling, about a second the first time.

        Args:
            model: what is trained, on its device.
            precision: of its matrix products: "fp32", "bf16" or "fp16".

        Raises:
            UsageError: no such precision.
        """
        self.costs = Costs.of(model)
        self.ceiling = matmul_ceiling(precision, next(model.parameters()).device)
        self._tokens = self._completion = 0
        self._flops = self._seconds = 0.0

    def count(self, sequences: Sequence[tuple[int, int]], seconds: float) -> Speed:
        """Count one step, and return its speed.

        Args:
            sequences: (tokens, completion tokens) of each sequence that went through the model.
            seconds: how long the step took, above 0.
        """
        tokens, completion = (sum(counts) for counts in zip(*sequences, strict=True))
        flops = step_flops(self.costs, sequences)
        self._tokens, self._completion = self._tokens + tokens, self._completion + completion
        self._flops, self._seconds = self._flops + flops, self._seconds + seconds
        return self._speed(tokens, completion, flops, seconds)

    @property
    def total(self) -> Speed | None:
        """The speed over all steps counted; None before the first."""
        return self._speed(self._tokens, self._completion, self._flops, self._seconds) if self._seconds else None

    def _speed(self, tokens: int, completion: int, flops: float, seconds: float) -> Speed:
        return Speed(tokens / seconds, completion / seconds, flops / seconds / self.ceiling)
