"""Models in memory for a comparison: the base, base + adapter, and what base + adapter answers."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from guardlearn.errors import ModelError
from guardlearn.merging.agreement import Reference, continuations, logits
from guardlearn.merging.refusals import first_line
from guardlearn.types import OnProgress

__all__ = ["Steps", "load_model", "load_with_adapter", "measure_reference", "quiet"]

T = TypeVar("T")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' bars and notices off the terminal: whatever they fear is measured here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


class Steps:
    """Counts what is done."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._report, self._total, self._count = on_progress, total, 0
        if on_progress:
            on_progress(0, total, "")

    def done(self, note: str, value: T) -> T:
        """Count one step, whose result is handed through."""
        self._count += 1
        if self._report:
            self._report(self._count, self._total, note)
        return value

    def each(self, note: str, values: Iterable[T]) -> Iterator[T]:
        """Count one step a value."""
        for value in values:
            yield self.done(note, value)


def load_model(folder: Path, dtype: Any) -> Any:
    """Return a model folder's network in evaluation mode, on the GPU where it fits there.

    Args:
        folder: a model folder.
        dtype: of torch, or "auto" for the folder's own.

    Raises:
        ModelError: it cannot be loaded, or lacks tensors.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        network, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, output_loading_info=True
        )
    except Exception as error:  # each library raises its own kind for a missing or damaged file
        raise ModelError(f"the model in {folder} cannot be loaded ({first_line(error)})") from error
    if missing := sorted(report["missing_keys"]):  # transformers would go on with random numbers
        raise ModelError(f"the weights in {folder} lack {len(missing)} tensors, {missing[0]} first; copy them whole")
    if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > 5 * network.num_parameters():
        network.to("cuda")  # 4 bytes a parameter, and room to compute
    return network.eval()


def load_with_adapter(base: Path, adapter: Path) -> Any:
    """Return base + adapter, unmerged, in float32, in evaluation mode.

    Raises:
        ModelError: the adapter does not fit the base.
    """
    import torch
    from peft import PeftConfig, get_peft_model

    from guardlearn.training.weights import load_adapter_weights

    network = load_model(base, torch.float32)
    try:
        network = get_peft_model(network, PeftConfig.from_pretrained(adapter))
        load_adapter_weights(network, adapter)
    except (ValueError, TypeError, RuntimeError, ModelError) as error:
        raise ModelError(f"the adapter in {adapter} does not fit {base} ({first_line(error)})") from error
    return network.eval()


def measure_reference(network: Any, tokenizer: Any, prompts: list[list[int]], steps: Steps) -> Reference:
    """Return what base + adapter answers to prompts of token ids, greedily."""
    after = list(steps.each("base + adapter", continuations(network, tokenizer, prompts)))
    own = list(steps.each("base + adapter", logits(network, prompts, after)))
    return Reference(prompts=prompts, continuations=after, logits=own)
