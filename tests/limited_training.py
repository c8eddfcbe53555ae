"""Trains a made-up model in a process that may take so many megabytes more; run by test_training_steps.py.

`python limited_training.py head|layers MEGABYTES FOLDER`: with `head` a large vocabulary takes the memory, row by row;
with `layers` what many layers keep of one row. 0 megabytes: no limit. Prints what came of it as JSON.
"""

import json
import resource
import sys
from pathlib import Path


def model_of(what):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = {"head": (32000, 1, 64), "layers": (100, 16, 1024)}[what]
    config = LlamaConfig(
        vocab_size=shape[0], num_hidden_layers=shape[1], intermediate_size=shape[2], hidden_size=32,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    base = LlamaForCausalLM(config)
    return get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))


def rows_of(what):
    from guardlearn.training.rows import TokenRow

    count, length = {"head": (8, 200), "layers": (1, 1000)}[what]
    return [
        TokenRow(id=str(n), prompt=[5, 6, 7], completion=[(n + t) % 90 + 3 for t in range(length + n)], weight=1.0)
        for n in range(count)
    ]


def limit(megabytes):
    """Let this process have so many megabytes of address space more than it has now."""
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    most = used + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(what, megabytes, folder):
    from types import SimpleNamespace

    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    from guardlearn.errors import GuardlearnError
    from guardlearn.training.trl import Options, build

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), pad_token="<pad>", eos_token="<pad>")
    rows, losses, error = rows_of(what), [], None
    options = Options(learning_rate=1e-3, warmup_ratio=0.0, seed=0, save_steps=100)
    plan = [list(range(len(rows)))] * 2
    trainer = build(
        model_of(what), tokenizer, rows, plan, Path(folder), options, lambda record: losses.append(record.loss)
    )
    warm_up(trainer, rows[0])
    if megabytes:
        limit(megabytes)
    try:
        trainer.train()
    except GuardlearnError as caught:
        error = str(caught)
    found = SimpleNamespace(
        losses=losses, notes=trainer.notes, micro_batch_size=trainer.micro_batch_size, error=error,
        gradient_checkpointing=trainer.model.is_gradient_checkpointing,
    )  # fmt: skip
    print(json.dumps(vars(found)))


def warm_up(trainer, row):
    """Go forth and back once, on a few tokens: threads and libraries take their share before the limit counts."""
    import dataclasses

    few = dataclasses.replace(row, completion=row.completion[:4])
    batch = trainer.objective.collate([few.columns(0)])
    trainer.compute_loss(trainer.model, batch).backward()
    trainer.model.zero_grad()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
