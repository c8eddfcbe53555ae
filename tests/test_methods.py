"""Jobs that learn from rejections: their rows, their manifest, and what knows of them afterwards."""

import json

import msgspec
import pytest

from guardlearn.dag import rounds
from guardlearn.dag.rounds import State
from guardlearn.digests import digest_file, digest_text
from guardlearn.errors import JobError, LeakageError, NoTracesError, UsageError
from guardlearn.evaluation import check_leakage
from guardlearn.formats import format_traces
from guardlearn.gate import GateConfig
from guardlearn.jobs import TrainingConfig, rebuild_job, write_job
from guardlearn.lineage import items_now
from guardlearn.lineage.records import record_of_folder, records
from guardlearn.loop.config import LoopConfig, LoopSettings
from guardlearn.loop.planning import plan_round, planned_extraction
from guardlearn.predicates import everything
from guardlearn.report import story
from guardlearn.traces import extract_traces
from guardlearn.training.settings import read_job
from guardlearn.types import Side, Specification
from rejections import ACCEPTED, GROUPS, METHODS, REJECTED, chain, config, fill, write
from training_samples import extraction, rewrite, trace


@pytest.fixture
def dag(databases):
    with databases.repository() as dag:
        yield fill(dag)


def rows(folder, name="train"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


# Rows


def test_kto_takes_each_judged_attempt_of_the_chains_once_with_its_verdict(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model, "kto")
    found = {row["id"]: (row["label"], row["weight"]) for row in rows(tmp_path / "job")}
    assert found == {
        "twice0/first_attempt": (False, 1.0),
        "twice1/first_attempt": (False, 0.5),
        "twice1/repair": (False, 0.5),
        "twice2/first_attempt": (True, 0.5),
        "twice2/repair": (True, 0.5),
        "once0/first_attempt": (False, 1.0),
        "once1/first_attempt": (True, 0.5),
        "once1/repair": (True, 0.5),
        "gap0/first_attempt": (False, 1.0),
        "gap2/first_attempt": (True, 0.5),
        "gap2/repair": (True, 0.5),
        "long0/first_attempt": (False, 1.0),
    }
    assert {row["id"] for row in rows(tmp_path / "job", "validation")} == {
        "kept0/first_attempt", "kept1/first_attempt", "kept1/repair",
    }  # fmt: skip
    assert ["long1/first_attempt", "first_attempt row longer than 400 tokens"] in manifest["left_out"]
    assert manifest["item_ids"] == ["twice0", "twice1", "twice2", "once0", "once1", "gap0", "gap2", "long0"]
    assert manifest["validation_item_ids"] == ["kept0", "kept1"]
    by_label = {row["label"]: row for row in rows(tmp_path / "job") if row["id"] in ("twice1/repair", "twice2/repair")}
    assert "Not yet, twice0." in json.dumps(by_label[False]["prompt"])
    assert "Not yet, twice1." not in json.dumps(by_label[False]["prompt"])
    assert "Not yet, twice1." in json.dumps(by_label[True]["prompt"])


def test_kto_sees_chains_that_were_never_solved_where_the_predicate_selects_them(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model, "kto", everything())
    labels = {}
    for row in rows(tmp_path / "job"):
        assert row["item_id"] not in labels or labels[row["item_id"]] == row["label"]
        labels[row["item_id"]] = row["label"]
    assert len({row["id"] for row in rows(tmp_path / "job")}) == len(rows(tmp_path / "job"))
    assert (labels["never0"], labels["never1"], labels["once1"]) == (False, False, True)
    assert "never1" in manifest["rejected_item_ids"]


def test_dpo_pairs_attempts_of_one_chain_and_leaves_out_what_is_too_long(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model, "dpo")
    found = {row["id"]: row["weight"] for row in rows(tmp_path / "job")}
    assert found == {
        "twice2/twice0/first_attempt": 1 / 3, "twice2/twice1/first_attempt": 1 / 3, "twice2/twice1/repair": 1 / 3,
        "once1/once0/first_attempt": 1.0, "gap2/gap0/first_attempt": 1.0,
    }  # fmt: skip
    (pair,) = [row for row in rows(tmp_path / "job") if row["trace_id"] == "once1"]
    assert (pair["chosen"], pair["rejected"]) == ("def once(): return 1", "def once(): return 0")
    assert ["long1/long0/first_attempt", "first_attempt row longer than 400 tokens"] in manifest["left_out"]
    assert manifest["item_ids"] == ["twice0", "twice1", "twice2", "once0", "once1", "gap0", "gap2"]
    assert manifest["rows"] == 5


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_rows_are_those_of_the_formats_for_other_tools(dag, tiny_model, tmp_path, method):
    """The same traces under the same views; only what is too long is missing from the job."""
    settings = config(method)
    write(dag, tmp_path / "job", tiny_model, method)
    shape = "kto" if "kto" in method else "preference"
    traces = [t for t in extract_traces(dag, **settings.extraction).traces if t.side is Side.TRAIN]
    other = {row["id"]: row for row in format_traces(traces, shape)}
    name = "train.second" if "+" in method else "train"
    mine = {row["id"]: row for row in rows(tmp_path / "job", name)}
    assert set(other) - set(mine) == {each for each in other if "long1" in each}
    for row_id, row in mine.items():
        assert row["prompt"] == other[row_id]["prompt"]
        for side in {"chosen", "rejected", "completion"} & set(row):
            assert [{"role": "assistant", "content": row[side]}] == other[row_id][side]


@pytest.mark.parametrize("method", ["sft+kto", "sft+dpo"])
def test_two_stages_have_files_of_their_own_and_every_file_a_digest(dag, tiny_model, tmp_path, method):
    manifest = write(dag, tmp_path / "job", tiny_model, method, second_learning_rate=3e-5, second_epochs=2.0)
    write(dag, tmp_path / "sft", tiny_model, "sft")
    assert (tmp_path / "job" / "train.jsonl").read_bytes() == (tmp_path / "sft" / "train.jsonl").read_bytes()
    places = {path.name for path in (tmp_path / "job").iterdir()} - {"manifest.json"}
    assert places == {"job.toml", "train.jsonl", "validation.jsonl", "train.second.jsonl", "validation.second.jsonl"}
    assert manifest["files"] == {name: digest_file(tmp_path / "job" / name) for name in places}
    assert manifest["format"] == 4
    job = read_job(tmp_path / "job")
    assert [(stage.method, stage.learning_rate, stage.epochs) for stage in job.stages] == [
        ("sft", 2e-4, 3.0), (method.removeprefix("sft+"), 3e-5, 2.0),
    ]  # fmt: skip
    assert manifest["rows"] == sum(len(stage.train) for stage in job.stages)
    path = tmp_path / "job" / "train.second.jsonl"
    path.write_bytes(path.read_bytes().replace(b"once", b"Once"))
    with pytest.raises(JobError, match=r"train\.second\.jsonl was altered"):
        read_job(tmp_path / "job")
    path.unlink()
    with pytest.raises(JobError, match=r"no readable train\.second\.jsonl"):
        read_job(tmp_path / "job")


def test_weights_of_traces_are_weights_of_all_their_rows(dag, tiny_model, tmp_path):
    for method in ("kto", "dpo"):
        write(dag, tmp_path / method, tiny_model, method)
        write(dag, tmp_path / f"{method}-weighted", tiny_model, method, weights={"twice2": 3.0, "kept1": 9.0})
        plain, weighted = (rows(tmp_path / name) for name in (method, f"{method}-weighted"))
        factors = {row["trace_id"]: 3.0 if row["trace_id"] == "twice2" else 1.0 for row in plain}
        assert [row["weight"] for row in weighted] == [row["weight"] * factors[row["trace_id"]] for row in plain]
        validation = [(tmp_path / name / "validation.jsonl").read_bytes() for name in (method, f"{method}-weighted")]
        assert validation[0] == validation[1]


# What knows of them


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_job_is_made_again_byte_for_byte_though_verdicts_changed_since(dag, tiny_model, tmp_path, method):
    predicate = everything() if "kto" in method else "refinement"
    manifest = write(dag, tmp_path / "job", tiny_model, method, predicate, weights={"once1": 0.5})
    dag.append_many(chain("later", REJECTED, ACCEPTED))
    dag.append_event("twice0", "status", value="accepted")
    dag.append_event("gap1", "status", value="rejected")
    dag.append_event("once1", "status", value="rejected")
    dag.append_event("never1", "status", value="accepted")
    dag.append_event("once0", "exclude", reason="a person says so")
    digest = digest_file(tmp_path / "job" / "manifest.json")
    summary = rebuild_job(dag, manifest, tmp_path / "again", tiny_model, digest=digest)
    for path in (tmp_path / "job").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert summary.rows == manifest["rows"]
    altered = manifest | {"attempts": manifest["attempts"] | {"train": manifest["attempts"]["train"][1:]}}
    with pytest.raises(JobError, match="gives other rows than were trained"):
        rebuild_job(dag, altered, tmp_path / "third", tiny_model)
    altered = manifest | {"item_ids": manifest["item_ids"][1:]}
    with pytest.raises(JobError, match="its item_ids disagree"):
        rebuild_job(dag, altered, tmp_path / "third", tiny_model)
    dag.redact("twice1", "me", "a secret")
    with pytest.raises(JobError, match="item 'twice1' was redacted") as refused:
        rebuild_job(dag, manifest, tmp_path / "fourth", tiny_model)
    assert "\n" not in str(refused.value)


def test_an_adapter_of_rejections_is_found_by_what_happened_to_a_rejected_attempt(dag, tiny_model, tmp_path):
    write(dag, tmp_path / "job", tiny_model, "dpo", views=("first_attempt",))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    manifest = json.loads((tmp_path / "job" / "manifest.json").read_text(encoding="utf-8"))
    (adapter / "guardlearn.json").write_text(json.dumps({"manifest": manifest, "result": {}}), encoding="utf-8")
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    record = record_of_folder(adapter)
    assert {"once0", "once1", "kept0", "kept1"} <= set(record.item_ids)
    assert "once0" in record.rejected_item_ids
    assert "once1" not in record.rejected_item_ids
    assert items_now(dag, record).since["verdict changed"] == []
    dag.append_event("once0", "status", value="accepted")
    dag.append_event("twice2", "status", value="rejected")
    dag.append_event("gap0", "exclude", reason="a person says so")
    now = items_now(dag, record)
    assert set(now.since["verdict changed"]) == {"once0", "twice2"}
    assert now.since["excluded"] == ["gap0"]


def test_leakage_is_seen_of_a_specification_that_only_a_rejected_attempt_had(tiny_model, tmp_path):
    one = trace(1)
    before = msgspec.structs.replace(
        one.item, id="first", status=REJECTED, artifact="no", specification="Asked otherwise at first.", history=()
    )
    amended = msgspec.structs.replace(one, attempts=(before,))
    traces = [amended, *(msgspec.structs.replace(trace(n), attempts=(before,)) for n in (2,))]
    write_job(tmp_path / "job", extraction(*traces), tiny_model, config("kto"))
    manifest = json.loads((tmp_path / "job" / "manifest.json").read_text(encoding="utf-8"))
    assert digest_text("Asked otherwise at first.") in manifest["specification_digests"]
    with pytest.raises(LeakageError, match="was trained on"):
        check_leakage([Specification(id="s", specification="Asked otherwise at first.")], manifest)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_rounds_plan_keeps_its_attempts_whatever_their_verdicts_are_later(dag, tiny_model, tmp_path, method):
    held_out = [Specification(id=f"h{n}", specification=f"Hold {n}.", group=f"h{n}") for n in range(12)]
    for spec in held_out:
        dag.assign_side(spec.group, Side.HELD_OUT)
    dag.register(held_out)
    loop = LoopConfig(model=str(tiny_model), min_new_traces=1)
    settings = LoopSettings(loop=loop, training=config(method), promotion=GateConfig())
    number, plan = plan_round(dag, settings, held_out, {})
    plan = json.loads(json.dumps(plan))
    write_job(tmp_path / "job", planned_extraction(dag, plan), tiny_model, settings.training)
    dag.append_event("twice0", "status", value="accepted")
    dag.append_event("once1", "status", value="rejected")
    dag.append_many(chain("later", REJECTED, ACCEPTED))
    write_job(tmp_path / "later", planned_extraction(dag, plan), tiny_model, settings.training)
    for path in (tmp_path / "job").iterdir():
        assert (tmp_path / "later" / path.name).read_bytes() == path.read_bytes()
    manifest = json.loads((tmp_path / "job" / "manifest.json").read_text(encoding="utf-8"))
    assert (number, {"twice0", "twice2", "once0"} <= set(manifest["item_ids"])) == (1, True)
    with dag.writing() as connection:
        rounds.append(connection, loop.learner, number, State.PLANNED, plan)
    (record,) = records(dag)
    assert set(manifest["item_ids"]) <= set(record.item_ids)
    assert {"twice0", "once0"} <= set(record.rejected_item_ids)


@pytest.mark.parametrize("method", ["kto", "dpo"])
def test_a_report_shows_the_accepted_side(dag, tiny_model, tmp_path, method):
    write(dag, tmp_path / "job", tiny_model, method)
    for name, text in (("result.json", "{}"), ("metrics.jsonl", '{"step": 1, "loss": 1.0}\n')):
        (tmp_path / "job" / name).write_text(text, encoding="utf-8")
    told = story(dag, tmp_path / "job", tiny_model)
    assert told.traces
    for each in told.traces:
        assert each.attempts[-1].status is ACCEPTED
        assert each.rows


# What is refused


@pytest.mark.parametrize("method", METHODS)
def test_traces_without_their_attempts_are_refused(dag, tiny_model, tmp_path, method):
    with pytest.raises(UsageError, match=r"came without its .*; extract with attempts=True") as refused:
        write_job(tmp_path / "job", extract_traces(dag), tiny_model, config(method))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "job").exists()


def test_one_verdict_alone_and_no_pair_are_refused_in_one_line(databases, tiny_model, tmp_path):
    with databases.repository() as dag:
        for side, group in GROUPS.items():
            dag.assign_side(group, side)
        dag.append_many(
            [*chain("easy", ACCEPTED), *chain("plain", ACCEPTED), *chain("kept", ACCEPTED, group="f-validation")]
        )
        for method, match in (("kto", "all rows of the train side were accepted"), ("sft+dpo", "no row to train dpo")):
            with pytest.raises(NoTracesError, match=match) as refused:
                write(dag, tmp_path / "job", tiny_model, method, "all")
            assert "\n" not in str(refused.value)
    assert not (tmp_path / "job").exists()


@pytest.mark.parametrize(
    ("setting", "match"),
    [
        ({"method": "grpo"}, "method 'grpo' is unknown; choose sft or kto or dpo"),
        ({"method": "kto", "batch_size": 1}, "batch_size is 1; kto compares"),
        ({"method": "sft+kto", "batch_size": 1}, r"batch_size is 1; sft\+kto compares"),
        ({"beta": 0.0}, "beta is 0.0; it must be above 0"),
        ({"sft_term": -1.0}, "sft_term is -1.0; it must be 0 or more"),
        ({"second_epochs": 0.0}, "second_epochs is 0.0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"eval_steps": 0}, "eval_steps is 0"),
        ({"early_stopping": -1}, "early_stopping is -1"),
        ({"keep": "first"}, "keep 'first' is unknown; choose last or best"),
    ],
)
def test_a_setting_out_of_its_range_is_refused_in_one_line(setting, match):
    with pytest.raises(UsageError, match=match) as refused:
        TrainingConfig(**setting)
    assert "\n" not in str(refused.value)


def test_a_method_that_this_trainer_does_not_know_is_refused(dag, tiny_model, tmp_path):
    write(dag, tmp_path / "job", tiny_model, "dpo")
    text = (tmp_path / "job" / "job.toml").read_text(encoding="utf-8")
    rewrite(tmp_path / "job", "job.toml", text.replace('"dpo"', '"orpo"'))
    with pytest.raises(JobError, match="method 'orpo' is unknown to this trainer, which knows sft, kto, dpo"):
        read_job(tmp_path / "job")


def test_best_weights_need_a_validation_side(databases, tiny_model, tmp_path):
    with databases.repository() as dag:
        fill(dag)
        extraction = extract_traces(dag, sides=(Side.TRAIN,))
        for setting in ({"keep": "best"}, {"early_stopping": 2}):
            with pytest.raises(UsageError, match="no row of the validation side"):
                write_job(tmp_path / "job", extraction, tiny_model, config("sft", **setting))
        write_job(tmp_path / "job", extraction, tiny_model, config("sft"))
