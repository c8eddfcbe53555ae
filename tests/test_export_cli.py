"""`guardlearn export` of adapters, by folder and by the names that ℛ has for them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import registered
from exported import published
from guardlearn import ArtifactDAG
from guardlearn.adapters import adapter_digest
from guardlearn.cli import app
from guardlearn.cli.export import tell_export
from guardlearn.errors import GuardlearnError, ModelError, UsageError


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    return published(tmp_path_factory.mktemp("export-cli") / "adapter", tiny_model)


@pytest.fixture
def runs(tiny_model, tmp_path, monkeypatch):
    """ℛ with two rounds of real adapters of the tiny model, the first promoted, the second refused."""
    made = published(tmp_path / "made", tiny_model)
    (tmp_path / "job").mkdir()
    manifest = json.loads((made / "guardlearn.json").read_text())["manifest"]
    (tmp_path / "job" / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(registered, "adapter", lambda folder, seed, manifest: published(folder, tiny_model, seed=seed))
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        registered.train_side(dag)
        ids = registered.fill(dag, range(2))
        for number, end in ((1, "promoted"), (2, "refused")):
            registered.round_of(
                dag, tmp_path / "rounds", number, ids, end, job=tmp_path / "job", plan={"base_model": str(tiny_model)}
            )
    return tmp_path / "runs.db"


def run(*arguments):
    done = CliRunner().invoke(app, ["export", *map(str, arguments)])
    if isinstance(done.exception, GuardlearnError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.slow
@pytest.mark.parametrize("to", ["peft", "merged", "ollama"])
def test_every_form_gives_one_json_object(tiny_model, adapter, tmp_path, to):
    done = run(adapter, "--to", to, "--model", tiny_model, "-o", tmp_path / "out", "--json")
    found = json.loads(done.stdout)
    assert (found["to"], found["output"]) == (to, str(tmp_path / "out"))
    report = found["report"]
    assert report["adapter_digest"] == adapter_digest(adapter) and report["agreement"]["prompts"] == 20
    assert set(report["files"]) == {path.name for path in (tmp_path / "out").iterdir()} - {"guardlearn.json"}
    assert "export: 0/" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "number"), [("promoted", 1), ("promoted:me", 1), ("2", 2), ("round 1", 1), ("me/2", 2), ("digest", 2)]
)
def test_an_adapter_is_named_as_the_registry_names_it(runs, tiny_model, tmp_path, name, number):
    folder = tmp_path / "rounds" / "me" / f"{number:03}" / "adapter"
    name = adapter_digest(folder)[:12] if name == "digest" else name
    done = run(name, "--db", runs, "--to", "peft", "-o", tmp_path / "out", "--base-name", "owner/tiny", "--json")
    assert json.loads(done.stdout)["report"]["adapter_digest"] == adapter_digest(folder)  # on its round's base
    assert adapter_digest(tmp_path / "out") == adapter_digest(folder)
    assert f"{name}: {folder}, weights {adapter_digest(folder)[:12]}, on {tiny_model}" in done.stderr


def test_a_registered_adapter_that_was_edited_is_refused(runs, tmp_path):
    config = tmp_path / "rounds" / "me" / "001" / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    with pytest.raises(ModelError, match=r"edited by hand: its adapter_config\.json is"):
        run("promoted", "--db", runs, "--to", "peft", "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["promoted", "--to", "peft"], "promoted is no adapter folder here; name one, or the repository"),
        (["7", "--to", "peft", "--db", "{runs}"], "no adapter '7' in"),
        (["promoted", "--db", "{runs}"], "promoted is an adapter, which needs --to; allowed: peft, merged, ollama"),
        (["{runs}", "--base-name", "x"], "--base-name is for an adapter, but"),
        (["{runs}", "--with-base"], "--with-base is for an adapter, but"),
        (["promoted", "--db", "{runs}", "--to", "safetensors"], "--to is 'safetensors'; allowed: peft, merged, ollama"),
    ],
)
def test_wrong_usage_is_one_line(runs, tmp_path, arguments, match):
    with pytest.raises(UsageError, match=match) as caught:
        run(*(each.format(runs=runs) for each in arguments), "-o", tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_a_repository_is_exported_as_before(runs, tmp_path):
    run(runs, "-o", tmp_path / "all.jsonl")
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) > 4


@pytest.mark.slow
def test_people_are_told_what_was_compared_and_what_a_server_needs(tiny_model, tmp_path, capsys):
    import msgspec

    from guardlearn import export_adapter

    report = export_adapter(published(tmp_path / "a", tiny_model), "peft", tmp_path / "out", model=tiny_model)
    tell_export(msgspec.structs.replace(report, notes=["vLLM needs --max-lora-rank 32"]), tmp_path / "out")
    shown = capsys.readouterr()
    assert "the bare base" in shown.out and "at most 0.001" in shown.out
    assert "greedy: 100.0 % of tokens as base + adapter, 20 of 20 answers identical" in shown.err
    assert "vLLM needs --max-lora-rank 32\n" in shown.err and f"peft: {tmp_path / 'out'}, on {tiny_model}" in shown.err
