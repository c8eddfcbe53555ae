"""Train a job by Unsloth's own code without a GPU: `python pretend_gpu.py JOB MODEL`; see prove/unsloth_pretended.py.

Unsloth's Python runs as it is, its Triton kernels in Triton's interpreter; torch is told that it has one GPU, and what
is sent there stays on the CPU. Three things differ from a GPU: weights are float32 (interpreted bfloat16 is too slow),
so the fused LoRA kernels stand back for PEFT's own; gradient checkpointing is off, since Unsloth's needs pinned memory;
nothing is compiled. The patches on Unsloth are undone by nothing: the process is for this alone.
"""

import contextlib
import importlib
import os
import sys
import types
from pathlib import Path

os.environ |= {"UNSLOTH_ALLOW_CPU": "1", "TRITON_INTERPRET": "1", "UNSLOTH_COMPILE_DISABLE": "1"}

import torch
from torch.overrides import TorchFunctionMode

GPU = types.SimpleNamespace(
    name="pretended", total_memory=8 << 30, major=8, minor=0, multi_processor_count=1, warp_size=32,
    max_threads_per_multi_processor=1024,
)  # fmt: skip


class Stays(contextlib.nullcontext):
    """`torch.cuda.device`, which selects nothing."""

    idx = 0

    def __init__(self, *_):
        super().__init__()


class CudaIsCpu(TorchFunctionMode):
    """Sends to the CPU what is asked to be on a GPU."""

    def __torch_function__(self, func, types_, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if "device" in kwargs:
            kwargs["device"] = here(kwargs["device"])
        if name == "cuda":
            return args[0]
        return func(*(map(here, args) if name == "to" else args), **kwargs)


def here(value):
    """Return the CPU for a GPU; anything else as it is."""
    if isinstance(value, torch.device | str):
        return "cpu" if str(value).startswith("cuda") else value
    return "cpu" if type(value) is int else value  # a device's number


def pretend():
    torch.cuda.get_device_properties = lambda *_, **__: GPU
    torch.cuda.get_device_capability = lambda *_, **__: (GPU.major, GPU.minor)
    torch.cuda.current_device = lambda: 0
    torch.cuda.mem_get_info = lambda *_: (GPU.total_memory, GPU.total_memory)
    torch.cuda.device = Stays
    torch._C._cuda_getCurrentRawStream = lambda *_: 0
    CudaIsCpu().__enter__()


def import_unsloth():
    """Import Unsloth, and do what it leaves out where it knows that there is no GPU: rewrite TRL's trainer."""
    count, torch.cuda.device_count = torch.cuda.device_count, lambda: 1
    unsloth = importlib.import_module("unsloth")
    torch.cuda.device_count = count
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    unsloth.models.rl.patch_trl_disable_gradient_checkpointing()
    unsloth.models.rl._patch_trl_rl_trainers_impl("sft_trainer")
    unsloth.trainer._patch_trl_trainer()
    importlib.import_module("unsloth.context_parallel").patch_sft_trainer()
    unsloth.models.llama._PerDeviceRopeCache._build_rope_cache = rope_cache
    fast = unsloth.FastLanguageModel
    load, add = fast.from_pretrained, fast.get_peft_model
    changed = {"dtype": torch.float32, "device_map": {"": "cpu"}, "use_gradient_checkpointing": False}
    fast.from_pretrained = staticmethod(lambda **given: load(**(given | changed)))
    fast.get_peft_model = staticmethod(
        lambda model, **given: add(model, **(given | {"use_gradient_checkpointing": False}))
    )


def rope_cache(self, index):
    """Fill a device's table of rotations, which would be made on the GPU of that number."""
    size = self.current_rope_size
    self._set_cos_sin_cache(self._rope_cache_rows(), torch.device("cpu", 0), self._rope_cache_dtype)
    self.current_rope_size = size
    self._rope_cache_versions[index] = self._rope_cache_version
    self._mark_rope_build(index)


def main(job, model):
    from guardlearn.training import backends
    from guardlearn.training.job import train_job

    pretend()
    backends._no_device = list
    opened = importlib.import_module
    backends.importlib = types.SimpleNamespace(import_module=lambda name: import_unsloth() or opened(name))
    train_job(Path(job), Path(model), backend="unsloth", say=lambda event: print(event, flush=True))


if __name__ == "__main__":
    main(*sys.argv[1:])
