"""`guardlearn collect` and `evaluate` against a faulty server: nothing lost, no duplicate, the key nowhere."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter

import pytest

from faulty_server import FAULTS, OK, FaultyServer, serving
from guardlearn.cli import main
from guardlearn.dag import ArtifactDAG

KEY = "sk-nowhere-3141592653589793"
R_MAX = 3
NEEDS = [1, 2, 3, 9] * 5
SPECS = [
    {"id": f"s{n}", "specification": f"Task {n}", "group": f"g{n // 2}", "metadata": {"needs": needs}}
    for n, needs in enumerate(NEEDS)
]
RULE = """
import re
from guardlearn import ArtifactStatus, Verdict

def rule(artifact, context):
    tried = int(re.search(r"try (\\d+)", artifact)[1])
    if tried >= context.specification.metadata["needs"] - ("tuned" in artifact):
        return Verdict(status=ArtifactStatus.ACCEPTED)
    return Verdict(status=ArtifactStatus.REJECTED, feedback=f"again after try {tried}", cause="early")
"""


def answer(request):
    """Say which task, which try and which model, as the prompt tells."""
    text = request["messages"][-1]["content"]
    return f"{text.splitlines()[0]} try {1 + text.count('again after')} by {request['model']}"


def prompts():
    """Every (spec, attempt) that a complete collection holds, with its status."""
    return {
        (spec["id"], attempt): "accepted" if attempt == needs else "rejected"
        for spec, needs in zip(SPECS, NEEDS, strict=True)
        for attempt in range(1, min(needs, R_MAX) + 1)
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rule.py").write_text(RULE)
    (tmp_path / "specs.jsonl").write_text("".join(json.dumps(spec) + "\n" for spec in SPECS))
    return tmp_path


def configure(folder, server, **settings):
    given = {"base_url": server.url, "read_seconds": 3.0, "request_seconds": 5.0, "tries": 4} | settings
    lines = [f"{name} = {json.dumps(value)}" for name, value in given.items()]
    (folder / "guardlearn.toml").write_text("\n".join(["[openai]", *lines, ""]))


def arguments(command, *options):
    fixed = ["--guard", "rule:rule", "--generator", "openai", "--model", "base", "--rmax", str(R_MAX)]
    return [command, "specs.jsonl", *fixed, "--max-new-tokens", "20", *options]


@pytest.fixture
def here(folder, monkeypatch, capsys):
    """Return what runs a command in this process, and gives exit code, stdout and stderr; the key is in none of it."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "rule", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def run(command, *options):
        monkeypatch.setattr(sys, "argv", ["guardlearn", *arguments(command, *options)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr()
        assert KEY not in said.out + said.err
        return caught.value.code or 0, said.out, said.err

    return run


def start(folder, *options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENAI_API_KEY": KEY}
    environment.pop("OPENAI_BASE_URL", None)
    command = [sys.executable, "-m", "guardlearn", *arguments("collect", "--db", "runs.db", *options)]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def collect(folder, *options):
    """Return exit code, stdout and stderr of a collection; the key is in none of it."""
    process = start(folder, *options)
    out, err = process.communicate(timeout=180)
    assert KEY not in out + err and "Traceback" not in err
    return process.returncode, out, err


def stored(folder):
    """Return every item by (spec, attempt); ℛ is sound, holds none twice, and no file holds the key."""
    with ArtifactDAG.load(folder / "runs.db") as dag:
        assert dag.verify().problems == []
        items = list(dag.extract(order_by="seq"))
    found = Counter((item.metadata["spec_id"], item.facts.attempt) for item in items)
    assert not found or max(found.values()) == 1
    assert not [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    return {(item.metadata["spec_id"], item.facts.attempt): item for item in items}


def complete(folder):
    items = stored(folder)
    assert {name: item.status.value for name, item in items.items()} == prompts()
    for (_, attempt), item in items.items():
        assert item.artifact == f"{item.specification} try {attempt} by base"
    return items


@pytest.mark.slow
@pytest.mark.usefixtures("commands_start_warm")
def test_through_every_fault_a_collection_comes_out_whole_and_says_how_it_was_made(folder):
    def fault(number, messages):
        kind = zlib.crc32(messages[-1]["content"].encode())
        return FAULTS[(kind + number) % len(FAULTS)] if number <= 1 + kind % 2 else OK

    with serving(FaultyServer(answer, fault, retry_after="0.2")) as server:
        configure(folder, server)
        code, out, err = collect(folder, "--temperature", "0.3", "--seed", "5", "--json")
        assert code == 0, err
        assert json.loads(out)["new_attempts"] == len(prompts())
        assert set(server.faults) == {*FAULTS, OK} and server.faults[OK] == len(prompts())
        assert {each["headers"]["authorization"] for each in server.asked} == {f"Bearer {KEY}"}
        before = len(server.asked)
        assert collect(folder, "--temperature", "0.3", "--seed", "5")[0] == 0
        assert len(server.asked) == before  # all is there
    for item in complete(folder).values():
        assert (item.model, item.adapter, item.source.value) == ("base", "", "generator")
        assert item.sampling == {
            "generator": "openai", "temperature": 0.3, "top_p": None, "max_new_tokens": 20, "seed": 5, "stop": [],
            "special_tokens": "none known",
        }  # fmt: skip
        assert re.fullmatch("[0-9a-f]{64}", item.prompt_digest)
        kept = item.metadata
        assert kept["prompt_tokens"] >= 2 and kept["completion_tokens"] == 6 and kept["finish"] == "stop"
        assert kept["latency_seconds"] > kept["generation_seconds"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("commands_start_warm")
def test_a_server_that_goes_down_leaves_what_was_answered_and_the_same_command_goes_on(folder):
    with serving(FaultyServer(answer)) as server:
        server.fault = lambda number, messages: OK if server.faults[OK] < 12 else "nothing"
        configure(folder, server, concurrency=2, tries=2)
        code, _, err = collect(folder)
        assert code == 1 and "gave no answer" in err and "the same command" in err
        assert [line for line in err.splitlines() if line.startswith("guardlearn: ")] != []
        assert len(stored(folder)) == 12 == server.faults[OK]
        server.fault = lambda number, messages: OK
        assert collect(folder)[0] == 0
        assert server.faults[OK] == len(prompts())  # no answer was asked for again
    complete(folder)


@pytest.mark.slow
def test_killed_a_collection_asks_again_for_no_more_than_was_under_way(folder):
    with serving(FaultyServer(answer, seconds=0.1)) as server:
        configure(folder, server, concurrency=3)
        process = start(folder)
        deadline = time.monotonic() + 60
        while len(server.asked) < 15 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert 0 < len(stored(folder)) < len(prompts())
        assert collect(folder)[0] == 0
        assert len(prompts()) <= len(server.asked) <= len(prompts()) + 3 + 4  # lanes, and answers being judged
    complete(folder)


@pytest.mark.slow
def test_a_refused_key_stops_a_collection_in_one_line_though_the_server_repeats_it(folder, here):
    with serving(FaultyServer(answer, lambda number, messages: "401")) as server:
        configure(folder, server)
        code, out, err = here("collect", "--db", "runs.db")
    lines = [line for line in err.splitlines() if line.startswith("guardlearn: ")]
    assert code == 1 and out == "" and len(lines) == 1 and "refuses the key in OPENAI_API_KEY (401" in lines[0]
    assert stored(folder) == {}


def test_an_unknown_generator_is_refused_before_anything_is_made(folder, here):
    code, _, err = here("collect", "--generator", "openia", "--db", "runs.db")
    assert code == 2 and "did you mean 'openai'" in err and "transformers, openai, replay" in err
    assert not (folder / "runs.db").exists()


@pytest.mark.slow
def test_base_and_adapter_on_a_server_are_paired_by_specification_and_the_evidence_says_so(folder, here):
    with serving(FaultyServer(answer, models=("base", "tuned"))) as server:
        server.fault = lambda number, messages: OK if server.faults[OK] < 30 else "503"
        configure(folder, server, concurrency=2, tries=2)
        code, _, err = here("evaluate", "-o", "out", "--adapter", "tuned")
        assert code == 1 and "gave no answer" in err and not (folder / "out" / "evidence.json").exists()
        server.fault = lambda number, messages: OK
        code, out, err = here("evaluate", "-o", "out", "--adapter", "tuned", "--json")
        assert code == 0, err
    evidence = json.loads(out)
    assert evidence["pairing"] == "specification" and (evidence["model"], evidence["adapter"]) == ("base", "tuned")
    assert evidence["sampling"]["generator"] == "openai" and evidence["digests"]["adapter"] == "name tuned"
    assert evidence["base"]["first_attempt"]["passed"] == 5  # needs 1
    assert evidence["candidate"]["first_attempt"]["passed"] == 10  # needs 1 or 2
    assert "not the sampling noise" in (folder / "out" / "report.html").read_text()
    assert evidence["leakage"].startswith("not checked")
    per_model = Counter(each["model"] for each in server.asked)
    assert server.faults[OK] == len(prompts()) + sum(max(1, min(needs - 1, R_MAX)) for needs in NEEDS)
    assert set(per_model) == {"base", "tuned"}
    lines = (folder / "out" / "attempts.jsonl").read_text().splitlines()
    assert len(lines) - 1 == server.faults[OK]


@pytest.mark.slow
def test_an_adapter_whose_folder_is_named_is_checked_for_what_it_learned_from(folder, here):
    adapter = folder / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    learned = {"manifest": {"specification_digests": [], "groups": ["g3"]}, "result": {}}
    (adapter / "guardlearn.json").write_text(json.dumps(learned))
    with serving(FaultyServer(answer, models=("base", "tuned"))) as server:
        configure(folder, server)
        code, _, err = here("evaluate", "-o", "out", "--adapter", f"tuned={adapter}")
        assert code == 1 and "of group 'g3', which was trained on" in err and server.asked == []
        learned["manifest"]["groups"] = ["elsewhere"]
        (adapter / "guardlearn.json").write_text(json.dumps(learned))
        code, out, err = here("evaluate", "-o", "out", "--adapter", f"tuned={adapter}", "--json")
        assert code == 0, err
        assert here("collect", "--db", "runs.db", "--adapter", "tuned=adapter")[0] == 0
    evidence = json.loads(out)
    assert evidence["leakage"] == "no text and no group of the adapter's training"
    digest = evidence["digests"]["adapter"]
    assert re.fullmatch("[0-9a-f]{64}", digest)
    assert {item.adapter for item in stored(folder).values()} == {digest}
