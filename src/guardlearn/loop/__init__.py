"""Learning as traces accumulate: the training checkpoint, and the guide's incremental loop (its section 7)."""

from guardlearn.loop.checkpoint import load_training_checkpoint, save_training_checkpoint
from guardlearn.loop.incremental import IncrementalResult, incremental_training_loop

__all__ = [
    "IncrementalResult",
    "incremental_training_loop",
    "load_training_checkpoint",
    "save_training_checkpoint",
]
