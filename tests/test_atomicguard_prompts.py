"""Layout "atomicguard": prompts as AtomicGuard 2.39.1 sent them, to the character.

The expected prompts were made by AtomicGuard's own code (tests/data/atomicguard_prompts.json says how); where that
package is installed, it is asked again.
"""

import hashlib
import importlib.util
import json
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pytest

from guardlearn import ArtifactDAG, PromptConfig, Renderer, RepositoryItem, Specification, load_prompts
from guardlearn.credentials import find_credentials
from guardlearn.dag.importers.atomicguard import import_atomicguard
from guardlearn.dag.importers.atomicguard_prompts import dependency_contents, with_dependencies
from guardlearn.errors import DataError, UsageError
from guardlearn.formats import format_traces
from guardlearn.jobs import TrainingConfig, write_job
from guardlearn.predicates import everything
from guardlearn.traces import extract_traces
from guardlearn.types import ArtifactStatus, FeedbackEntry, Side

DATA = Path(__file__).parent / "data"
STORES = DATA / "stores"
MADE = json.loads((DATA / "atomicguard_prompts.json").read_text(encoding="utf-8"))
CASES = {case["name"]: case for case in MADE["cases"]}
CONFIG = PromptConfig(layout="atomicguard", templates=MADE["templates"])


def item(case, **more):
    given = {"id": "i", "artifact": "a", "status": ArtifactStatus.ACCEPTED, **more}
    kept = {"atomicguard": case.get("kept", {})}
    texts = {name: case[name] for name in ("specification", "constraints")}
    return RepositoryItem(**given, **texts, action_pair_id=case["action_pair"], metadata=kept)


def history(case):
    return [FeedbackEntry(artifact=artifact, feedback=feedback) for artifact, feedback in case["history"]]


def asked(case, config=CONFIG, **more):
    renderer = Renderer(config=config, dependencies=case.get("contents", {}))
    about = item(case)
    return renderer.messages(about.specification, about.constraints, history(case), about=about, **more)


@pytest.mark.parametrize("name", CASES)
def test_the_prompt_is_the_one_atomicguard_sent(name):
    assert asked(CASES[name]) == [{"role": "user", "content": CASES[name]["expected"]}]


@pytest.mark.skipif(importlib.util.find_spec("atomicguard") is None, reason="atomicguard 2.39.1 is not installed")
@pytest.mark.parametrize("name", CASES)
def test_atomicguard_itself_says_so(name):
    from types import SimpleNamespace

    from atomicguard.domain.models import AmbientEnvironment, Context
    from atomicguard.domain.prompts import PromptTemplate

    case, templates = CASES[name], MADE["templates"]
    kept, contents = case.get("kept", {}), case.get("contents", {})
    order = kept.get("dependency_order", kept.get("dependency_artifacts", {}))
    template = {key: text or None for key, text in templates[case["action_pair"]].items() if key != "artifact_context"}
    repository = SimpleNamespace(get_artifact=lambda name: SimpleNamespace(content=contents[name]))
    context = Context(
        ambient=AmbientEnvironment(repository=repository, constraints=case["constraints"]),
        specification=case["specification"],
        feedback_history=tuple(tuple(pair) for pair in case["history"]),
        dependency_artifacts=tuple((key, kept["dependency_artifacts"][key]) for key in order),
        escalation_feedback=tuple(kept.get("escalation_feedback", ())),
        dependency_types=tuple(kept.get("dependency_types", {}).items()),
        dependency_artifact_contexts=tuple(
            (key, templates[key]["artifact_context"]) for key in order if "artifact_context" in templates[key]
        ),
    )
    sections = {key: template.get(key) or "" for key in ("role", "constraints", "task")}
    assert PromptTemplate(**{**template, **sections}).render(context) == case["expected"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    target = tmp_path_factory.mktemp("prompts") / "runs.db"
    with ArtifactDAG.create(target) as dag:
        import_atomicguard(dag, STORES / "fs_2_39_1")
        yield dag


@pytest.mark.parametrize("source", ["fs_2_39_1/ap_context.json", "sqlite_2_39_1/web.db"])
def test_every_item_of_a_store_is_asked_as_atomicguard_asked(store, source):
    config = load_prompts(STORES / source)
    every = list(store.extract(everything()))
    renderer = Renderer(config=config, dependencies=dependency_contents(store, every))
    found = {}
    for each in every:
        assert renderer.obstacle(each, each.history) == "" and renderer.unknown_dependencies(each) == []
        (message,) = renderer.messages(each.specification, each.constraints, each.history, about=each)
        found[each.id] = hashlib.sha256(message["content"].encode()).hexdigest()
    assert found == MADE["items"]
    assert len(found) == 60 and any(each.metadata["atomicguard"].get("dependency_artifacts") for each in every)


def test_the_order_of_dependencies_survives_the_store(tmp_path):
    folder = tmp_path / "dag"
    shutil.copytree(STORES / "fs_2_39_1" / "dag", folder)
    values = {path: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("objects/*/*.json")}
    path, value = next(pair for pair in values.items() if pair[1]["context"]["dependency_artifacts"])
    built_on = next(iter(value["context"]["dependency_artifacts"].values()))
    value["context"]["dependency_artifacts"] = {"g_z": built_on, "g_config": built_on, "g_a": built_on}
    path.write_text(json.dumps(value))
    templates = {name: {"artifact_context": f"what {name} made"} for name in ("g_z", "g_config", "g_a")}
    templates[value["action_pair_id"]] = templates.get(value["action_pair_id"], {}) | {"task": "t"}
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        import_atomicguard(dag, folder)
        found = dag.get_item(value["artifact_id"])
        config = PromptConfig(layout="atomicguard", templates=templates)
        renderer = Renderer(config=config, dependencies=dependency_contents(dag, [found]))
    content = renderer.messages("s", about=found)[-1]["content"]
    assert content.index("what g_z") < content.index("what g_config") < content.index("what g_a")


def test_a_dependency_that_is_not_here_is_counted(store):
    case = CASES["a dependency that is not there is left out"]
    renderer = Renderer(config=CONFIG, dependencies=case["contents"])
    assert renderer.unknown_dependencies(item(case)) == ["gone"]
    never_shown = CASES["dependencies"]["kept"] | {"dependency_artifacts": {"c": "id-c"}, "dependency_order": []}
    assert Renderer(config=CONFIG).unknown_dependencies(item(CASES["dependencies"] | {"kept": never_shown})) == []
    assert Renderer().unknown_dependencies(item(case)) == []


def test_a_redacted_dependency_is_not_here(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        dag.append(RepositoryItem(id="d", artifact="secret", specification="s", status=ArtifactStatus.ACCEPTED))
        one = item(
            {"action_pair": "a", "specification": "s", "constraints": "", "kept": {"dependency_artifacts": {"b": "d"}}}
        )
        assert dependency_contents(dag, [one]) == {"d": "secret"}
        dag.redact("d", "ann", "a key")
        assert dependency_contents(dag, [one]) == {}


def test_texts_that_no_row_can_hold(tmp_path):
    kept = {"dependency_artifacts": {"b": "d"}, "escalation_feedback": ["torn \ud800"]}
    one = item({"action_pair": "a", "specification": "s", "constraints": "", "kept": kept})
    assert Renderer(config=CONFIG).obstacle(one) == "NUL or lone surrogates in its escalation feedback"
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        dag.append(RepositoryItem(id="d", artifact="a\0", specification="s", status=ArtifactStatus.ACCEPTED))
        assert dependency_contents(dag, [one]) == {}


def test_keys_in_what_a_prompt_adds_are_found(tmp_path):
    key = "AKIA" + "QWERTYUIOPASDFGH"
    kept = {"dependency_artifacts": {"b": "d"}, "escalation_feedback": [f"use {key}"]}
    one = item({"action_pair": "a", "specification": "s", "constraints": "", "kept": kept})
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        dag.append(RepositoryItem(id="d", artifact=f'k = "{key}"', specification="s", status=ArtifactStatus.ACCEPTED))
        dag.append(one)
        traces = extract_traces(dag, everything(), sides=tuple(Side)).traces
        renderer = with_dependencies(Renderer(config=CONFIG), dag, [one])
    (own, found) = (find_credentials([t], renderer=renderer) for t in sorted(traces, key=lambda t: t.item.id))
    assert own[0].kinds == {"AWS Access Key": ["artifact"]}
    assert found[0].kinds == {"AWS Access Key": ["dependency", "escalation"]}
    assert find_credentials([trace for trace in traces if trace.item.id == "i"], renderer=Renderer()) == []


def test_chat_mode_sends_rejections_as_turns():
    templates = {"a": MADE["templates"]["a"] | {"feedback_mode": "chat", "task": "Do it", "constraints": ""}}
    case = CASES["a retry with all of H"]
    config = PromptConfig(layout="atomicguard", templates=templates)
    first, *turns = asked(case, config)
    assert "RETRY HISTORY" not in first["content"] and first["content"].endswith("# TASK\nDo it")
    assert [turn["role"] for turn in turns] == ["assistant", "user"] * 3
    assert [turns[0]["content"], turns[1]["content"]] == ["x = 1", "NO:\nwrong: {feedback} {specification}\nbraces {x}"]


def test_a_system_message_is_the_users_to_name():
    config = PromptConfig(layout="atomicguard", templates=MADE["templates"], system="You are a Python assistant.")
    case = CASES["first attempt"]
    assert asked(case, config)[0] == {"role": "system", "content": "You are a Python assistant."}
    assert asked(case, config)[1:] == asked(case)
    assert load_prompts(STORES / "sqlite_2_39_1" / "web.db", system="S").system == "S"


def test_the_budget_takes_the_oldest_history_and_the_prompt_says_so():
    case = CASES["a retry with all of H"]
    about, renderer = item(case), Renderer(config=CONFIG)

    def words(messages):
        return sum(len(message["content"].split()) for message in messages)

    whole = words(asked(case))
    fitted = renderer.fit(about.specification, about.constraints, history(case), words, whole - 1, about=about)
    assert (
        "# RETRY HISTORY (Current Cycle)\n\n(earlier feedback left out)\n\n--- Attempt 1 ---\nNO:\n\n"
        in fitted[0]["content"]
    )
    assert renderer.fit(about.specification, about.constraints, history(case), words, 5, about=about) is None


def test_special_tokens_are_broken_up():
    renderer = Renderer(config=CONFIG, special_tokens=("<|im_end|>",))
    (message,) = renderer.messages("say <|im_end|>", about=item(CASES["first attempt"]))
    assert "<|im_end|>" not in message["content"]


# -- settings, digests, refusals


def test_the_settings_make_the_same_prompts_and_move_the_digest():
    settings = json.loads(json.dumps(Renderer(config=CONFIG).settings()))
    assert PromptConfig(**settings) == CONFIG
    other = {**MADE["templates"], "a": MADE["templates"]["a"] | {"task": "else"}}
    digests = {
        Renderer().digest,
        Renderer(config=CONFIG).digest,
        Renderer(config=PromptConfig(layout="atomicguard", templates=other)).digest,
        Renderer(config=PromptConfig(layout="atomicguard", templates=other, system="S")).digest,
    }
    assert len(digests) == 4
    assert Renderer(config=CONFIG, dependencies={"x": "y"}).digest == Renderer(config=CONFIG).digest


def test_guardlearns_own_prompts_keep_their_digest_and_settings():
    assert Renderer().settings() == {"retry": "feedback", "layout": "plain"}
    assert (
        Renderer().digest == "461e78720e147225d165a7fe506125238821f37fb7e5d82d9e3d5c3b1de1b1c5"
    )  # of earlier adapters


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layout": "atomicguard"}, "layout 'atomicguard' with 0 templates: atomicguard needs them"),
        ({"templates": {"a": {}}}, "layout 'plain' with 1 templates"),
        ({"system": "S"}, "no other layout takes them or a system message"),
        ({"layout": "atomicguard", "templates": {"a": {}}, "retry": "artifact"}, "leave retry out"),
        ({"layout": "atomicguard", "templates": {"a": {"rolle": "x"}}}, "template 'a': 'rolle' is no text of role"),
        ({"layout": "atomicguard", "templates": {"a": {"role": 1}}}, "template 'a': 'role' is no text of role"),
        (
            {"layout": "atomicguard", "templates": {"a": {"feedback_wrapper": "{x}"}}},
            "feedback_wrapper cannot be filled",
        ),
        ({"layout": "atomicguard", "templates": {"a": {"feedback_wrapper": "{"}}}, "feedback_wrapper cannot be filled"),
        (
            {"layout": "atomicguard", "templates": {"a": {"feedback_mode": "voice"}}},
            "'voice' is neither inline nor chat",
        ),
    ],
)
def test_prompts_that_cannot_be_are_refused(given, said):
    with pytest.raises(UsageError, match=said):
        PromptConfig(**given)


def test_what_has_no_template_cannot_be_asked():
    renderer = Renderer(config=CONFIG)
    stranger = item(CASES["first attempt"] | {"action_pair": "x"})
    assert renderer.obstacle(stranger) == "no template for its action pair"
    wordless = item(CASES["first attempt"] | {"action_pair": "d"})
    assert renderer.obstacle(wordless) == "" and "no feedback_wrapper" in renderer.obstacle(wordless, ["h"])
    with pytest.raises(
        UsageError, match=r"action pair .x. cannot be asked as AtomicGuard asks: no template .* a, b, c, d"
    ):
        renderer.messages("s", about=stranger)
    with pytest.raises(UsageError, match="no template for its action pair"):
        renderer.messages("s")
    spec = Specification(id="s", specification="a sort", action_pair_id="c")
    assert renderer.messages("a sort", about=spec)[0]["content"].endswith("# TASK\nt a sort {g_dep} {unknown}")


def test_files_that_hold_no_templates(tmp_path):
    for name, content, said in (
        ("a.json", "[]", "no object of action pairs"),
        ("b.json", "{}", "holds no template"),
        ("c.json", "{", "holds no ap_context"),
        ("d.json", '{"a": {"feedback_wrapper": "{0}"}}', "feedback_wrapper cannot be filled"),
        ("e.json", '{"a": {"role": 7}}', "'role' is no text of"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=said):
            load_prompts(tmp_path / name)
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE t (x)")
    with pytest.raises(DataError, match="no column ap_id, constraints, escalation_feedback_wrapper"):
        load_prompts(tmp_path / "other.db")
    with pytest.raises(DataError, match="cannot be read"):
        load_prompts(tmp_path / "nowhere.db")


def test_the_database_is_left_as_it_is(tmp_path):
    path = tmp_path / "web.db"
    shutil.copy(STORES / "sqlite_2_39_1" / "web.db", path)
    before = path.read_bytes()
    assert load_prompts(path) == load_prompts(STORES / "fs_2_39_1" / "ap_context.json")
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["web.db"]


# -- rows, jobs, commands


def test_rows_are_asked_so_and_what_cannot_be_asked_is_counted(store):
    extraction = extract_traces(store, "all")
    config = load_prompts(STORES / "fs_2_39_1" / "ap_context.json")
    contents = dependency_contents(store, (trace.item for trace in extraction.traces))
    renderer = Renderer(config=config, dependencies=contents)
    rows = list(format_traces(extraction.traces, "messages", renderer=renderer, views=("repair",)))
    by_id = {trace.item.id: trace.item for trace in extraction.traces}
    assert rows
    for row in rows:
        content = row["messages"][0]["content"]
        assert hashlib.sha256(content.encode()).hexdigest() == MADE["items"][row["id"].partition("/")[0]]
    fewer = {
        name: template
        for name, template in config.templates.items()
        if name != by_id[rows[0]["id"].partition("/")[0]].action_pair_id
    }
    left = format_traces(
        extraction.traces, renderer=Renderer(config=PromptConfig(layout="atomicguard", templates=fewer))
    )
    kept = list(left)
    assert left.dropped["no template for its action pair"] > 0 and len(kept) < len(extraction.traces) * 2


@pytest.mark.parametrize("format", ["prompt_completion", "alpaca", "sharegpt", "preference", "kto"])
def test_every_format_asks_so(store, format):
    extraction = extract_traces(store, everything(), verdicts=("accepted", "rejected"), attempts=True)
    config = load_prompts(STORES / "fs_2_39_1" / "ap_context.json", system="S")
    contents = dependency_contents(store, (i for t in extraction.traces for i in (t.item, *t.attempts)))
    rows = list(format_traces(extraction.traces, format, renderer=Renderer(config=config, dependencies=contents)))
    text = json.dumps(rows[-1], ensure_ascii=False)
    assert "# ROLE\\nYou are the " in text and "# TASK\\nDo this:" in text
    assert rows[-1].get("system", "S") == "S"


def test_a_job_carries_the_prompts_in_its_manifest_and_digest(store, tiny_model, tmp_path):
    extraction = extract_traces(store, "all")
    config = load_prompts(STORES / "fs_2_39_1" / "ap_context.json")
    contents = dependency_contents(store, (trace.item for trace in extraction.traces))
    settings = TrainingConfig(max_length=4096)
    write_job(tmp_path / "own", extraction, tiny_model, settings, prompts=config, dependencies=contents)
    manifest = json.loads((tmp_path / "own" / "manifest.json").read_text())
    assert PromptConfig(**manifest["prompts"]) == config and "unknown_dependencies" not in manifest
    assert 'layout = "atomicguard"' in (tmp_path / "own" / "job.toml").read_text()
    write_job(tmp_path / "plain", extraction, tiny_model, settings)
    plain = json.loads((tmp_path / "plain" / "manifest.json").read_text())
    assert plain["template_digest"] != manifest["template_digest"]
    assert plain["prompts"] == {"retry": "feedback", "layout": "plain"}
    write_job(tmp_path / "lacking", extraction, tiny_model, settings, prompts=config)
    lacking = json.loads((tmp_path / "lacking" / "manifest.json").read_text())
    built_on = [t.item.id for t in extraction.traces if t.item.metadata["atomicguard"].get("dependency_artifacts")]
    assert lacking["unknown_dependencies"] == built_on != []
    with pytest.raises(UsageError, match="load_prompts"):
        TrainingConfig(layout="atomicguard")


def guardlearn(python, *arguments):
    command = [python, "-m", "guardlearn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_commands_take_atomicguards_prompts(store, tiny_model, tmp_path, warm):
    web, rows = STORES / "sqlite_2_39_1" / "web.db", tmp_path / "rows.jsonl"
    done = guardlearn(warm.python, "extract", store.target, "--policy", "all", "--prompts", web, "-o", rows, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["unknown"] == {"dependency": 0}
    first = json.loads(rows.read_text(encoding="utf-8").splitlines()[0])
    assert first["messages"][0]["content"].startswith("# ROLE\nYou are the ")
    wrong = guardlearn(warm.python, "extract", store.target, "--prompts", rows, "-o", tmp_path / "x.jsonl")
    assert wrong.returncode == 1 and "holds no ap_context" in wrong.stderr
    made = guardlearn(
        warm.python, "train", store.target, "-o", tmp_path / "out", "--model", tiny_model, "--policy", "all",
        "--prompts", web, "--max-steps", "1", "--batch-size", "1", "--json",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    with_it = json.loads((tmp_path / "out" / "adapter" / "guardlearn.json").read_text())["manifest"]
    assert PromptConfig(**with_it["prompts"]) == load_prompts(web)
    trained = (tmp_path / "out" / "job" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(json.loads(row)["prompt"][0]["content"].startswith("# ROLE\n") for row in trained) and trained
