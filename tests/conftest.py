"""Fixtures shared by the tests: a tiny random model with a real tokenizer, and the databases that ℛ can be kept in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from guardlearn.guards import sandbox

if TYPE_CHECKING:
    from databases import Files, Place, Server
    from warm import Nursery

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tests fork guards; tokenizers warn about it otherwise
# a tiny model is fastest on one thread, above all where other tests want the cores too; the trainers inherit it
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not sandbox.state().works:  # the tests' own artifacts do no harm; tests of the sandbox itself are skipped there
    os.environ.setdefault("GUARDLEARN_SANDBOX", "none")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in a shell's background, where Ctrl-C would stay ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CORPUS = [
    "Write the function `def add(x: int, y: int) -> int:`. It returns the sum of x and y: `return x + y`",
    "You are a Python programmer. Reply with code only. Use type hints and a docstring.",
    'def double(x: int) -> int:\n    """Return x times two."""\n    return x * 2\n',
    'House style: the body must start with a one-line docstring such as """Return the result."""',
    "system\nuser\nassistant\n The previous answer was rejected. (earlier feedback left out)",
]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a random two-layer Llama (hidden 64) and a byte-level BPE tokenizer with a ChatML template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny-model") / "tiny"
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """A Python that has imported the training libraries already."""
    from warm import Nursery

    with contextlib.closing(Nursery(tmp_path_factory.mktemp("warm"))) as nursery:
        yield nursery


@pytest.fixture(autouse=True)
def _no_modules_of_other_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """Forget modules that a test wrote into its own folder: the next one may write another of the same name."""
    if "tmp_path" not in request.fixturenames:
        yield
        return
    folder, before = str(request.getfixturevalue("tmp_path")), set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(folder):
            del sys.modules[name]


@pytest.fixture
def warm_starts(warm: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what this process starts as `sys.executable` come from there."""
    monkeypatch.setattr("sys.executable", warm.python)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server."""
    from databases import server

    with server() as started:
        yield started


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Iterator[Files | Server]:
    """Where repositories can be made; a test that asks for it runs on both databases."""
    from databases import Files, in_memory

    if request.param == "sqlite":
        with tempfile.TemporaryDirectory(prefix="guardlearn-", dir=in_memory()) as folder:
            yield Files(Path(folder))
    else:
        yield request.getfixturevalue("postgres")


@pytest.fixture
def place(databases: Files | Server) -> Iterator[Place]:
    """A place of its own, where nothing is yet."""
    with databases.new() as made:
        yield made


@pytest.fixture
def installed(databases: Files | Server) -> Iterator[Place]:
    """A place of its own, with an empty repository."""
    with databases.installed() as made:
        yield made


@pytest.fixture
def json_lines(tmp_path: Path) -> Callable[[str], Callable[..., Path]]:
    """Return what makes a writer of JSON Lines files: it takes objects, or lines as they are, and a file's name."""

    def writer(usual_name: str) -> Callable[..., Path]:
        def write(lines: Iterable[Any], name: str = usual_name) -> Path:
            path = tmp_path / name
            texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
            path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
            return path

        return write

    return writer


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        chat_template=CHATML,
    )
