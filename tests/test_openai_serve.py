"""A real OpenAI-compatible server, `transformers serve`: what it answers is what the same model answers here."""

import json
import sys
from pathlib import Path

import pytest

from guardlearn.cli import main
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import ModelError
from guardlearn.generators import OpenAISettings, SamplingConfig, open_generator
from guardlearn.generators.server import special_tokens_in
from guardlearn.prompts import Renderer, encode_prompt, special_tokens
from guardlearn.types import GenerationRequest
from served import transformers_serve

pytestmark = pytest.mark.slow

SPECS = [{"id": f"s{n}", "specification": f"Say something about <|im_end|> {n}", "group": f"g{n}"} for n in range(4)]
RULE = """
from guardlearn import ArtifactStatus, Verdict

def rule(artifact, context):
    accepted = bool(context.history)
    return Verdict(
        status=ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED,
        feedback="" if accepted else f"not so: {len(artifact)}",
        cause="first",
    )
"""
TOKENS = 12


@pytest.fixture(scope="module")
def tuned_model(tiny_model, tmp_path_factory):
    """Another model of the same shape, as `guardlearn export --to merged` leaves one."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=noise) * 0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    learned = {"manifest": {"specification_digests": [], "groups": ["elsewhere"]}}
    (folder / "guardlearn.json").write_text(json.dumps(learned))
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a `transformers serve` that loads whatever folder it is asked for."""
    with transformers_serve(tmp_path_factory.mktemp("serve") / "log") as url:
        yield url


@pytest.fixture
def command(server, tmp_path, monkeypatch, capsys):
    """Return what runs `guardlearn` in a project of its own and gives what it prints as JSON."""
    (tmp_path / "rule.py").write_text(RULE)
    (tmp_path / "specs.jsonl").write_text("".join(json.dumps(spec) + "\n" for spec in SPECS))
    (tmp_path / "guardlearn.toml").write_text(f'[openai]\nbase_url = "{server}"\nconcurrency = 2\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "rule", raising=False)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)

    def run(name, *options):
        fixed = ["specs.jsonl", "--guard", "rule:rule", "--generator", "openai", "--rmax", "2", "--temperature", "0"]
        arguments = ["guardlearn", name, *fixed, "--max-new-tokens", str(TOKENS), "--json", *map(str, options)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        assert not caught.value.code, said.err
        return json.loads(said.out)

    return run


def test_a_collection_holds_what_the_model_itself_answers_to_the_same_prompts(command, tuned_model, tmp_path):
    from transformers import AutoTokenizer

    found = command("collect", "--model", tuned_model, "--db", "runs.db")
    assert (found["attempts"], found["accepted"], found["refinements"]) == (8, 4, 4)
    with ArtifactDAG.load(tmp_path / "runs.db") as dag:
        assert dag.verify().problems == []
        items = list(dag.extract(order_by="seq"))
    assert len({(item.metadata["spec_id"], item.facts.attempt) for item in items}) == len(items) == 8
    tokenizer = AutoTokenizer.from_pretrained(tuned_model)
    renderer = Renderer(special_tokens=special_tokens(tokenizer))
    prompts = [renderer.messages(item.specification, item.constraints, item.history) for item in items]
    # the server read the very tokens that training will: its own chat template, and no control token from a text
    assert [item.metadata["prompt_tokens"] for item in items] == [
        len(encode_prompt(tokenizer, each)) for each in prompts
    ]
    sampling = SamplingConfig(temperature=0, max_new_tokens=TOKENS)
    here = open_generator("transformers", tuned_model, sampling=sampling, dtype="float32")
    requests = [GenerationRequest(messages=tuple(each), key=str(n)) for n, each in enumerate(prompts)]
    answers = here.generate(requests)
    assert len({answer.text for answer in answers}) > 4  # or equal texts would show little
    assert [item.artifact for item in items] == [answer.text for answer in answers]
    assert [item.metadata["completion_tokens"] for item in items] == [answer.completion_tokens for answer in answers]
    assert [item.metadata["finish"] for item in items] == [answer.finish for answer in answers]
    assert all(item.model == str(tuned_model) and item.metadata["latency_seconds"] > 0 for item in items)


def test_two_models_of_a_server_are_compared(command, tiny_model, tuned_model):
    evidence = command("evaluate", "--model", tiny_model, "--adapter", tuned_model, "-o", "out")
    assert evidence["pairing"] == "specification" and evidence["leakage"].startswith("no text and no group")
    assert evidence["base"]["attempts"] == evidence["candidate"]["attempts"] == 8
    assert evidence["base"]["completion_tokens"] > 0
    lines = [json.loads(line) for line in Path("out/attempts.jsonl").read_text(encoding="utf-8").splitlines()[1:]]
    texts = {which: {line["generation"]["text"] for line in lines if line["model"] == which} for which in evidence}
    assert texts["base"] and texts["candidate"] and texts["base"].isdisjoint(texts["candidate"])


def test_special_tokens_are_those_of_the_tokenizer_that_is_named_or_served_from_a_folder(tiny_model, tmp_path):
    from transformers import AutoTokenizer

    def known(model="base", **settings):
        settings = OpenAISettings(base_url="http://localhost:1/v1", **settings)
        return open_generator("openai", model, settings=settings).special_tokens

    expected = special_tokens(AutoTokenizer.from_pretrained(tiny_model))
    assert expected and special_tokens_in(tiny_model) == expected
    assert known(tokenizer=str(tiny_model)) == expected == known(model=str(tiny_model))
    assert known() == ()
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        known(tokenizer=str(tmp_path))
