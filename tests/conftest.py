"""Fixtures shared by the tests: a tiny random model with a real tokenizer, and the databases that ℛ can be kept in."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

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

_WRITES_NO_BYTECODE = sys.dont_write_bytecode
sys.dont_write_bytecode = False  # else each worker and each run would compile and rewrite all tests and Hypothesis anew

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
    from warm import TRAINING, Nursery

    with contextlib.closing(Nursery(tmp_path_factory.mktemp("warm"), TRAINING)) as nursery:
        yield nursery


@pytest.fixture(scope="session")
def warm_commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """A Python that has imported the command line already, and no training library."""
    from warm import COMMANDS, Nursery

    with contextlib.closing(Nursery(tmp_path_factory.mktemp("warm-commands"), COMMANDS)) as nursery:
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


@pytest.fixture
def commands_start_warm(warm_commands: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, for programs that train nothing."""
    monkeypatch.setattr("sys.executable", warm_commands.python)


class _Compiled(sa.util.LRUCache[Any, Any]):
    """Compiled statements, found by the kind of database and not by its engine."""

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get((type(key[0]), *key[1:]), default)

    def __setitem__(self, key: Any, compiled: Any) -> None:
        super().__setitem__((type(key[0]), *key[1:]), compiled)


_COMPILED = _Compiled(2000)


@sa.event.listens_for(sa.Engine, "engine_connect")
def _share_compiled(connection: sa.Connection) -> None:
    """Let every test compile no statement that another one did: each opens engines of its own, hundreds in all."""
    connection.execution_options(compiled_cache=_COMPILED)


_LONGEST = (
    "first_adapter ui_browser tutorial loop benchmarks ablation training_distributed ui_command init engines_ray "
    "lineage stats_show dag_promises openai_collect chat_import backends report formats export_served exporting "
    "methods methods_training training_kills training_steps training_watch training_stages merging training "
    "evaluate_killed exchange dag_law sandbox_hostile sandbox_apart incremental generators_transformers full_disk "
    "atomicguard atomicguard_scale audit pipeline cli collect_kills dag_kills log_import dag_writers"
).split()


@pytest.hookimpl(trylast=True)  # pytest itself puts those of one database together
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what takes longest begin first where workers share the tests, so that they end together."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        order = [f"test_{name}.py" for name in _LONGEST]
        items.sort(key=lambda item: order.index(item.path.name) if item.path.name in order else len(order))


def pytest_collection_finish() -> None:
    """Look through what was imported no more when garbage is collected."""
    sys.dont_write_bytecode = _WRITES_NO_BYTECODE
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server."""
    from databases import server

    with server() as started:
        yield started


@pytest.fixture(scope="session")
def sqlite_files() -> Iterator[Files]:
    """A folder for SQLite files."""
    from databases import Files, in_memory

    with tempfile.TemporaryDirectory(prefix="guardlearn-", dir=in_memory()) as folder:
        yield Files(Path(folder))


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Files | Server:
    """Where repositories can be made; a test that asks for it runs on both databases."""
    return request.getfixturevalue("sqlite_files" if request.param == "sqlite" else "postgres")


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
