"""Draws the next token of every row with noise that depends only on the row's key, the position and the token.

Gumbel-max: argmax(logit / T + g) with g Gumbel is a draw from softmax(logit / T) (Maddison et al. 2014, A* sampling).
Taking g from a counter-based hash (the finaliser of splitmix64, Steele et al. 2014) instead of a running generator
makes equal keys draw equal noise whatever batch they land in: common random numbers that survive batching and resuming.
"""

from __future__ import annotations

import hashlib

import torch

from guardlearn.generators.sampling import SamplingConfig

__all__ = ["draw", "gumbel", "row_seed"]

_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as int64
_FIRST = -0x40A7B892E31B1A47  # splitmix64's multipliers 0xBF58476D1CE4E5B9 and 0x94D049BB133111EB, as int64
_SECOND = -0x6B2FB644ECCEEE15


def row_seed(seed: int, key: str) -> int:
    """Return a row's 64-bit seed (signed) from the run's seed and the request's key."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def gumbel(seeds: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return standard Gumbel noise, float64 of shape (rows, candidates).

    Args:
        seeds: int64 (rows,), from `row_seed`.
        positions: int64 (rows,), the token's place in its answer, 0-based.
        tokens: int64 (rows, candidates), token ids.
    """
    state = _mix(seeds + (positions + 1) * _GOLDEN)
    bits = _mix(state[:, None] + (tokens + 1) * _GOLDEN)
    # 52 bits and a half step: strictly between 0 and 1 in float64, so both logarithms are finite
    uniform = (_shift(bits, 12).to(torch.float64) + 0.5) * 2.0**-52
    return -torch.log(-torch.log(uniform))


def draw(logits: torch.Tensor, sampling: SamplingConfig, seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Return one token id per row, int64 (rows,).

    Args:
        logits: (rows, vocabulary), any float type.
        sampling: temperature, top_k and top_p.
        seeds: int64 (rows,).
        positions: int64 (rows,), 0-based place of the token in its answer.
    """
    if sampling.temperature == 0:
        return logits.float().argmax(dim=-1)  # bfloat16's own argmax is several times slower on a CPU
    count = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    values, tokens = logits.topk(count, dim=-1)  # likeliest first
    scores = values.to(torch.float64) / sampling.temperature
    if sampling.top_p is not None and sampling.top_p < 1:
        chances = torch.softmax(scores, dim=-1)
        scores = scores.masked_fill(chances.cumsum(dim=-1) - chances >= sampling.top_p, -torch.inf)
    choice = (scores + gumbel(seeds, positions, tokens)).argmax(dim=-1, keepdim=True)
    return tokens.gather(-1, choice).squeeze(-1)


def _mix(value: torch.Tensor) -> torch.Tensor:
    value = (value ^ _shift(value, 30)) * _FIRST  # int64 products wrap, as the algorithm wants
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)


def _shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right without sign extension."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
