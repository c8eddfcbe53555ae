"""The guide's faults, by their numbers in tests/data/errata.md: each test fails where its fault is put back.

Those of prompts and formats stand in test_formats.py, of backends in test_backends.py, of section 7 in
test_incremental.py, of section 8 in test_improvement.py; docs/guide.md lists them all.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from guardlearn import (
    ArtifactDAG,
    ArtifactStatus,
    GuardlearnError,
    RepositoryItem,
    Side,
    Source,
    Φ_action_pair,
    Φ_all_successes,
    Φ_generator_only,
    Φ_high_value,
    Φ_human_only,
    Φ_recent,
    Φ_refinement,
    Φ_source,
    Φ_status,
    Φ_timestamp_after,
    add_lora_adapters,
    and_,
    extract_training_data,
    get_provenance_chain,
    load_model_for_training,
    or_,
    policy,
    run_training_pipeline,
    sparse_reward,
    train_on_traces,
)
from guardlearn.errors import NoTracesError, UsageError
from guardlearn.gate import GateFigures, Paired, decide
from guardlearn.predicates import POLICIES

START = datetime(2026, 1, 1, tzinfo=UTC)
ACCEPTED, REJECTED = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED
PENDING, SUPERSEDED = ArtifactStatus.PENDING, ArtifactStatus.SUPERSEDED


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        dag.assign_side("train", Side.TRAIN)
        yield dag


def chain(dag, name, *statuses, **given):
    """Append one chain; its items are called name1, name2, …"""
    for number, status in enumerate(statuses, start=1):
        fields = {
            "artifact": f"artifact {name}{number}",
            "specification": f"specification {name}",
            "feedback": "" if status is ACCEPTED else f"feedback {name}{number}",
            "parent_id": f"{name}{number - 1}" if number > 1 else None,
            "created_at": START,
            "group": "train",
        }
        dag.append(RepositoryItem(id=f"{name}{number}", status=status, **fields | given))


def selected(dag, predicate):
    return {item.id for item in dag.extract(predicate)}


def test_erratum_02_nothing_reads_a_global_repository(dag, tmp_path):
    chain(dag, "a", REJECTED, ACCEPTED)
    with ArtifactDAG.create(tmp_path / "other.db") as other:
        other.assign_side("train", Side.TRAIN)
        chain(other, "b", REJECTED, REJECTED, ACCEPTED)
        assert [item.id for item in get_provenance_chain(other.get_item("b3"), other)] == ["b1", "b2", "b3"]
        assert [row["metadata"]["item_id"] for row in extract_training_data(other)] == ["b3"]
        assert selected(other, Φ_refinement(dag)) == {"b3"}  # the argument is the guide's; no item depends on it
    assert [row["metadata"]["item_id"] for row in extract_training_data(dag)] == ["a2"]


def test_erratum_03_a_refinement_has_a_rejected_ancestor_not_just_a_chain(dag):
    chain(dag, "rejected", REJECTED, ACCEPTED)
    chain(dag, "superseded", SUPERSEDED, ACCEPTED)
    chain(dag, "pending", PENDING, ACCEPTED)
    chain(dag, "accepted", ACCEPTED, ACCEPTED)
    chain(dag, "alone", ACCEPTED)
    assert selected(dag, Φ_refinement(dag)) == {"rejected2"}


def test_erratum_04_high_value_counts_rejected_ancestors_and_not_the_item_itself(dag):
    chain(dag, "two", REJECTED, REJECTED, ACCEPTED)
    chain(dag, "three", REJECTED, REJECTED, REJECTED, ACCEPTED)
    chain(dag, "mixed", PENDING, SUPERSEDED, REJECTED, REJECTED, ACCEPTED)
    assert selected(dag, Φ_high_value(dag)) == {"three4"}
    assert selected(dag, Φ_high_value(dag, min_retries=2)) == {"two3", "three4", "mixed5"}


def test_erratum_05_retry_count_counts_rejected_attempts(dag):
    chain(dag, "mixed", PENDING, REJECTED, SUPERSEDED, REJECTED, ACCEPTED)
    (row,) = extract_training_data(dag)
    assert row["metadata"]["retry_count"] == 2


def test_erratum_06_a_circle_ends_and_a_missing_parent_is_told(dag):
    dag.append(RepositoryItem(id="x1", artifact="x", specification="s", status=REJECTED, parent_id="x2", group="train"))
    dag.append(RepositoryItem(id="x2", artifact="y", specification="s", status=ACCEPTED, parent_id="x1", group="train"))
    chain(dag, "orphan", REJECTED, ACCEPTED)
    dag.append(
        RepositoryItem(id="o", artifact="z", specification="o", status=ACCEPTED, parent_id="gone", group="train")
    )
    ids = {name: [item.id for item in get_provenance_chain(dag.get_item(name), dag)] for name in ("x1", "x2", "o")}
    assert all(len(found) <= 2 for found in ids.values()) and ids["o"] == ["o"]
    assert dag.get_item("o").facts.broken and dag.get_item("x2").facts.broken
    assert [row["metadata"]["item_id"] for row in extract_training_data(dag)] == ["orphan2"]


def test_erratum_09_history_holds_artifact_and_feedback_of_each_rejected_attempt(dag):
    chain(dag, "a", REJECTED, PENDING, REJECTED, ACCEPTED)
    assert dag.get_item("a4").feedback_history == [
        {"artifact": "artifact a1", "feedback": "feedback a1"},
        {"artifact": "artifact a3", "feedback": "feedback a3"},
    ]


@pytest.mark.parametrize("spelling", ["GENERATOR", "generated", "generator", Source.GENERATOR])
def test_erratum_10_every_spelling_of_a_source_is_that_source(dag, spelling):
    chain(dag, "a", REJECTED, ACCEPTED, source=spelling)
    chain(dag, "h", REJECTED, ACCEPTED, source="HUMAN")
    assert selected(dag, Φ_generator_only(dag)) == {"a2"} == selected(dag, Φ_refinement() & Φ_source(spelling))
    assert selected(dag, Φ_human_only(dag)) == {"h2"}
    assert extract_training_data(dag, Φ_generator_only())[0]["metadata"]["source"] == "generator"


def test_texts_stand_for_enums_and_unknown_ones_are_refused(dag):
    chain(dag, "a", "REJECTED", "Accepted", source="HUMAN")
    assert (dag.get_item("a1").status, dag.get_item("a2").source) == (REJECTED, Source.HUMAN)
    assert selected(dag, Φ_status("ACCEPTED")) == {"a2"} == selected(dag, Φ_refinement())
    for wrong in ({"status": "fine"}, {"source": "robot"}):
        with pytest.raises(GuardlearnError, match="cannot be stored"):
            dag.append(RepositoryItem(**{"id": "x", "artifact": "x", "specification": "x", "status": ACCEPTED} | wrong))
    with pytest.raises(UsageError, match="accepted"):
        Φ_status("fine")


def test_erratum_12_times_compare_whatever_their_kind(dag):
    east = timezone(timedelta(hours=2))
    moments = {
        "naive": datetime(2026, 3, 1, 11, 0),  # taken as UTC
        "aware": datetime(2026, 3, 1, 12, 30, tzinfo=UTC),
        "text": "2026-03-01T13:00:00",
        "east": datetime(2026, 3, 1, 13, 30, tzinfo=east),  # 11:30 UTC
    }
    for name, moment in moments.items():
        chain(dag, name, ACCEPTED, created_at=moment)
    cutoffs = (datetime(2026, 3, 1, 12), datetime(2026, 3, 1, 14, tzinfo=east), "2026-03-01T12:00:00Z")
    for cutoff in cutoffs:
        assert selected(dag, Φ_timestamp_after(cutoff)) == {"aware1", "text1"}
    assert [item.id for item in dag.extract()] == ["naive1", "east1", "aware1", "text1"]
    with pytest.raises(UsageError, match="is no time"):
        Φ_timestamp_after("last week")


def test_erratum_13_the_order_is_that_of_creation_and_ties_go_by_id(dag):
    chain(dag, "late", ACCEPTED, created_at=START + timedelta(days=1))
    for name in ("c", "a", "b"):
        chain(dag, name, ACCEPTED)
    assert [item.id for item in dag.extract()] == ["a1", "b1", "c1", "late1"]
    rows = extract_training_data(dag, Φ_all_successes())
    assert [row["metadata"]["item_id"] for row in rows] == ["a1", "b1", "c1", "late1"]


def test_erratum_14_recent_is_pinned_to_one_moment_in_what_is_written_down(dag):
    from guardlearn import extract_traces

    now = datetime.now(UTC)
    chain(dag, "old", REJECTED, ACCEPTED, created_at=now - timedelta(days=40))
    chain(dag, "new", REJECTED, ACCEPTED, created_at=now - timedelta(days=1))
    extraction = extract_traces(dag, Φ_recent(dag, days=30))
    assert [trace.item.id for trace in extraction.traces] == ["new2"]
    assert "recent" not in extraction.predicate and "created_after" in extraction.predicate
    assert extract_traces(dag, extraction.predicate).traces == extraction.traces  # C3.2: the same for ever


def test_erratum_17_predicates_are_values(dag):
    chosen = and_(Φ_generator_only(dag), or_(Φ_status("accepted"), Φ_action_pair("sql")))
    assert hash(chosen) == hash(and_(Φ_generator_only(), or_(Φ_status(ACCEPTED), Φ_action_pair("sql"))))
    from guardlearn import parse

    assert parse(repr(chosen)) == chosen
    assert selected(dag, ~and_()) == set() == selected(dag, or_())


def test_erratum_18_repeats_are_trained_once(dag):
    chain(dag, "a", REJECTED, ACCEPTED)
    same = {"specification": "specification a", "group": "train", "created_at": START}
    dag.append(RepositoryItem(id="b1", artifact="artifact a1", status=REJECTED, feedback="feedback a1", **same))
    dag.append(RepositoryItem(id="b2", artifact="artifact a2", status=ACCEPTED, parent_id="b1", **same))
    assert [row["metadata"]["item_id"] for row in extract_training_data(dag)] == ["a2"]


def test_erratum_19_the_sparse_reward_of_definition_23(dag):
    chain(dag, "a", REJECTED, ACCEPTED, PENDING)
    chain(dag, "s", SUPERSEDED)
    rewards = {name: sparse_reward(dag.get_item(name)) for name in ("a1", "a2", "s1")}
    assert rewards == {"a1": -1, "a2": 1, "s1": 1}
    with pytest.raises(ValueError, match="PENDING"):
        sparse_reward(dag.get_item("a3"))
    assert selected(dag, Φ_all_successes()) == {"a2"}  # SUPERSEDED is rewarded, but it is not ACCEPTED


def test_erratum_21_a_mistyped_policy_is_an_error_and_all_six_are_there(dag):
    chain(dag, "a", REJECTED, ACCEPTED)
    assert set(POLICIES) == {"refinement", "all", "generator", "human", "high_value", "recent"}
    for name in POLICIES:
        assert selected(dag, policy(name)) is not None
    with pytest.raises(UsageError, match=r"unknown policy 'generater' \(did you mean generator\?\)"):
        run_training_pipeline(dag, "demo", "out", "generater")


# -- training


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """Trains rows in the process, as the guide does; returns what every step reported, and the trainer."""

    def run(rows, **options):
        model, tokenizer = load_model_for_training(str(tiny_model), 4096, load_in_4bit=False)
        steps = []
        folder = tmp_path_factory.mktemp("training")
        given = {"max_steps": 1, "batch_size": 1, "on_step": steps.append, "output_dir": str(folder)} | options
        trainer = train_on_traces(add_lora_adapters(model), tokenizer, rows, **given)
        return steps, trainer, tokenizer

    return run


def guide_row(completion="def f(): pass", prompt="Write f.", number=0):
    """A row with the guide's own columns."""
    metadata = {"source": "GENERATOR", "retry_count": 1, "item_id": f"i{number}"}
    return {"prompt": prompt, "completion": completion, "text": f"{prompt} {completion}", "metadata": metadata}


def test_errata_31_and_34_trls_defaults_cut_nothing(trained):
    long = " ".join(f"word{number}" for number in range(400))
    (step,), trainer, tokenizer = trained([guide_row(long)])
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Write f."}], add_generation_prompt=True)
    expected = len(prompt["input_ids"]) + len(tokenizer(long)["input_ids"]) + 1  # the end token
    assert expected > 1024  # TRL's default length
    assert step.tokens == expected
    assert trainer.args.max_length is None and trainer.processing_class is not None


def test_errata_32_and_33_loss_falls_on_the_completion_and_its_end_token_alone(trained):
    _, trainer, tokenizer = trained([guide_row("x = 1")])
    (batch,) = list(trainer.get_train_dataloader())
    labels = batch["labels"][0]
    carried = labels[labels != -100].tolist()
    assert carried == [*tokenizer("x = 1", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert set(batch) == {"input_ids", "attention_mask", "position_ids", "labels", "weights", "rows"}  # no `text`


def test_erratum_34_a_row_that_does_not_fit_is_named_never_cut(trained, tiny_model):
    with pytest.raises(GuardlearnError, match=r"has \d+ tokens, more than max_length 4096, and nothing is ever cut"):
        trained([guide_row("word " * 5000)])


@pytest.mark.parametrize("count", [10, 250])
def test_erratum_36_steps_come_from_passes_over_the_rows(count):
    from guardlearn.jobs import TrainingConfig
    from guardlearn.training.rows import plan

    config = TrainingConfig()
    batches = plan([5] * count, config.batch_size, epochs=config.epochs, max_steps=config.max_steps, seed=config.seed)
    assert Counter(row for batch in batches for row in batch) == dict.fromkeys(range(count), 3)  # not 16 epochs


def test_erratum_36_few_steps_are_not_all_warm_up(trained):
    steps, _, _ = trained([guide_row(f"x = {number}", number=number) for number in range(10)], max_steps=5)
    rates = [step.learning_rate for step in steps]
    assert max(rates) == pytest.approx(2e-4, rel=0.25)
    assert rates[-1] < max(rates)


def test_a_single_step_trains_and_a_second_training_is_like_the_first(tiny_model, tmp_path):
    from guardlearn.training.weights import adapter_weights, put_adapter_weights

    rows = [guide_row(f"x = {number}", number=number) for number in range(4)]
    losses = []
    model, tokenizer = load_model_for_training(str(tiny_model), 512, load_in_4bit=False)
    model = add_lora_adapters(model)
    fresh = adapter_weights(model)
    for _ in range(2):
        put_adapter_weights(model, fresh)
        steps = []
        train_on_traces(model, tokenizer, rows, output_dir=str(tmp_path / "same"), max_steps=3, on_step=steps.append)
        losses.append([step.loss for step in steps])
        assert any(bool((fresh[name] != weight).any()) for name, weight in adapter_weights(model).items())
    assert losses[0] == losses[1]
    put_adapter_weights(model, fresh)
    train_on_traces(model, tokenizer, rows, output_dir=str(tmp_path / "one"), max_steps=1)
    assert any(bool((fresh[name] != weight).any()) for name, weight in adapter_weights(model).items())


@pytest.mark.slow
def test_erratum_38_the_order_of_rows_is_seeded(trained):
    rows = [guide_row(f"x = {number}", number=number) for number in range(6)]
    orders = [[step.rows for step in trained(rows, max_steps=3, seed=seed)[0]] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


def test_erratum_40_forgetting_is_measured_and_can_refuse():
    """A candidate that gains where it was trained is refused for what it lost elsewhere, each loss by itself."""
    gain = {f"g{number}": [1.0] for number in range(20)}
    same, lost = ({f"g{number}": [step] for number in range(80)} for step in (0.0, -1.0))  # 20 could not say so
    held_out = Paired(judged=gain, against=gain)
    fine = GateFigures(held_out=held_out, look=1, changed=True, regressions={"sql": Paired(judged=same, against=same)})
    assert decide(fine).promoted
    for change in (
        {"regressions": {"sql": Paired(judged=lost, against=lost)}},
        {"general_loss": {f"t{number}": [0.3] for number in range(20)}},
    ):
        assert not decide(msgspec.structs.replace(fine, **change)).promoted


def test_erratum_53_data_is_looked_for_before_any_model(dag, tmp_path):
    chain(dag, "a", ACCEPTED)
    with pytest.raises(NoTracesError, match="all 1") as caught:
        run_training_pipeline(dag, "no/such-model", str(tmp_path / "out"))
    assert json.dumps(caught.value.alternatives)
    assert not (tmp_path / "out").exists()
