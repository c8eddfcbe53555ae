"""π_θ as a model that is in memory already: one, or the guide's two, before and after training.

Decoding is the transformers library's own; each token is drawn with the noise of its row's key (`drawing`), so that two
models answer the same requests with the same noise.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from guardlearn.errors import RequestRefused, UsageError
from guardlearn.generators.drawing import draw, row_seed
from guardlearn.generators.sampling import SamplingConfig
from guardlearn.prompts import Renderer, encode_prompt, special_tokens, template_digest
from guardlearn.types import Generation, GenerationRequest

__all__ = ["InMemoryGenerator"]

_ROWS = 32
"""Rows decoded at once."""


class InMemoryGenerator:
    """Answers with a model in memory; `use_adapter` switches between the model before and the one after."""

    common_random_numbers = True
    lanes = 1
    batch = 0

    def __init__(
        self,
        before: Any,
        after: Any | None,
        tokenizer: Any,
        *,
        sampling: SamplingConfig,
        renderer: Renderer | None = None,
    ) -> None:
        """Serve one model, or two.

        Args:
            before: the model that answers first.
            after: the model that answers once an adapter is in use; None: there is none. Where it is a PEFT model over
                the same weights as `before`, the model before is this one with its adapters off (erratum 48).
            tokenizer: of both.
            sampling: how tokens are drawn; stop texts are not supported here.
            renderer: whose prompts it will answer; only its digest goes into `prompt_digest`.

        Raises:
            UsageError: the two models are the same and nothing can be switched off.
        """
        if sampling.stop:
            raise UsageError("a model in memory ends its answers at EOS only; leave stop empty")
        self._before, self._after, self._tokenizer = before, after, tokenizer
        self._shared = after is not None and _share_weights(before, after)
        if self._shared and not hasattr(after, "disable_adapter"):
            raise UsageError(
                "model_before and model_after share their weights, and there are no adapters to switch off: give the "
                "model that add_lora_adapters returned as model_after, or load the base a second time"
            )
        self._adapted = False
        self.sampling = sampling
        self.model = Path(str(getattr(before.config, "_name_or_path", "") or type(before).__name__)).name
        self.special_tokens = special_tokens(tokenizer)
        self.prompt_digest = template_digest(tokenizer, renderer or Renderer())

    def generate(
        self, requests: list[GenerationRequest], on_done: Callable[[int, Generation], None] | None = None
    ) -> list[Generation]:
        """Answer every request, in order; `on_done(index, generation)` is called as each batch finishes.

        Raises:
            ModelError: a prompt fills the model's context.
        """
        prompts = [encode_prompt(self._tokenizer, request.messages) for request in requests]
        asked_at = time.perf_counter()
        order = sorted(range(len(requests)), key=lambda index: len(prompts[index]))
        found: dict[int, Generation] = {}
        with self._answering() as network:
            for start in range(0, len(order), _ROWS):
                rows = order[start : start + _ROWS]
                keys = [requests[index].key for index in rows]
                began = time.perf_counter()
                answers = list(self._batch(network, [prompts[i] for i in rows], keys))
                ended = time.perf_counter()
                took = {"seconds": (ended - began) / len(rows), "latency_seconds": ended - asked_at}
                for index, plain in zip(rows, answers, strict=True):
                    found[index] = answer = msgspec.structs.replace(plain, **took)
                    if on_done:
                        on_done(index, answer)
        return [found[index] for index in range(len(requests))]

    def use_adapter(self, adapter: str | Path | None) -> None:
        """Answer with the model after, or with None the model before.

        Raises:
            UsageError: there is only one model.
        """
        if adapter is not None and self._after is None:
            raise UsageError(f"adapter {str(adapter)!r}: a single model in memory answers as it is; load two")
        self._adapted = adapter is not None

    def describe(self) -> Mapping[str, Any]:
        """Return the settings to be stored with each item."""
        dtype = str(self._before.dtype).removeprefix("torch.")
        return {"generator": "in memory", "dtype": dtype, **self.sampling.describe()}

    @contextlib.contextmanager
    def _answering(self) -> Iterator[Any]:
        """Yield the model whose turn it is, in evaluation mode (erratum 52), and leave it as it was."""
        network: Any = self._after if self._adapted or self._shared else self._before
        bare = network.disable_adapter() if self._shared and not self._adapted else contextlib.nullcontext()
        training = network.training
        network.eval()
        try:
            with torch.no_grad(), bare:
                yield network
        finally:
            network.train(training)

    def _batch(self, network: Any, prompts: list[list[int]], keys: list[str]) -> Iterator[Generation]:
        longest = max(map(len, prompts))
        context = getattr(network.config, "max_position_embeddings", None)
        if context is not None and longest >= context:
            raise RequestRefused(
                f"the prompt of request {keys[-1]!r} has {longest} tokens and leaves no room for an answer: the "
                f"context is {context}; shorten the specification or its history",
                keys[-1],
            )
        room = self.sampling.max_new_tokens if context is None else context - longest
        ends = _end_tokens(network, self._tokenizer)
        pad = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else ends[0]
        ids = torch.full((len(prompts), longest), pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(prompts):
            ids[row, longest - len(tokens) :] = torch.tensor(tokens)
            mask[row, longest - len(tokens) :] = 1
        drawer = _KeyedDraw(self.sampling, [row_seed(self.sampling.seed, key) for key in keys], longest)
        config = GenerationConfig(
            max_new_tokens=min(self.sampling.max_new_tokens, room), do_sample=False, eos_token_id=ends, pad_token_id=pad
        )
        made = network.generate(
            input_ids=ids.to(network.device),
            attention_mask=mask.to(network.device),
            generation_config=config,
            logits_processor=LogitsProcessorList([drawer]),
        )
        for tokens, answer in zip(prompts, made[:, longest:].tolist(), strict=True):
            yield self._generation(len(tokens), answer, ends)

    def _generation(self, prompt_tokens: int, answer: list[int], ends: list[int]) -> Generation:
        end = next((at for at, token in enumerate(answer) if token in ends), None)
        kept = answer if end is None else answer[:end]
        text = self._tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Generation(
            text=str(text),
            finish="length" if end is None else "stop",
            prompt_tokens=prompt_tokens,
            completion_tokens=len(kept) + (end is not None),
        )


class _KeyedDraw(LogitsProcessor):
    """Leaves each row only the token that its key's noise chooses."""

    def __init__(self, sampling: SamplingConfig, seeds: list[int], prompt_length: int) -> None:
        self._sampling, self._seeds, self._prompt_length = sampling, torch.tensor(seeds), prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return (rows, vocabulary) scores: 0 for the drawn token, -inf for the others."""
        seeds = self._seeds.to(scores.device)
        positions = torch.full_like(seeds, input_ids.shape[1] - self._prompt_length)
        chosen = draw(scores, self._sampling, seeds, positions)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def _share_weights(before: Any, after: Any) -> bool:
    own = {id(weight) for weight in after.parameters()}
    return any(id(weight) in own for weight in before.parameters())


def _end_tokens(network: Any, tokenizer: Any) -> list[int]:
    configured = getattr(network.generation_config, "eos_token_id", None)
    ends = configured if isinstance(configured, list) else [configured]
    return sorted({end for end in (*ends, tokenizer.eos_token_id) if end is not None})
