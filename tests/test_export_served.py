"""A real OpenAI-compatible server, `transformers serve`, answers with exports by name, as base + adapter does."""

from __future__ import annotations

import json
import shutil

import pytest

from exported import published
from guardlearn import export_adapter, open_generator
from guardlearn.errors import GeneratorUnavailable
from guardlearn.generators import OpenAISettings, SamplingConfig
from guardlearn.types import GenerationRequest
from served import transformers_serve

pytestmark = pytest.mark.slow

PROMPTS = [
    ({"role": "user", "content": f"Write the function number {n}."},) for n in range(3)
] + [({"role": "system", "content": "Reply with code only."}, {"role": "user", "content": "Say hello"})]  # fmt: skip
SAMPLING = SamplingConfig(temperature=0, max_new_tokens=16)


@pytest.fixture(scope="module")
def place(tiny_model, tmp_path_factory):
    """A folder with an adapter and its exports, and a server whose working folder it is."""
    folder = tmp_path_factory.mktemp("exports")
    adapter = published(folder / "adapter", tiny_model, size=0.4)
    export_adapter(adapter, "merged", folder / "merged", model=tiny_model, dtype="float32")
    export_adapter(adapter, "peft", folder / "whole", model=tiny_model, with_base=True)
    export_adapter(adapter, "peft", folder / "bare", model=tiny_model)
    with transformers_serve(folder / "log", folder) as url:
        yield folder, url


def answers(generator):
    requests = [GenerationRequest(messages=messages, key=str(n)) for n, messages in enumerate(PROMPTS)]
    return [(answer.text, answer.completion_tokens, answer.finish) for answer in generator.generate(requests)]


def served(url, name, tokenizer):
    settings = OpenAISettings(base_url=url, concurrency=2, tokenizer=str(tokenizer), tries=1)
    return answers(open_generator("openai", name, sampling=SAMPLING, settings=settings))


@pytest.fixture
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize("name", ["merged", "whole"])
def test_a_server_answers_by_the_exports_name_as_base_and_adapter_do(place, tiny_model, name):
    folder, url = place
    here = open_generator("transformers", tiny_model, adapter=folder / "adapter", sampling=SAMPLING, dtype="float32")
    bare = open_generator("transformers", tiny_model, sampling=SAMPLING, dtype="float32")
    found = served(url, name, tiny_model)
    assert found == answers(here)
    assert len(set(found)) == len(PROMPTS) and set(found).isdisjoint(answers(bare))
    assert served(url, str(folder / name), tiny_model) == found  # its whole path is a name, too


@pytest.mark.usefixtures("no_key")
def test_a_peft_folder_without_its_base_is_not_served(place, tiny_model):
    """Why --with-base exists; a server that learns to load it makes this fail, and the how-to shorter."""
    _, url = place
    with pytest.raises(GeneratorUnavailable):
        served(url, "bare", tiny_model)
    assert served(url, "merged", tiny_model)  # it lives on


@pytest.mark.usefixtures("no_key")
def test_the_commands_that_docs_show_as_run_here_serve_what_they_say(tiny_model, tmp_path, monkeypatch, capsys):
    """The lines of docs/serving.md between its markers, with the demo's model and adapter taken by the tiny one."""
    import re
    from pathlib import Path

    from typer.testing import CliRunner

    from guardlearn.cli import app

    page = (Path(__file__).parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
    lines = re.findall(r"^guardlearn (export adapter .*)$", page, re.MULTILINE)
    assert len(lines) >= 4
    monkeypatch.chdir(tmp_path)
    published(tmp_path / "adapter", tiny_model)
    made = set()
    for line in lines:
        words = [str(tiny_model) if word == "BASE" else word for word in line.split()]
        output = Path(words[words.index("-o") + 1])
        shutil.rmtree(output, ignore_errors=True)
        done = CliRunner().invoke(app, [*words, "--json"])
        assert done.exit_code == 0, (line, done.output)
        made.add(json.loads(done.stdout)["to"])
    assert made == {"peft", "merged", "ollama"}
