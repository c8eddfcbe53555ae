"""Which backend trains here: the one place that decides, before anything heavy but torch is imported.

`trl` runs anywhere: transformers loads the model, PEFT adds the adapters. `unsloth` needs a CUDA device; its kernels
are made to take less time and memory. `guardlearn.training.trl` trains the models of both. Unsloth rewrites
transformers, trl and peft as it is imported, so it comes before them; where there is no GPU it raises, or turns to a
CPU backend of its own that changes the trainer's settings, so there it is never imported (erratum 37).
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from guardlearn.errors import BackendUnavailable, UsageError, missing_library

__all__ = [
    "BACKEND",
    "CHOICES",
    "Backend",
    "Lack",
    "can_4bit",
    "choose",
    "known",
    "lacks",
    "name_of",
    "open_backend",
    "remedy",
    "require_4bit",
]

log = logging.getLogger(__name__)

BACKEND = "guardlearn_backend"
"""Attribute of a model in memory that names the backend which loaded it."""

_MODULES = {"trl": "guardlearn.training.plain", "unsloth": "guardlearn.training.unsloth"}

CHOICES = ("auto", *_MODULES)
"""What may be asked for; `auto` is unsloth where it can run, else trl."""

_PACKAGES = ("unsloth", "unsloth_zoo", "bitsandbytes")  # Unsloth loads no model without bitsandbytes, 16 bit or not
_REWRITTEN = ("transformers", "trl", "peft")
_DEVICE = "a CUDA device"
_INSTALL = "pip install --no-deps -r constraints-cuda.txt"
_NEW_PROCESS = "load the model first in a new process, or run: python -m guardlearn.training JOB --model PATH"
_INSTALL_TORCH = "pip install torch==2.11.0"  # for Linux PyPI holds a CUDA 13 build


class Backend(Protocol):
    """What a backend's module offers."""

    def load_base(self, model_name: str, max_seq_length: int, load_in_4bit: bool) -> Any:
        """Return the base model, on its device.

        Args:
            model_name: a folder, or a hub name.
            max_seq_length: most tokens of a training row.
            load_in_4bit: quantise the frozen weights where that is possible.

        Raises:
            ModelError: no such model, or one that this backend cannot train as asked.
        """

    def add_adapters(self, model: Any, r: int, lora_alpha: int, seed: int) -> Any:
        """Return what `load_base` returned with fresh LoRA adapters; the base stays frozen.

        Raises:
            ModelError: the model has not the layers that this backend adapts.
        """


class Lack(NamedTuple):
    """Something that is missing."""

    what: str
    command: str
    """What installs it; "" where nothing to install would help."""


def choose(name: str = "auto") -> str:
    """Return the backend to use: `name`, or for "auto" unsloth where it can run, else trl.

    Raises:
        UsageError: no such backend.
        BackendUnavailable: unsloth was asked for and cannot run here; the line says what is missing, and the command.
    """
    if known(name) == "trl":
        return name
    missing, early = lacks(), _imported_early()
    if not missing and not early:
        return "unsloth"
    if name == "unsloth" and missing:
        whats = " and ".join(lack.what for lack in missing)
        raise BackendUnavailable(f"the unsloth backend lacks {whats}; {remedy(missing)}, or use --backend trl")
    order = f"unsloth must be imported before transformers, trl and peft; this process has imported {', '.join(early)}"
    if name == "unsloth":
        raise BackendUnavailable(f"{order}: {_NEW_PROCESS}")
    if not missing:
        log.warning("%s, so trl trains: %s", order, _NEW_PROCESS)
    return "trl"


def known(name: str) -> str:
    """Return `name`, if it is one of `CHOICES`.

    Raises:
        UsageError: it is not.
    """
    if name not in CHOICES:
        raise UsageError(f"backend {name!r} is unknown; choose {' or '.join(CHOICES)}")
    return name


def open_backend(name: str) -> Backend:
    """Import a backend's module; Unsloth's rewrites transformers, trl and peft.

    Args:
        name: what `choose` returned.

    Raises:
        BackendUnavailable: its package fails as it is imported.
    """
    if name == "unsloth":
        for variable, value in _environment().items():
            os.environ.setdefault(variable, value)
    try:
        return cast(Backend, importlib.import_module(_MODULES[name]))
    except Exception as error:  # Unsloth does much as it is imported, and fails in many ways
        reason = f"{type(error).__name__}: {error}"
        raise BackendUnavailable(
            f"the {name} backend cannot be imported ({reason}); {_INSTALL} puts in versions that fit each other "
            "(docs/gpu.md), --backend trl does without it"
        ) from error


def name_of(model: Any) -> str:
    """Return the backend that loaded this model; one that guardlearn did not load is trl's."""
    return str(getattr(model, BACKEND, "trl"))


def lacks() -> list[Lack]:
    """Return what keeps unsloth from running on this machine; [] where it can. Unsloth is not imported to find out."""
    return _no_device() + _no_packages(*_PACKAGES)


def remedy(missing: Sequence[Lack]) -> str:
    """Return the step that changes it, with the command to run."""
    commands = " && ".join(lack.command for lack in missing if lack.command)
    place = "on a machine with an NVIDIA GPU " if any(lack.what.startswith(_DEVICE) for lack in missing) else ""
    return f"{place}run: {commands}" if commands else f"train the job folder {place}(docs/gpu.md)"


def can_4bit() -> bool:
    """Whether base weights can be quantised to 4 bit on this machine."""
    return not _lacks_4bit()


def require_4bit() -> None:
    """Refuse 4 bit where it is not possible, so that a job trains as it says or not at all.

    Raises:
        BackendUnavailable: no CUDA device, or no bitsandbytes.
    """
    if missing := _lacks_4bit():
        whats = " and ".join(lack.what for lack in missing)
        raise BackendUnavailable(
            f"load_in_4bit lacks {whats}; {remedy(missing)}, or write the job with load_in_4bit = false"
        )


def _lacks_4bit() -> list[Lack]:
    return _no_device() + _no_packages("bitsandbytes")


def _no_device() -> list[Lack]:
    try:
        import torch
    except ImportError:
        raise missing_library("torch", "train", "training") from None
    if torch.cuda.is_available():
        return []
    if torch.version.cuda is None:
        return [Lack(f"{_DEVICE} (torch {torch.__version__} is built without CUDA)", _INSTALL_TORCH)]
    return [Lack(f"{_DEVICE} (torch {torch.__version__} sees none)", "")]


def _no_packages(*names: str) -> list[Lack]:
    missing = [name for name in names if find_spec(name) is None]
    return [Lack(f"the package{'s'[: len(missing) - 1]} {', '.join(missing)}", _INSTALL)] if missing else []


def _imported_early() -> list[str]:
    return [name for name in _REWRITTEN if name in sys.modules and "unsloth" not in sys.modules]


def _environment() -> dict[str, str]:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return {
        # loading a model would else download a counter's file from the hub, and wait for it up to two minutes
        "UNSLOTH_DISABLE_STATISTICS": "1",
        # the sources it writes for itself would else litter the folder the process was started in
        "UNSLOTH_COMPILE_LOCATION": str(cache / "guardlearn" / f"unsloth-{metadata.version('unsloth')}"),
    }
