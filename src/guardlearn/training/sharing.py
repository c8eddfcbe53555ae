"""The model over a batch whose rows begin alike: what they share goes through it once.

Prompts of one job begin with the same system message, and rows of one pair have one prompt. Keys and values of what is
shared are computed for one row and handed to the others as a cache, through which gradients flow back; losses and
gradients are those of the whole rows, up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from guardlearn.training import backends
from guardlearn.training.rows import IGNORED

if TYPE_CHECKING:
    import torch

__all__ = ["last_logits", "shared_tokens"]

_LEAST_SAVED, _LEAST_SAVED_ON_GPU = 32, 4096
"""Fewest tokens saved for which a pass of its own pays; a GPU takes few tokens and many in about the same time."""


def shared_tokens(inputs: Mapping[str, torch.Tensor], size: int | None = None) -> torch.Tensor:
    """Return how many tokens the rows of each group begin with alike, of those that predict no label: int64 (groups,).

    Args:
        inputs: `input_ids`, `attention_mask` and `labels` (B, L), padded on the left, each row's labels at its end.
        size: neighbours that make a group, a divisor of B; None: all rows are one.
    """
    import torch

    ids, lengths = inputs["input_ids"], inputs["attention_mask"].sum(dim=1)
    size = size or len(ids)
    prompts = (lengths - (inputs["labels"] != IGNORED).sum(dim=1)).unflatten(0, (-1, size))
    most = (prompts.min(dim=1).values - 1).clamp(min=0)  # the last token of a prompt predicts the first label
    places = torch.arange(int(most.max()), device=ids.device)
    columns = ((ids.shape[1] - lengths)[:, None] + places).clamp(max=ids.shape[1] - 1)
    heads = ids.gather(1, columns).unflatten(0, (-1, size))
    alike = (heads == heads[:, :1]).all(dim=1) & (places < most[:, None])
    return alike.long().cumprod(dim=1).sum(dim=1)


def last_logits(model: Any, inputs: Mapping[str, torch.Tensor], keep: int | None, siblings: int = 1) -> torch.Tensor:
    """Return the model's logits over a batch, with what rows share computed once where that pays.

    Args:
        model: a causal language model, as the trainer hands it on.
        inputs: `input_ids`, `attention_mask`, `position_ids` and `labels` (B, L), padded on the left.
        keep: how many of the last columns' logits are wanted; None: the model cannot choose.
        siblings: neighbours that have one prompt, a divisor of B.
    """
    import torch

    mask = inputs["attention_mask"]
    passes = _passes(inputs, siblings) if len(mask) > 1 and _takes_a_cache(model) else [mask.sum(dim=1)]
    begun, seen, done = None, mask.new_zeros(1, 0), mask.new_zeros(1)
    for until in passes:
        times = len(until) // len(done)  # each row of the pass before goes on as so many
        if begun is not None:
            begun.batch_repeat_interleave(times)
        tokens, own = _piece(inputs, done.repeat_interleave(times), until)
        seen = torch.cat([seen.repeat_interleave(times, dim=0), own], dim=1)
        wanted = keep if until is passes[-1] else 1
        options = {} if keep is None else {"logits_to_keep": wanted}
        options |= {} if begun is None else {"past_key_values": begun}
        said = model(**tokens, attention_mask=seen, use_cache=len(passes) > 1, **options)
        begun, done = said.get("past_key_values"), until
    return said.logits


def _passes(inputs: Mapping[str, torch.Tensor], siblings: int) -> list[torch.Tensor]:
    """Return up to which token each pass takes its rows: all rows' common beginning, each prompt, whole rows."""
    mask = inputs["attention_mask"]
    least = _LEAST_SAVED_ON_GPU if mask.is_cuda else _LEAST_SAVED
    common, passes = shared_tokens(inputs), [mask.sum(dim=1)]
    if siblings > 1:
        prompts = shared_tokens(inputs, siblings)
        if int((prompts - common).sum()) * (siblings - 1) >= least:
            passes.insert(0, prompts)
    if int(common) * (len(passes[0]) - 1) >= least:
        passes.insert(0, common)
    return passes


def _piece(
    inputs: Mapping[str, torch.Tensor], begun: torch.Tensor, until: torch.Tensor
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return the tokens from `begun` up to `until` of every so manyth row, padded on the left, and what is no padding.

    Args:
        inputs: as of `last_logits`.
        begun: tokens that rows have behind them (rows,); a divisor of the batch's many.
        until: where they end (rows,).
    """
    import torch

    every = len(inputs["input_ids"]) // len(until)
    given = {name: inputs[name][::every] for name in ("input_ids", "position_ids", "attention_mask")}
    mask = given.pop("attention_mask")
    starts = mask.shape[1] - mask.sum(dim=1)
    width = int((until - begun).max())
    columns = (starts + until - width)[:, None] + torch.arange(width, device=mask.device)
    own = columns >= (starts + begun)[:, None]
    columns = columns.clamp(min=0)  # padding may be any token: nobody sees it
    return {name: tensor.gather(1, columns) for name, tensor in given.items()}, own.to(mask.dtype)


def _takes_a_cache(model: Any) -> bool:
    """Whether every layer of the model keeps plain keys and values, and may keep them now."""
    inner = getattr(model, "module", model)  # several processes wrap it
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    recomputes = inner.training and getattr(base, "is_gradient_checkpointing", False)  # it would drop the cache
    if recomputes or "unsloth" in (backends.name_of(inner), backends.name_of(base)):
        return False
    config, parameters = base.config.get_text_config(), inspect.signature(base.forward).parameters
    kinds = getattr(config, "layer_types", None)
    plain = {*kinds} == {"full_attention"} if kinds else getattr(config, "sliding_window", None) is None
    return plain and {"past_key_values", "use_cache", "position_ids"} <= parameters.keys()
