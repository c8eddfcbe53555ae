"""The guide's section 7 for real: increments over a growing ℛ, checkpoints in ℛ, kill -9, integrity (errata 41-45)."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import textwrap
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from guardlearn import (
    ArtifactDAG,
    ArtifactStatus,
    RepositoryItem,
    Side,
    add_lora_adapters,
    extract_training_data,
    incremental_training_loop,
    load_model_for_training,
    load_training_checkpoint,
    save_training_checkpoint,
)
from guardlearn.adapters import adapter_digest, read_manifest
from guardlearn.errors import ModelError, RepositoryError, UsageError
from guardlearn.training.weights import adapter_weights
from warm import kill

START = datetime(2026, 1, 1, tzinfo=UTC)
ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING


def refinement(number: int, status: ArtifactStatus = ACCEPTED, at: int | None = None) -> list[RepositoryItem]:
    """One chain: an attempt rejected, the next one `status`; ids r<number> and a<number>."""
    moment = START + timedelta(minutes=number if at is None else at)
    given = {
        "specification": f"Write the function plus_{number}. It returns x plus {number}.",
        "group": f"family-{number % 4}",
        "created_at": moment,
    }
    code = f"def plus_{number}(x):\n    return x + {number}\n"
    return [
        RepositoryItem(id=f"r{number}", artifact=code, status=REJECTED, feedback="Start with a docstring.", **given),
        RepositoryItem(id=f"a{number}", artifact=f"# ok\n{code}", status=status, parent_id=f"r{number}", **given),
    ]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        for family in range(4):
            dag.assign_side(f"family-{family}", Side.TRAIN)
        yield dag


def fresh(tiny_model):
    model, tokenizer = load_model_for_training(str(tiny_model), 512, load_in_4bit=False)
    return add_lora_adapters(model), tokenizer


def trained(dag) -> list[str]:
    """Every item id that a checkpoint trained, in order, from what the adapters' manifests and ℛ say."""
    with dag.reading() as connection:
        rows = connection.exec_driver_sql(
            "SELECT items.id FROM trained JOIN items ON items.seq = trained.seq ORDER BY trained.checkpoint, items.seq"
        )
        return [name for (name,) in rows]


def learn(dag, model, tokenizer, folder, **options):
    given = {"checkpoint_interval": 4, "min_new_traces": 2, "epochs": 1.0, "output_dir": folder, "learner": "me"}
    return incremental_training_loop(dag, model, tokenizer, **given | options)


@pytest.mark.slow
def test_three_increments_while_items_arrive_lose_none_and_train_none_twice(dag, tiny_model, tmp_path):
    for number in range(6):
        dag.append_many(refinement(number))
    dag.append_many(refinement(90, PENDING, at=0))  # an old item whose verdict comes late
    model, tokenizer = fresh(tiny_model)
    arrivals = iter([[refinement(6, at=1), refinement(7, at=1)], [refinement(8)], [], []])

    def meanwhile(step, steps, note):
        if step == 0:  # as an increment begins
            for chain in next(arrivals):
                dag.append_many(chain)
            if dag.get_item("a90").status is PENDING:
                dag.append_event("a90", "status", value="accepted", actor="importer")

    result = learn(dag, model, tokenizer, tmp_path / "out", on_progress=meanwhile)
    assert [each.traces for each in result.checkpoints] == [4, 2, 4]
    assert [each.traces_processed for each in result.checkpoints] == [4, 6, 10]
    wanted = {f"a{number}" for number in (*range(9), 90)}
    assert sorted(trained(dag)) == sorted(wanted)  # each once: a list, not a set
    assert result.waiting == 0
    assert dag.verify().problems == []
    assert learn(dag, model, tokenizer, tmp_path / "out").checkpoints == []
    last = load_training_checkpoint(dag)
    manifest = read_manifest(Path(last["adapter"]))
    assert sorted(manifest["item_ids"]) == sorted(wanted)
    assert last["traces_processed"] == 10
    parents = [each.parent_adapter for each in result.checkpoints]
    assert parents == ["", *(each.adapter_digest for each in result.checkpoints[:-1])]


@pytest.mark.slow
def test_erratum_41_a_late_verdict_and_items_of_one_moment_are_seen(dag, tiny_model, tmp_path):
    dag.append_many([item for number in range(3) for item in refinement(number, at=5)])
    dag.append_many(refinement(9, PENDING, at=1))
    model, tokenizer = fresh(tiny_model)
    learn(dag, model, tokenizer, tmp_path, checkpoint_interval=2, min_new_traces=1)
    assert sorted(trained(dag)) == ["a0", "a1", "a2"]
    dag.append_event("a9", "status", value="accepted", actor="late")  # created long before the checkpoint
    dag.append_many(refinement(4, at=-100))  # synced late, created before everything
    learn(dag, model, tokenizer, tmp_path, min_new_traces=1)
    assert sorted(trained(dag)) == ["a0", "a1", "a2", "a4", "a9"]


def test_erratum_42_the_checkpoint_points_at_the_last_item_trained(dag, tiny_model, tmp_path):
    for number in (3, 1, 2):  # stored out of order
        dag.append_many(refinement(number))
    model, tokenizer = fresh(tiny_model)
    learn(dag, model, tokenizer, tmp_path)
    found = load_training_checkpoint(dag, "me")
    assert found["last_item_id"] == "a3"  # the newest by creation, which is the order of training
    assert datetime.fromisoformat(found["timestamp"]).tzinfo is not None


@pytest.mark.slow
def test_erratum_43_checkpoints_live_in_the_repository_by_learner(dag, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert load_training_checkpoint(dag) == {
        "last_item_id": None, "timestamp": None, "traces_processed": 0,
        "number": 0, "learner": None, "seq": 0, "adapter": None, "adapter_digest": None,
    }  # fmt: skip
    dag.append_many([item for number in range(3) for item in refinement(number)])
    model, tokenizer = fresh(tiny_model)
    learn(dag, model, tokenizer, tmp_path / "one")
    other, _ = fresh(tiny_model)
    result = learn(dag, other, tokenizer, tmp_path / "two", learner="another", filter_fn="all")
    assert result.checkpoints[0].traces == 3  # each learner learns everything once
    assert list(Path.cwd().iterdir()) == []
    with pytest.raises(UsageError, match="2 learners"):
        load_training_checkpoint(dag)
    assert load_training_checkpoint(dag, "another")["number"] == 2


def test_erratum_44_a_restart_goes_on_from_the_checkpoints_weights(dag, tiny_model, tmp_path):
    import torch

    dag.append_many([item for number in range(3) for item in refinement(number)])
    model, tokenizer = fresh(tiny_model)
    learn(dag, model, tokenizer, tmp_path)
    learned = adapter_weights(model)
    again, _ = fresh(tiny_model)
    assert not all(torch.equal(learned[name], weight) for name, weight in adapter_weights(again).items())
    learn(dag, again, tokenizer, tmp_path)  # nothing new, but the weights are back
    assert all(torch.equal(learned[name], weight) for name, weight in adapter_weights(again).items())


def test_erratum_44_there_is_no_checkpoint_without_a_finished_adapter(dag, tmp_path):
    dag.append_many(refinement(1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no adapter_model"):
        save_training_checkpoint(dag, "a1", 1, adapter=tmp_path / "empty")
    assert load_training_checkpoint(dag)["traces_processed"] == 0


def test_erratum_45_the_interval_counts_and_too_few_traces_wait(dag, tiny_model, tmp_path):
    dag.append_many([item for number in range(7) for item in refinement(number)])
    model, tokenizer = fresh(tiny_model)
    assert learn(dag, model, tokenizer, tmp_path, min_new_traces=8).waiting == 7
    result = learn(dag, model, tokenizer, tmp_path, checkpoint_interval=3, min_new_traces=2)
    assert [each.traces for each in result.checkpoints] == [3, 3]
    assert result.waiting == 1
    for wrong in ({"checkpoint_interval": 0}, {"min_new_traces": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            learn(dag, model, tokenizer, tmp_path, **wrong)


def test_an_exact_duplicate_of_what_was_trained_is_not_trained_again(dag, tiny_model, tmp_path):
    dag.append_many([item for number in range(2) for item in refinement(number)])
    model, tokenizer = fresh(tiny_model)
    learn(dag, model, tokenizer, tmp_path)
    for item in (dag.get_item("r0"), dag.get_item("a0")):
        copy = {"id": f"{item.id}-copy", "parent_id": item.parent_id and "r0-copy"}
        fields = "artifact specification status feedback group created_at".split()
        dag.append(RepositoryItem(**copy, **{name: getattr(item, name) for name in fields}))
    result = learn(dag, model, tokenizer, tmp_path, min_new_traces=1)
    assert (result.checkpoints, result.dropped) == ([], {"exact duplicate of an earlier trace": 1})


def test_an_artifact_longer_than_the_model_reads_is_dropped_counted_and_never_waited_for(dag, tiny_model, tmp_path):
    dag.append_many([item for number in range(2) for item in refinement(number)])
    rejected, accepted = refinement(5)
    dag.append_many([rejected, msgspec.structs.replace(accepted, artifact="x = 1\n" * 1000)])
    model, tokenizer = fresh(tiny_model)
    result = learn(dag, model, tokenizer, tmp_path, min_new_traces=1)
    assert sorted(trained(dag)) == ["a0", "a1"]
    assert (len(result.checkpoints), result.waiting) == (1, 0)
    assert result.dropped == {
        "first_attempt row longer than 512 tokens": 1,
        "repair row longer than 512 tokens": 1,
    }


PROGRAM = """
    import sys
    from guardlearn import ArtifactDAG, add_lora_adapters, incremental_training_loop, load_model_for_training

    model, tokenizer = load_model_for_training(sys.argv[2], 512, load_in_4bit=False)
    with ArtifactDAG.load(sys.argv[1]) as dag:
        incremental_training_loop(
            dag, add_lora_adapters(model), tokenizer, 2, 2, epochs=4.0, batch_size=2, output_dir=sys.argv[3],
            learner="me", on_progress=lambda step, steps, note: print(step, flush=True),
        )
"""


@pytest.mark.slow
def test_killed_in_any_increment_the_same_program_ends_in_the_same_adapter(dag, tiny_model, tmp_path, warm):
    dag.append_many([item for number in range(6) for item in refinement(number)])
    dag.close()
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM))

    def start(db, out):
        command = [warm.python, str(tmp_path / "program.py"), str(db), str(tiny_model), str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    whole = shutil.copy(tmp_path / "runs.db", tmp_path / "whole.db")
    process = start(whole, tmp_path / "whole")
    process.communicate(timeout=600)
    assert process.returncode == 0
    with ArtifactDAG.load(whole) as unbroken:
        expected = load_training_checkpoint(unbroken)
    process = start(tmp_path / "runs.db", tmp_path / "killed")
    starts = 0
    for line in process.stdout:
        starts += line.strip() == "0"
        if starts == 2 and line.strip() == "3":  # in the middle of the second increment
            kill(process)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert load_training_checkpoint(dag)["traces_processed"] == 2
    process = start(tmp_path / "runs.db", tmp_path / "killed")
    process.communicate(timeout=600)
    assert process.returncode == 0
    assert sorted(trained(dag)) == [f"a{number}" for number in range(6)]
    found = load_training_checkpoint(dag)
    assert (found["adapter_digest"], found["number"]) == (expected["adapter_digest"], 3)


def test_an_adapter_finished_without_its_checkpoint_is_adopted(dag, tiny_model, tmp_path):
    dag.append_many([item for number in range(4) for item in refinement(number)])
    dag.close()
    before = shutil.copy(tmp_path / "runs.db", tmp_path / "before.db")
    model, tokenizer = fresh(tiny_model)
    with ArtifactDAG.load(tmp_path / "runs.db") as first:
        learn(first, model, tokenizer, tmp_path / "out")
        expected = load_training_checkpoint(first)
    weights = Path(expected["adapter"]) / "adapter_model.safetensors"
    written = weights.stat().st_mtime_ns
    again, _ = fresh(tiny_model)
    with ArtifactDAG.load(before) as torn:  # the crash came before the row
        learn(torn, again, tokenizer, tmp_path / "out")
        found = load_training_checkpoint(torn)
    assert found["adapter_digest"] == expected["adapter_digest"]
    assert weights.stat().st_mtime_ns == written


def test_definition_15_resuming_checks_item_and_adapter(dag, tiny_model, tmp_path):
    dag.append_many([item for number in range(2) for item in refinement(number)])
    model, tokenizer = fresh(tiny_model)
    learn(dag, model, tokenizer, tmp_path / "out")
    folder = Path(load_training_checkpoint(dag)["adapter"])
    weights = folder / "adapter_model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(RepositoryError, match="put it back"):
        learn(dag, model, tokenizer, tmp_path / "out")
    weights.write_bytes(kept)
    assert load_training_checkpoint(dag)["adapter_digest"] == adapter_digest(folder)
    dag.close()
    connection = sqlite3.connect(tmp_path / "runs.db")
    for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {name}")
    connection.execute("UPDATE items SET digest = x'00' WHERE id = 'a1'")
    connection.commit()
    connection.close()
    with pytest.raises(RepositoryError, match="points at item 'a1', which is another"):
        load_training_checkpoint(dag)


def test_two_loops_on_one_repository_do_not_train_an_item_twice(dag, tiny_model, tmp_path):
    import torch

    dag.append_many([item for number in range(3) for item in refinement(number)])
    mine, tokenizer = fresh(tiny_model)
    theirs, _ = fresh(tiny_model)
    before = adapter_weights(mine)

    def other(step, steps, note):
        if step == 0:
            with ArtifactDAG.load(tmp_path / "runs.db") as another:
                assert learn(another, theirs, tokenizer, tmp_path / "theirs").checkpoints

    with pytest.raises(RepositoryError, match="was trained by 'me' already"):
        learn(dag, mine, tokenizer, tmp_path / "mine", on_progress=other)
    assert sorted(trained(dag)) == ["a0", "a1", "a2"]
    assert all(torch.equal(before[name], weight) for name, weight in adapter_weights(mine).items())


def test_a_users_own_loop_keeps_its_checkpoints_too(dag, tmp_path, tiny_model):
    from guardlearn import save_trained_model, train_on_traces

    dag.append_many([item for number in range(3) for item in refinement(number)])
    model, tokenizer = fresh(tiny_model)
    rows = extract_training_data(dag)
    train_on_traces(model, tokenizer, rows, output_dir=str(tmp_path / "work"), max_steps=1)
    save_trained_model(model, tokenizer, str(tmp_path / "adapter"))
    ids = [row["metadata"]["item_id"] for row in rows]
    saved = save_training_checkpoint(dag, ids[-1], len(ids), adapter=tmp_path / "adapter", item_ids=ids)
    assert load_training_checkpoint(dag)["last_item_id"] == saved.item_id == "a2"
    for item_ids, processed in ((ids[-1:], 4), (ids[-1:], 9), (["nothing"], 4)):
        with pytest.raises(RepositoryError):
            save_training_checkpoint(dag, item_ids[-1], processed, adapter=tmp_path / "adapter", item_ids=item_ids)
    assert json.dumps(load_training_checkpoint(dag))


def test_a_model_without_adapters_or_with_others_is_refused(dag, tiny_model, tmp_path):
    dag.append_many([item for number in range(2) for item in refinement(number)])
    bare, tokenizer = load_model_for_training(str(tiny_model), 512, load_in_4bit=False)
    with pytest.raises(ModelError, match="carries no adapters"):
        learn(dag, bare, tokenizer, tmp_path)
    learn(dag, add_lora_adapters(bare), tokenizer, tmp_path)
    wider, _ = load_model_for_training(str(tiny_model), 512, load_in_4bit=False)
    with pytest.raises(ModelError, match="do not fit"):
        learn(dag, add_lora_adapters(wider, r=4), tokenizer, tmp_path)
