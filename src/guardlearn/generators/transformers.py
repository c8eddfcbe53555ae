"""π_θ as a local model of the transformers library, decoded in batches, with an adapter on or off."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from guardlearn.errors import ModelError, RequestRefused, UsageError
from guardlearn.generators.cache import ATTENTION, register_attention
from guardlearn.generators.decoding import Answer, Decoder, Prompt, Scored
from guardlearn.generators.drawing import row_seed
from guardlearn.generators.lora import AdapterSlot
from guardlearn.generators.packing import pack_linears
from guardlearn.generators.sampling import SamplingConfig
from guardlearn.generators.stops import StopFinder
from guardlearn.prompts import Renderer, encode_prompt, special_tokens, template_digest
from guardlearn.types import Generation, GenerationRequest

__all__ = ["TransformersGenerator", "load_tokenizer"]

_MOST_ROWS = 128
"""Default limit of rows at once; more gain nothing on two cores."""
_MEMORY_SHARE = 0.3
"""Share of the free memory that keys and values may take."""
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class TransformersGenerator:
    """Answers batches of prompts with one model in memory.

    Equal request keys draw equal noise whatever the batch; floating-point rounding may still differ with its size.
    """

    common_random_numbers = True
    lanes = 1
    batch = 0

    def __init__(
        self,
        model_path: str | Path,
        *,
        sampling: SamplingConfig | None = None,
        adapter: str | Path | None = None,
        dtype: str = "auto",
        batch_size: int | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        """Load a model folder.

        Args:
            model_path: what `save_pretrained` writes; nothing is downloaded.
            sampling: how tokens are drawn.
            adapter: LoRA folder to start with; None: the bare base.
            dtype: "bfloat16", "float16", "float32", or "auto": bfloat16 where the machine computes in it.
            batch_size: most rows decoded at once; None: what a share of the free memory holds, at most 128.
            renderer: whose prompts it will answer; only its digest goes into `prompt_digest`.

        Raises:
            ModelError: no usable model or adapter there.
            UsageError: a setting that does not exist.
        """
        path = Path(model_path)
        if batch_size is not None and batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}; allowed: at least 1, or None to choose by memory")
        self.model = path.name
        self.sampling = sampling or SamplingConfig()
        self.tokenizer = load_tokenizer(path)
        self.special_tokens = special_tokens(self.tokenizer)
        self.prompt_digest = template_digest(self.tokenizer, renderer or Renderer())
        self._batch_size = batch_size
        self._network = _load(path, _dtype(dtype))
        self._slot = AdapterSlot(self._network)
        self._finder = StopFinder(self.sampling.stop, self._text)
        self._eos = _end_tokens(self._network, self.tokenizer)
        self._decoder = Decoder(self._network, self.sampling, self._finder, self._eos)
        if adapter is not None:
            self.use_adapter(adapter)

    def generate(
        self, requests: list[GenerationRequest], on_done: Callable[[int, Generation], None] | None = None
    ) -> list[Generation]:
        """Answer every request, in order; `on_done(index, generation)` is called in this thread as each finishes.

        Raises:
            RequestRefused: a prompt fills the model's context; names its key and length.
        """
        asked_at = time.perf_counter()
        prompts = [self._prompt(index, request) for index, request in enumerate(requests)]
        generations: dict[int, Generation] = {}
        with closing(self._decoder.run(prompts, self._rows(prompts))) as answers:  # whatever on_done may raise
            for answer in answers:
                generation = self._generation(prompts[answer.index], answer, asked_at)
                generations[answer.index] = generation
                if on_done:
                    on_done(answer.index, generation)
        return [generations[index] for index in range(len(requests))]

    def use_adapter(self, adapter: str | Path | None) -> None:
        """Merge an adapter's folder into the weights, or restore the bare base, bit for bit, with None.

        Raises:
            ModelError: no adapter there, or one of another base.
        """
        self._slot.use(None if adapter is None else Path(adapter))

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return int(self._network.config.max_position_embeddings)

    @property
    def vocabulary(self) -> int:
        """Tokens that a distribution is over."""
        return int(self._network.get_output_embeddings().weight.shape[0])

    def log_probabilities(self, rows: Sequence[tuple[Sequence[int], int]]) -> Iterator[Scored]:
        """Yield the distributions along given tokens, under the adapter in use; temperature and the like play no part.

        Args:
            rows: (tokens, first), each of 1 to `context` tokens; a row gives the distributions after tokens[first] and
                after all that follow, in pieces.
        """
        return self._decoder.score(rows)

    def weights_digest(self) -> str:
        """Return a digest of what the adapter in use made of the weights; equal digests are equal models."""
        return self._slot.digest()

    def describe(self) -> Mapping[str, Any]:
        """Return the settings to be stored with each item."""
        dtype = str(self._network.dtype).removeprefix("torch.")
        return {"generator": "transformers", "dtype": dtype, **self.sampling.describe()}

    def _prompt(self, index: int, request: GenerationRequest) -> Prompt:
        tokens = encode_prompt(self.tokenizer, request.messages)
        context = self.context
        if len(tokens) >= context:
            raise RequestRefused(
                f"the prompt of request {request.key!r} has {len(tokens)} tokens and leaves no room for an answer: "
                f"the context of {self.model} is {context}; shorten the specification or its history",
                request.key,
            )
        limit = min(self.sampling.max_new_tokens, context - len(tokens))
        return Prompt(index, tokens, row_seed(self.sampling.seed, request.key), limit)

    def _generation(self, prompt: Prompt, answer: Answer, asked_at: float) -> Generation:
        kept = answer.tokens[:-1] if answer.tokens[-1] in self._eos else answer.tokens
        return Generation(
            text=answer.text if answer.text is not None else self._text(kept),
            finish="stop" if answer.ended else "length",
            prompt_tokens=len(prompt.tokens),
            completion_tokens=len(answer.tokens),
            seconds=answer.seconds,
            latency_seconds=time.perf_counter() - asked_at,
        )

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _rows(self, prompts: Sequence[Prompt]) -> int:
        if self._batch_size is not None or not prompts:
            return self._batch_size or 1
        config = self._network.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        token_bytes = 2 * config.num_hidden_layers * heads * size * self._network.dtype.itemsize
        row_bytes = token_bytes * max(len(prompt.tokens) + prompt.limit for prompt in prompts)
        return max(1, min(_MOST_ROWS, int(_MEMORY_SHARE * _free_bytes(self._network.device)) // row_bytes))


def load_tokenizer(model_path: str | Path) -> Any:
    """Return the tokenizer of a model folder.

    Raises:
        ModelError: no tokenizer there, or one without an EOS token.
    """
    from transformers import AutoTokenizer

    path = Path(model_path)
    if not path.is_dir():
        raise ModelError(f"no model folder at {path}; a model folder is what save_pretrained writes")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{path} holds no usable tokenizer ({_first_line(error)}); copy its files in") from error
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer in {path} has no EOS token, so no answer could end; set eos_token in it")
    return tokenizer


def _load(path: Path, dtype: torch.dtype) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    if not (path / "config.json").is_file():
        raise ModelError(f"{path} holds no config.json; a model folder is what save_pretrained writes")
    if not any(path.glob("*.safetensors")) and not any(path.glob("pytorch_model*.bin")):
        raise ModelError(f"{path} holds no weights (*.safetensors); copy them in or name another model")
    register_attention()
    try:
        with _quiet():
            network, report = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, attn_implementation=ATTENTION, local_files_only=True, output_loading_info=True
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the model in {path} cannot be loaded ({_first_line(error)})") from error
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers
        raise ModelError(f"the weights in {path} lack {len(missing)} tensors, {missing[0]} first; copy them whole")
    if not network.is_backend_compatible():
        raise ModelError(f"{type(network).__name__} in {path} cannot be decoded in rows; use another model")
    network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    pack_linears(network)
    return network


@contextmanager
def _quiet() -> Iterator[None]:
    """Load without transformers' progress bars and notices: progress is reported by whoever called."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _dtype(name: str) -> torch.dtype:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    if name not in _DTYPES:
        raise UsageError(f"dtype is {name!r}; allowed: auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _end_tokens(network: Any, tokenizer: Any) -> frozenset[int]:
    configured = network.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return frozenset(end for end in (*ends, tokenizer.eos_token_id) if end is not None)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # no Linux: half of what is installed
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
