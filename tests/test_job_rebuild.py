"""A job folder from its manifest and ℛ, byte for byte: whatever ℛ learned since, and what is refused by name."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import strategies as st

from databases import law
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.importers.atomicguard_prompts import dependency_contents
from guardlearn.digests import digest_file
from guardlearn.errors import JobError, ModelError, NoTracesError
from guardlearn.jobs import TrainingConfig, rebuild_job, recorded_histories, traces_again, write_job
from guardlearn.prompts import PromptConfig
from guardlearn.traces import extract_traces
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Side
from training_samples import rewrite

START = datetime(2026, 1, 1, tzinfo=UTC)
ACCEPTED, REJECTED, PENDING, SUPERSEDED = (
    ArtifactStatus.ACCEPTED,
    ArtifactStatus.REJECTED,
    ArtifactStatus.PENDING,
    ArtifactStatus.SUPERSEDED,
)
FILES = ["job.toml", "manifest.json", "train.jsonl", "validation.jsonl"]
GROUPS = {Side.TRAIN: "f-train", Side.VALIDATION: "f-validation", Side.HELD_OUT: "f-held-out"}


def attempts(name, *statuses, group="f-train", feedback="", **given):
    """The items of one chain; ids `<name>0`, `<name>1`, …; what is given goes to the last."""
    count = len(statuses)
    return [
        RepositoryItem(
            id=f"{name}{n}",
            artifact=given.pop("artifact", f"def {name}(): return {n}") if n == count - 1 else f"def {name}(): {n}",
            specification=f"Write {name}.",
            status=status,
            feedback=feedback or f"Not yet, {name}{n}.",
            parent_id=f"{name}{n - 1}" if n else None,
            group=group,
            created_at=START + timedelta(minutes=n),
            **(given if n == count - 1 else {}),
        )
        for n, status in enumerate(statuses)
    ]


def fill(dag, *chains):
    for side, group in GROUPS.items():
        dag.assign_side(group, side)
    dag.append_many([item for chain in chains for item in chain])
    return dag


def sample(dag, **changed):
    """ℛ with refinements of every kind, one row that fits nowhere, and a validation side; `changed` replaces chains."""
    shown = (FeedbackEntry(artifact="other", feedback="As it was shown."),)
    chains = {
        "plain": attempts("plain", REJECTED, REJECTED, ACCEPTED),
        "skipped": attempts("skipped", REJECTED, PENDING, ACCEPTED),
        "told": attempts("told", REJECTED, ACCEPTED, seen_history=shown),
        "long": attempts("long", REJECTED, ACCEPTED, artifact="x = 1\n" * 300),
        "kept": attempts("kept", REJECTED, ACCEPTED, group="f-validation"),
        "skipkept": attempts("skipkept", PENDING, REJECTED, ACCEPTED, group="f-validation"),
    }
    return fill(dag, *(chains | changed).values())


@pytest.fixture
def dag(databases):
    with databases.repository() as dag:
        yield sample(dag)


CONFIG = TrainingConfig(max_length=400, batch_size=4, learning_rate=1e-4, max_steps=7, retry="artifact")


def write(dag, folder, model, **more):
    given = {"weights": {"plain2": 1.75, "told1": 0.1, "kept1": 9.0}, "about": {"per_spec": 2, "counts": {"new": 3}}}
    write_job(folder, extract_traces(dag), model, CONFIG, **given | more)
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def grow(dag):
    """Let everything happen that may happen to ℛ later."""
    dag.append_many([i for n in range(4) for i in attempts(f"later{n}", REJECTED, ACCEPTED, group="f-validation")])
    dag.append_many(attempts("more", REJECTED, ACCEPTED))
    dag.append_event("plain1", "status", value="accepted")  # it was in a history
    dag.append_event("skipped1", "status", value="rejected")  # it was not
    dag.append_event("skipkept0", "status", value="rejected")
    dag.append_event("plain2", "status", value="rejected")  # it was trained on
    dag.append_event("told1", "status", value="superseded")
    dag.append_event("kept1", "exclude", reason="a person says so")
    dag.append_event("skipped2", "stale")


def refused(kind, dag, manifest, to, model, match, **more):
    with pytest.raises(kind, match=match) as error:
        rebuild_job(dag, manifest, to, model, **more)
    assert "\n" not in str(error.value)
    assert not to.exists()
    return str(error.value)


def test_byte_for_byte_though_items_verdicts_and_marks_came_since(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model)
    assert (manifest["rows"], manifest["validation_rows"]) == (6, 4)
    assert len(manifest["left_out"]) == 2
    grow(dag)
    changed = {trace.item.id: trace.history for trace in extract_traces(dag).traces}
    assert set(changed) != {*manifest["item_ids"], *manifest["validation_item_ids"]}  # ℛ says something else by now
    digest = digest_file(tmp_path / "job" / "manifest.json")
    summary = rebuild_job(dag, manifest, tmp_path / "again" / "job", tiny_model, digest=digest)
    assert contents(tmp_path / "again" / "job") == contents(tmp_path / "job")
    assert sorted(contents(tmp_path / "job")) == FILES
    assert (summary.rows, summary.validation_rows, summary.dropped) == (
        6,
        4,
        {"first_attempt row longer than 400 tokens": 1, "repair row longer than 400 tokens": 1},
    )


def test_a_folder_that_holds_the_job_is_left_and_another_is_refused(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model)
    (tmp_path / "job" / "adapter").mkdir()
    rebuild_job(dag, manifest, tmp_path / "job", tiny_model)
    assert (tmp_path / "job" / "adapter").is_dir()
    other = write(dag, tmp_path / "other", tiny_model, weights=None)
    with pytest.raises(JobError, match="holds another job"):
        rebuild_job(dag, other, tmp_path / "job", tiny_model)


def test_weights_multiply_rows_of_the_train_side_and_stand_in_the_manifest(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model)
    write(dag, tmp_path / "plain", tiny_model, weights=None, about=None)
    rows, before = (
        {
            row["id"]: row
            for name in ("train", "validation")
            for row in map(json.loads, (tmp_path / job / f"{name}.jsonl").read_text(encoding="utf-8").splitlines())
        }
        for job in ("job", "plain")
    )
    factors = {"plain2": 1.75, "told1": 0.1}
    assert {name: row["weight"] for name, row in rows.items()} == {
        name: row["weight"] * factors.get(row["trace_id"], 1.0) for name, row in before.items()
    }
    assert dict(manifest["weights"]) == factors
    assert manifest["weighting"] == {"per_spec": 2, "counts": {"new": 3}}


def test_a_history_is_recorded_only_where_a_verdict_decided_it(dag):
    traces = extract_traces(dag).traces
    assert recorded_histories(traces) == {"skipped2": ["skipped0"], "skipkept2": ["skipkept1"]}


# What is refused


def test_an_item_that_is_gone_is_named(dag, databases, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model)
    with databases.repository() as other:
        sample(other, told=[])
        refused(JobError, other, manifest, tmp_path / "again", tiny_model, "item 'told1' is gone from")
    with databases.repository() as other:  # an attempt that stood in a recorded history
        sample(other, skipped=attempts("skipped", REJECTED, PENDING, ACCEPTED)[2:])
        refused(JobError, other, manifest, tmp_path / "again", tiny_model, "item 'skipped0' is gone from")


def test_an_item_redacted_since_is_named_and_so_is_one_whose_history_was(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model)
    dag.redact("plain0", "me", "a secret")
    line = refused(JobError, dag, manifest, tmp_path / "again", tiny_model, "item 'plain2' was trained with 'plain0'")
    assert "redacted" in line
    dag.redact("kept1", "me", "a secret")
    refused(JobError, dag, manifest, tmp_path / "again", tiny_model, "item 'kept1' was redacted")


def test_what_was_redacted_before_it_was_trained_does_not_matter(dag, tiny_model, tmp_path):
    dag.redact("plain0", "me", "a secret")
    manifest = write(dag, tmp_path / "job", tiny_model)
    grow(dag)
    rebuild_job(dag, manifest, tmp_path / "again", tiny_model)
    assert contents(tmp_path / "again") == contents(tmp_path / "job")


@pytest.mark.parametrize(
    ("chain", "changed", "name"),
    [
        ("told", {"artifact": "def told(): return 7"}, "told1"),
        ("plain", {"feedback": "Something else."}, "plain2"),
        ("kept", {"artifact": "def kept(): return 8", "group": "f-validation"}, "kept1"),
    ],
)
def test_an_item_of_altered_content_is_named(dag, databases, tiny_model, tmp_path, chain, changed, name):
    manifest = write(dag, tmp_path / "job", tiny_model)
    statuses = (REJECTED, REJECTED, ACCEPTED) if chain == "plain" else (REJECTED, ACCEPTED)
    shown = (FeedbackEntry(artifact="other", feedback="As it was shown."),)
    more = {"seen_history": shown} if chain == "told" else {}
    with databases.repository() as other:
        sample(other, **{chain: attempts(chain, *statuses, **more, **changed)})
        refused(JobError, other, manifest, tmp_path / "again", tiny_model, f"item '{name}' gives other rows")


def test_another_base_tokenizer_or_template_is_refused_with_both_digests(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model)
    for name, what, spoil in (
        ("model.safetensors", "base model", lambda raw: raw + b"\0"),
        ("tokenizer_config.json", "tokenizer", lambda raw: raw + b"\n"),
    ):
        model = shutil.copytree(tiny_model, tmp_path / what)
        (model / name).write_bytes(spoil((model / name).read_bytes()))
        refused(ModelError, dag, manifest, tmp_path / "again", model, f"another {what} than the job was written with")
    digest = manifest["template_digest"]
    other = manifest | {"template_digest": "0" * 64}
    refused(ModelError, dag, other, tmp_path / "again", tiny_model, f"another prompt template .* {digest}, .* 0000")


def test_a_manifest_that_says_too_little_or_was_altered_is_refused(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model)
    folder = tmp_path / "again"
    refused(JobError, dag, manifest | {"format": 2}, folder, tiny_model, "of format 2; a job can be made again from")
    for name in ("training", "validation_item_ids", "row_digests", "files", "template_digest"):
        less = {key: value for key, value in manifest.items() if key != name}
        refused(JobError, dag, less, folder, tiny_model, f"has no {name}")
    training = manifest["training"]
    newer = manifest | {"training": training | {"warp": 9}}
    refused(JobError, dag, newer, folder, tiny_model, "settings cannot be used .*warp")
    for name, value in (("seed", 5), ("base_model", "other"), ("item_ids_digest", "0" * 64), ("rows", 7)):
        refused(JobError, dag, manifest | {name: value}, folder, tiny_model, f"altered: its {name} disagree")
    slower = manifest | {"training": training | {"learning_rate": 1.0}}
    refused(JobError, dag, slower, folder, tiny_model, "altered: its files disagree")
    fewer = manifest | {"item_ids": manifest["item_ids"][1:]}
    refused(JobError, dag, fewer, folder, tiny_model, "item 'plain2' gives other rows|altered: its")
    heavier = manifest | {"weights": [["plain2", 1.75], ["told1", 0.2]]}
    for name, value in (("weights", [["told1", "0.2"]]), ("weights", {"told1": 0.2}), ("histories", [["told1"]])):
        refused(JobError, dag, manifest | {name: value}, folder, tiny_model, f"the manifest's {name}")
    refused(JobError, dag, heavier, folder, tiny_model, "item 'told1' gives other rows")


def test_what_no_row_tells_is_vouched_for_by_the_digest(dag, tiny_model, tmp_path):
    manifest = write(dag, tmp_path / "job", tiny_model)
    digest = digest_file(tmp_path / "job" / "manifest.json")
    other = manifest | {"predicate": "everything()"}
    refused(JobError, dag, other, tmp_path / "again", tiny_model, f"the job's had {digest}", digest=digest)


# Laws


@st.composite
def histories(draw):
    """Chains of any verdicts, on two sides, and what happens later to any of their attempts."""
    chains = draw(st.lists(st.lists(st.sampled_from(list(ArtifactStatus)), min_size=1, max_size=4), max_size=4))
    groups = [draw(st.sampled_from([GROUPS[Side.TRAIN], GROUPS[Side.VALIDATION]])) for _ in chains]
    names = [f"c{n}-{k}" for n, chain in enumerate(chains) for k in range(len(chain))] or ["none"]
    event = st.tuples(
        st.sampled_from(names), st.sampled_from(["status", "exclude", "stale"]), st.sampled_from(list(ArtifactStatus))
    )
    return list(zip(chains, groups, strict=True)), draw(st.lists(event, max_size=8))


@pytest.mark.slow
@law(histories(), examples=20)
def test_traces_are_read_again_as_they_were_whatever_happens_to_their_chains(databases, drawn):
    chains, later = drawn
    with databases.repository() as dag:
        fill(dag, *(attempts(f"c{n}-", *chain, group=group) for n, (chain, group) in enumerate(chains)))
        try:
            traces = extract_traces(dag, "all").traces
        except NoTracesError:
            return
        told = recorded_histories(traces)
        for name, kind, status in later:
            if dag.known_ids([name]):
                dag.append_event(name, kind, value=status.value if kind == "status" else "")
        again = traces_again(
            dag,
            [trace.item.id for trace in traces],
            sides={trace.item.id: trace.side for trace in traces},
            groups={trace.item.id: trace.group for trace in traces},
            histories=told,
        )
        for before, after in zip(traces, again, strict=True):
            assert (after.side, after.group, after.history) == (before.side, before.group, before.history)
            assert (after.item.id, after.item.artifact) == (before.item.id, before.item.artifact)
            assert (after.item.status, after.item.history) == (ACCEPTED, before.history)


# AtomicGuard's prompts, which hold other items' artifacts


def built_on(name, dependency):
    kept = {"dependency_artifacts": {"lib": dependency}, "dependency_order": ["lib"]}
    return attempts(name, REJECTED, ACCEPTED, action_pair_id="use", metadata={"atomicguard": kept})


def test_a_dependency_that_came_later_does_not_come_into_the_prompts(databases, tiny_model, tmp_path):
    template = {"role": "r", "task": "Do {specification}", "feedback_wrapper": "Mind: {feedback}"}
    templates = {"use": template, "default": template, "lib": {**template, "artifact_context": "What lib made"}}
    prompts = PromptConfig(layout="atomicguard", templates=templates)
    known, missing = attempts("base", ACCEPTED), attempts("late", ACCEPTED)
    with databases.repository() as dag:
        fill(dag, known, built_on("first", "base0"), built_on("second", "late0"))
        found = extract_traces(dag)
        write_job(
            tmp_path / "job",
            found,
            tiny_model,
            TrainingConfig(),
            prompts=prompts,
            dependencies=dependency_contents(dag, (trace.item for trace in found.traces)),
        )
        manifest = json.loads((tmp_path / "job" / "manifest.json").read_text(encoding="utf-8"))
        assert (manifest["unknown_dependencies"], manifest["missing_dependencies"]) == (["second1"], ["late0"])
        assert "def base(): return 0" in (tmp_path / "job" / "train.jsonl").read_text(encoding="utf-8")
        dag.append_many(missing)
        assert set(dependency_contents(dag, (trace.item for trace in found.traces))) == {"base0", "late0"}
        rebuild_job(dag, manifest, tmp_path / "again", tiny_model)
        assert contents(tmp_path / "again") == contents(tmp_path / "job")
        dag.redact("base0", "me", "a secret")
        refused(JobError, dag, manifest, tmp_path / "third", tiny_model, "item 'first1' gives other rows")


# What earlier versions wrote


def test_a_job_of_the_format_before_is_read_and_is_the_same_job(dag, tiny_model, tmp_path):
    from guardlearn.training.settings import read_job

    job = tmp_path / "job"
    manifest = write(dag, job, tiny_model, weights=None, about=None)
    new = ("training", "validation_item_ids", "row_digests", "histories")
    older = {name: value for name, value in manifest.items() if name not in new} | {"format": 2}
    (job / "manifest.json").write_text(json.dumps(older), encoding="utf-8")
    assert read_job(job).manifest == older
    before = contents(job)
    write(dag, job, tiny_model, weights=None, about=None)
    assert contents(job) == before
    with pytest.raises(JobError, match=r"another job \(manifest.json differs\)"):
        write_job(job, extract_traces(dag, "refinement() | action_pair('x')"), tiny_model, CONFIG)
    rewrite(job, "job.toml", (job / "job.toml").read_text(encoding="utf-8"))
    (job / "manifest.json").write_text("[]", encoding="utf-8")
    with pytest.raises(JobError, match=r"another job \(manifest.json differs\)"):
        write(dag, job, tiny_model, weights=None, about=None)


def test_a_repository_of_another_kind_of_target_reads_the_same(tmp_path, tiny_model):
    target = tmp_path / "runs.db"
    with ArtifactDAG.create(target) as dag:
        manifest = write(sample(dag), tmp_path / "job", tiny_model)
    with ArtifactDAG.load(target, read_only=True) as dag:
        rebuild_job(dag, manifest, tmp_path / "again", tiny_model)
    assert contents(tmp_path / "again") == contents(tmp_path / "job")
