"""The model over a batch whose rows begin alike: what they share goes through it once.

Prompts of one job begin with the same system message. Its keys and values are computed for one row and handed to all
as a cache, through which gradients flow back; losses and gradients are those of the whole rows, up to rounding.
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


def shared_tokens(inputs: Mapping[str, torch.Tensor]) -> int:
    """Return how many tokens all rows begin with, of those that predict no label.

    Args:
        inputs: `input_ids`, `attention_mask` and `labels` (B, L), padded on the left, each row's labels at its end.
    """
    import torch

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    prompts = mask.sum(dim=1) - (inputs["labels"] != IGNORED).sum(dim=1)
    most = int(prompts.min()) - 1  # the last token of a prompt predicts the first label
    if most < 1:
        return 0
    columns = (mask.shape[1] - mask.sum(dim=1))[:, None] + torch.arange(most, device=mask.device)
    heads = ids.gather(1, columns)
    return int((heads == heads[:1]).all(dim=0).long().cumprod(dim=0).sum())


def last_logits(model: Any, inputs: Mapping[str, torch.Tensor], keep: int | None) -> torch.Tensor:
    """Return the model's logits over a batch, with what the rows share computed once where that pays.

    Args:
        model: a causal language model, as the trainer hands it on.
        inputs: `input_ids`, `attention_mask`, `position_ids` and `labels` (B, L), padded on the left.
        keep: how many of the last columns' logits are wanted; None: the model cannot choose.
    """
    import torch

    given = {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids")}
    options = {} if keep is None else {"logits_to_keep": keep}
    rows, mask = len(inputs["input_ids"]), inputs["attention_mask"]
    shared = shared_tokens(inputs) if rows > 1 and _takes_a_cache(model) else 0
    if shared * (rows - 1) < (_LEAST_SAVED_ON_GPU if mask.is_cuda else _LEAST_SAVED):
        return model(**given, **options, use_cache=False).logits
    starts = mask.shape[1] - mask.sum(dim=1, keepdim=True)
    first = int(starts[0])
    one = {} if keep is None else {"logits_to_keep": 1}
    begun = model(input_ids=given["input_ids"][:1, first : first + shared], **one, use_cache=True).past_key_values
    begun.batch_repeat_interleave(rows)
    rest = {name: tensor[:, shared:] for name, tensor in given.items()}  # padded on the left again
    own = torch.arange(shared, mask.shape[1], device=mask.device) >= starts + shared
    rest["attention_mask"] = torch.cat([mask.new_ones(rows, shared), own.to(mask.dtype)], dim=1)
    return model(**rest, **options, past_key_values=begun, use_cache=True).logits


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
