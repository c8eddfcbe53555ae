"""AtomicGuard's stores come into ℛ with every right answer, every fault named, and nothing lost or taken twice."""

import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardlearn.cli import main
from guardlearn.dag import ArtifactDAG
from guardlearn.dag.importers.atomicguard import import_atomicguard, read_atomicguard
from guardlearn.errors import DataError, RepositoryError, UsageError
from guardlearn.formats import format_traces
from guardlearn.predicates import (
    broken,
    created_after,
    everything,
    excluded,
    policy,
    refinement,
    retries,
    reviewed,
    source,
    status,
)
from guardlearn.traces import extract_traces, sparse_reward
from guardlearn.types import ArtifactStatus, Side, Source, utc

STORES = Path(__file__).parent / "data" / "stores"
MADE = ("fs_2_3_0", "fs_2_39_1")
RESTARTED = "d0718c1a-fdd9-478d-98df-f3934223aa56"
EFFECTOR = "d45c39a3-9ec3-43c1-a2e9-17d310269470"
PENDING = "99ef936a-c3a8-4b56-a886-5529228dc519"


def expected(store):
    return json.loads((STORES / store / "expected.json").read_text())


def truth(store):
    return [json.loads(line) for line in (STORES / store / "truth.jsonl").read_text().splitlines()]


def ids(dag, predicate):
    return sorted(item.id for item in dag.extract(predicate))


def object_path(store, item_id):
    return next(Path(store).rglob(f"{item_id}.json"))


def rewrite(store, item_id, **changes):
    path = object_path(store, item_id)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """ℛ and report of each sample store, imported once."""
    folder, made = tmp_path_factory.mktemp("imported"), {}

    def give(store, provenance="links"):
        if (store, provenance) not in made:
            dag = ArtifactDAG.create(folder / f"{store}-{provenance}.db")
            made[store, provenance] = dag, import_atomicguard(dag, STORES / store, provenance=provenance)
        return made[store, provenance]

    yield give
    for dag, _ in made.values():
        dag.close()


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as opened:
        yield opened


@pytest.fixture
def copy(tmp_path):
    """A sample store of its own, to be spoiled."""
    return lambda name="fs_2_39_1": Path(shutil.copytree(STORES / name, tmp_path / name))


@pytest.mark.parametrize("store", MADE)
def test_every_count_of_the_store_is_met(imported, store):
    dag, report = imported(store)
    right, accepted = expected(store), status("accepted")
    found = list(dag.extract())
    assert (report.read, report.new, report.skipped, len(found)) == (right["items"], right["items"], 0, right["items"])
    assert dag.count_by(None, "status") == right["by_status"]
    assert ids(dag, policy("all")) == right["ids"]["accepted"] and len(right["ids"]["accepted"]) == right["accepted"]
    assert ids(dag, policy("refinement")) == right["ids"]["refinement_def21"]
    assert ids(dag, policy("high_value")) == right["ids"]["high_value_ge3"]
    assert dag.count(refinement() & retries(at_least=2)) == right["high_value_ge2_rejected"]
    assert ids(dag, accepted & retries(at_most=0)) == right["ids"]["first_attempt"]
    assert dag.count(refinement() & created_after(right["recent_cutoff"])) == right["recent_refinement"]
    assert dag.count(excluded()) == right["effector_items"]
    by_pair = Counter(item.action_pair_id for item in dag.extract(refinement()))
    assert by_pair == right["by_action_pair_refinement"]
    rejected = [item.facts.rejected_ancestors for item in found if item.status is ArtifactStatus.ACCEPTED]
    assert round(sum(rejected) / len(rejected), 6) == right["E_retries_over_accepted"]
    counted = Counter(str(each) for each in rejected)
    assert counted == {
        key: value for key, value in right["rejected_ancestor_histogram"].items() if value and counted[key]
    }
    judged = dag.extract(status("accepted", "rejected"))
    assert sum(sparse_reward(item) for item in judged) == right["r_sparse_sum_accepted_rejected"]
    times = sorted(item.created_at for item in found)
    assert (times[0], times[-1]) == (utc(right["min_created_at"]), utc(right["max_created_at"]))
    assert dag.verify().problems == []


@pytest.mark.parametrize("store", MADE)
def test_preference_pairs_are_as_many_as_the_store_holds(imported, store):
    dag, _ = imported(store)
    extraction = extract_traces(dag, "refinement", sides=tuple(Side), attempts=True)
    assert sum(len(trace.attempts) for trace in extraction.traces) == expected(store)["preference_pairs"]
    rows = format_traces(extraction.traces, "preference", views=("first_attempt",))
    assert len(list(rows)) + len(rows.left_out) == expected(store)["preference_pairs"]
    assert [reason.partition(": ")[2] for _, reason in rows.left_out] == {
        "fs_2_3_0": ["its specification or constraints were amended before the accepted one"],  # by the human
        "fs_2_39_1": [],
    }[store]


@pytest.mark.parametrize("store", MADE)
def test_every_item_is_what_the_truth_says(imported, store):
    dag, _ = imported(store)
    for right in truth(store):
        item = dag.get_item(right["id"])
        content = hashlib.sha256(item.artifact.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        assert (item.status, item.parent_id, item.action_pair_id, item.workflow_id, content) == (
            *(right["status"], right["prev"], right["ap"], right["wf"], right["sha"]),
        )
        assert item.created_at == utc(right["created_at"])  # erratum 12: naive and aware times, both UTC


@pytest.mark.parametrize("store", MADE)
def test_erratum_11_source_is_recovered_where_it_can_be_and_else_said_to_be_unknown(imported, store):
    dag, report = imported(store)
    right = expected(store)
    assert ids(dag, source(Source.HUMAN)) == right["ids"]["human"]
    assert dag.count(policy("human")) == right["human_only_true"]
    assert dag.count(refinement() & source("unknown")) == right["generator_only_true"]
    assert report.unknown["source"] == right["items"] - len(right["ids"]["human"])


def test_erratum_11_an_amendment_names_its_author_where_the_id_does_not(dag, copy):
    store = copy("fs_2_3_0")
    human = expected("fs_2_3_0")["ids"]["human"][0]
    plain = "11111111-0000-4000-8000-000000000000"
    value = json.loads(object_path(store / "dag", human).read_text())
    object_path(store / "dag", human).unlink()
    (store / "dag" / "objects" / "11").mkdir()
    (store / "dag" / "objects" / "11" / f"{plain}.json").write_text(json.dumps(value | {"artifact_id": plain}))
    import_atomicguard(dag, store)
    assert dag.get_item(plain).source is Source.HUMAN
    assert not any("amendment" in fault for fault in import_atomicguard(dag, store).faults)
    next(store.rglob("amendments/*/*.json")).write_text("{")
    (fault,) = (fault for fault in import_atomicguard(dag, store).faults if "amendment" in fault)
    assert fault.endswith("this amendment cannot be read; an item it wrote has source unknown")
    assert dag.count(source("human")) == 1


def test_the_real_store_is_a_tree_of_stores(imported):
    dag, report = imported("real_2_3_0")
    right = expected("real_2_3_0")
    assert report.read == right["items"]
    assert dag.count_by(None, "status") == right["by_status"]
    assert dag.count(policy("all")) == right["accepted"]
    assert ids(dag, refinement()) == right["ids"]["refinement_def21"] == []
    folders = {item.metadata["atomicguard"]["store"] for item in dag.extract()}
    assert len(folders) == 6 and all(folder.startswith("artifact_dags/instance_") for folder in folders)
    assert all(item.metadata["total_tokens"] >= 0 for item in dag.extract())
    assert report.faults == []


def test_erratum_16_every_layout_of_folders_is_found(dag, tmp_path):
    shutil.copytree(STORES / "fs_2_3_0" / "dag", tmp_path / "runs" / "r1" / "artifact_dags" / "i1")
    shutil.copytree(STORES / "real_2_3_0", tmp_path / "runs" / "r2")
    assert import_atomicguard(dag, tmp_path / "runs").read == 81


@pytest.mark.parametrize("store", MADE)
def test_erratum_7_provenance_is_the_readers_choice(imported, store):
    dag, _ = imported(store, "links+history")
    right = expected(store)
    assert ids(dag, refinement()) == right["ids"]["refinement_chain_or_H"]
    assert len(right["ids"]["refinement_chain_or_H"]) == right["refinement_chain_or_H"]
    assert dag.count(policy("all")) == right["accepted"]
    assert dag.verify().problems == []


def test_erratum_8_a_history_that_the_generator_did_not_see_is_flagged(imported):
    for provenance, shown in (("links", 0), ("links+history", 2)):
        dag, report = imported("fs_2_39_1", provenance)
        item = dag.get_item(RESTARTED)
        assert len(item.history) == shown
        assert item.metadata["h_unseen"] is True
        assert len(item.metadata["atomicguard"]["feedback_history"]) == 2
        assert report.unknown["history shown to the generator"] == 1
        assert [each.id for each in dag.extract() if each.metadata.get("h_unseen")] == [RESTARTED]


def test_erratum_9_history_is_the_chains_and_only_a_broken_chain_falls_back_to_ids(imported):
    dag, _ = imported("fs_2_39_1")
    for right in truth("fs_2_39_1"):
        if right["prev"]:
            item = dag.get_item(right["id"])
            told = [dag.get_item(entry.item_id) for entry in item.history]
            assert [(entry.artifact, entry.feedback) for entry in item.history] == [
                (before.artifact, before.feedback) for before in told
            ]
            assert item.seen_history is None
    hostile, _ = imported("fs_hostile")
    orphan = hostile.get_item(expected("fs_hostile")["hostile"]["parent_missing"])
    (entry,) = orphan.history
    assert entry.artifact == hostile.get_item(entry.item_id).artifact
    assert "Patch validation failed" in entry.feedback


def test_erratum_15_an_effectors_output_stays_visible_and_excluded(imported):
    dag, _ = imported("fs_2_39_1")
    assert ids(dag, excluded()) == [EFFECTOR]
    item = dag.get_item(EFFECTOR)
    assert (item.metadata["exit_code"], item.status) == ("0", ArtifactStatus.ACCEPTED)
    with dag.reading() as connection:
        reasons = connection.exec_driver_sql("SELECT reason FROM events WHERE kind = 'exclude'").scalars().all()
    assert reasons == ["effector output, not a generator's work: metadata has exit_code, command"]


def test_erratum_15_failed_generators_and_empty_artifacts_are_excluded(dag, copy):
    store = copy()
    first, second = expected("fs_2_39_1")["ids"]["accepted"][:2]
    rewrite(store, first, metadata={"generator_error": "timeout"})
    rewrite(store, second, content="")
    import_atomicguard(dag, store)
    assert set(ids(dag, excluded())) == {first, second, EFFECTOR}


def test_erratum_6b_items_without_a_verdict_are_counted_by_workflow(dag, copy):
    store = copy()
    for item_id in expected("fs_2_39_1")["ids"]["first_attempt"][:3]:
        rewrite(store, item_id, status="pending", guard_result=None, workflow_id="inference")
    report = import_atomicguard(dag, store)
    assert report.pending == {"inference": 3, dag.get_item(PENDING).workflow_id: 1}
    assert dag.count(policy("all")) == expected("fs_2_39_1")["accepted"] - 3


def test_every_fault_is_named_with_its_id_and_every_other_item_is_read(imported):
    dag, report = imported("fs_hostile")
    hostile = expected("fs_hostile")["hostile"]
    words = {
        "parent_missing": "is missing: its chain is broken",
        "cycle": "run in a circle",
        "object_file_missing": "its object is missing",
        "object_truncated_json": "not whole JSON",
        "legacy_bool_guard_result": "bare truth value",
        "lone_surrogate_and_nul": "NUL or lone surrogates",
        "old_format_no_workflow_id": "no workflow_id",
        "orphan_object_not_in_index": "the index does not list it",
        "duplicate_in_action_pairs_list": "the index lists it 2 times",
        "index_status_differs_from_object": "the index says 'rejected', the object 'accepted'",
    }
    assert words.keys() == hostile.keys()
    for kind, named in hostile.items():
        for item_id in [named] if isinstance(named, str) else named:
            assert [fault for fault in report.faults if fault.startswith(f"{item_id}: ") and words[kind] in fault], kind
    on_disk = {path.stem for path in (STORES / "fs_hostile").rglob("objects/*/*.json")}
    assert set(ids(dag, everything())) == on_disk - {hostile["object_truncated_json"]}
    assert (report.read, report.skipped) == (59, 2)
    assert dag.get_item(hostile["index_status_differs_from_object"]).status is ArtifactStatus.ACCEPTED
    assert dag.get_item(hostile["lone_surrogate_and_nul"]).artifact == "lone surrogate \ud800 and NUL \0"
    assert dag.get_item(hostile["legacy_bool_guard_result"]).status is ArtifactStatus.ACCEPTED
    assert dag.verify().problems == []


def test_erratum_6_a_circle_ends(imported):
    dag, _ = imported("fs_hostile")
    for item_id in expected("fs_hostile")["hostile"]["cycle"]:
        assert dag.provenance(item_id)[-1].id == item_id
    assert set(expected("fs_hostile")["hostile"]["cycle"]) <= set(ids(dag, broken()))


@pytest.mark.parametrize("store", ["fs_2_3_0", "fs_2_39_1", "fs_hostile", "real_2_3_0"])
@pytest.mark.parametrize("provenance", ["links", "links+history"])
def test_importing_again_changes_nothing(tmp_path, imported, store, provenance):
    source_dag, first = imported(store, provenance)
    source_dag.close()  # its file is complete by itself then
    path = Path(shutil.copy(source_dag.target, tmp_path / "again.db"))
    with ArtifactDAG.load(path) as dag:
        before = dag.last_seq, dag.imports()
        again = import_atomicguard(dag, STORES / store, provenance=provenance)
        assert (again.new, again.changed, again.unchanged) == (0, 0, first.new)
        assert (again.faults, again.unknown, again.skipped) == (first.faults, first.unknown, first.skipped)
        assert (dag.last_seq, dag.imports()) == before


def test_erratum_23_the_report_is_kept_in_the_repository(dag, copy):
    store = copy("fs_hostile")
    report = import_atomicguard(dag, store)
    (kept,) = dag.imports()
    assert (kept.number, kept.source, kept.report) == (1, str(store), report)
    object_path(store, PENDING).unlink()
    import_atomicguard(dag, store)
    assert [each.report.read for each in dag.imports()] == [59, 58]  # what the store lacks has changed
    assert dag.verify().problems == []


def test_erratum_41_a_late_verdict_becomes_an_event_and_nobodys_word_is_undone(dag, copy):
    store = copy()
    import_atomicguard(dag, store)
    before = dag.last_seq
    verdict = {"passed": True, "feedback": "at last", "fatal": False, "guard_name": "G", "sub_results": []}
    rewrite(store, PENDING, status="accepted", guard_result=verdict)
    report = import_atomicguard(dag, store)
    assert (report.new, report.changed, dag.last_seq) == (0, 1, before + 1)
    item = dag.get_item(PENDING)
    assert (item.status, item.facts.rejected_ancestors) == (ArtifactStatus.ACCEPTED, 3)
    assert dag.count(refinement()) == expected("fs_2_39_1")["refinement_def21"] + 1
    assert import_atomicguard(dag, store).changed == 0
    dag.append_event(PENDING, "status", value="rejected", actor="me")
    assert import_atomicguard(dag, store).changed == 0
    assert dag.get_item(PENDING).status is ArtifactStatus.REJECTED
    rewrite(store, PENDING, status="superseded")
    told = import_atomicguard(dag, store)
    assert told.changed == 0
    assert f"{PENDING}: is superseded in its source now, and rejected by an event, which stays" in told.faults
    assert dag.get_item(PENDING).status is ArtifactStatus.REJECTED
    assert dag.verify().problems == []


def test_what_was_included_or_redacted_by_hand_stays_so(dag, copy):
    store = copy()
    import_atomicguard(dag, store)
    dag.append_event(EFFECTOR, "include", actor="me")
    dag.redact(PENDING, "me", "a password")
    report = import_atomicguard(dag, store)
    assert (report.new, report.changed, report.skipped) == (0, 0, 0)
    assert dag.count(excluded()) == 0
    assert dag.get_item(PENDING).artifact == ""


@pytest.mark.parametrize("provenance", ["links", "links+history"])
def test_a_store_that_is_being_written_comes_in_whole_in_the_end(dag, copy, imported, provenance):
    store = copy()
    paths = sorted(store.rglob("objects/*/*.json"))
    kept = {path: path.read_bytes() for path in paths}
    for number, path in enumerate(paths):  # a third each: not there yet, half-written, whole
        if number % 3 == 0:
            path.unlink()
        elif number % 3 == 1:
            path.write_bytes(kept[path][: len(kept[path]) // 2])
    first = import_atomicguard(dag, store, provenance=provenance)
    assert (first.new, len(first.faults) >= 40) == (20, True)
    for path, body in kept.items():
        path.write_bytes(body)
    assert import_atomicguard(dag, store, provenance=provenance).new == 40
    whole, _ = imported("fs_2_39_1", provenance)
    for item in whole.extract():
        late = dag.get_item(item.id)
        assert (late.facts, late.parent_id, late.status, late.artifact) == (
            *(item.facts, item.parent_id, item.status, item.artifact),
        )
        assert [entry.item_id for entry in late.history] == [entry.item_id for entry in item.history]
    assert dag.verify().problems == []


def test_ids_are_kept_and_a_clash_is_a_fault(dag, tmp_path):
    for run in ("r1", "r2"):
        shutil.copytree(STORES / "fs_2_39_1" / "dag", tmp_path / "runs" / run)
    rewrite(tmp_path / "runs" / "r2", PENDING, content="something else")
    report = import_atomicguard(dag, tmp_path / "runs")
    assert (report.read, report.skipped) == (60, 60)
    assert report.faults == [f"{PENDING}: is in r1 and in r2 with another content; the first is taken"]
    again = import_atomicguard(dag, tmp_path / "runs" / "r2")
    assert (again.unchanged, again.skipped) == (59, 1)
    assert again.faults == [f"{PENDING}: is in the repository with another artifact, which stays"]


def test_another_provenance_into_the_same_repository_is_a_fault(dag):
    import_atomicguard(dag, STORES / "fs_2_39_1")
    report = import_atomicguard(dag, STORES / "fs_2_39_1", provenance="links+history")
    assert report.skipped == 1
    assert report.faults[0].startswith(f"{RESTARTED}: is in the repository with another parent")


def test_unknown_statuses_and_sources_are_said_not_guessed(dag, copy):
    store = copy()
    first, second, third, fourth = expected("fs_2_39_1")["ids"]["first_attempt"][:4]
    rewrite(store, first, status="quarantined", source="robot")
    rewrite(store, second, source="imported", workflow_ref="w" * 64)
    rewrite(store, third, source="GENERATED", created_at="yesterday")
    value = json.loads(object_path(store, fourth).read_text())
    del value["status"]
    object_path(store, fourth).write_text(json.dumps(value))
    report = import_atomicguard(dag, store)
    assert (dag.get_item(first).status, dag.get_item(first).source) == (ArtifactStatus.PENDING, Source.UNKNOWN)
    assert (dag.get_item(second).source, dag.get_item(second).workflow_ref) == (Source.IMPORTED, "w" * 64)
    assert dag.get_item(third).source is Source.GENERATOR
    assert dag.get_item(third).created_at == utc(next(t["created_at"] for t in truth("fs_2_39_1") if t["id"] == third))
    assert dag.get_item(fourth).status is ArtifactStatus.ACCEPTED
    for fault in (
        f"{first}: status 'quarantined' is unknown; taken as pending",
        f"{first}: source 'robot' is unknown; taken as unknown",
        f"{third}: created_at is no time; taken from the index or the file",
        f"{fourth}: it has no status; taken as its guard said: accepted",
    ):
        assert fault in report.faults
    assert report.unknown["time"] == 1


def test_every_field_is_kept(imported):
    dag, _ = imported("fs_2_39_1")
    for path in (STORES / "fs_2_39_1").rglob("objects/*/*.json"):
        value = json.loads(path.read_text())
        item, context, verdict = dag.get_item(value["artifact_id"]), value["context"], value["guard_result"] or {}
        kept = item.metadata["atomicguard"]
        assert (item.specification, item.constraints) == (context["specification"], context["constraints"])
        assert (item.feedback, item.guard) == (verdict.get("feedback", ""), verdict.get("guard_name", ""))
        assert item.fatal is verdict.get("fatal", False)
        assert kept.get("sub_results", []) == verdict.get("sub_results", [])
        assert kept.get("dependency_artifacts", {}) == context["dependency_artifacts"]
        assert kept["attempt_number"] == value["attempt_number"]
        assert kept.get("artifact_type") == value.get("artifact_type")
        assert kept.get("artifact_context") == value.get("artifact_context")
        assert value.get("metadata", {}).items() <= item.metadata.items()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = (
    "workflow_id content previous_attempt_id action_pair_id created_at status guard_result context metadata source "
    "workflow_ref feedback attempt_number artifact_id"
).split()


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FIELDS), json_values, min_size=1, max_size=4), st.booleans())
def test_whatever_an_object_holds_every_other_one_is_read(tmp_path_factory, changes, by_history):
    folder, few = tmp_path_factory.mktemp("any"), [each["id"] for each in truth("fs_2_39_1")[:6]]
    spoiled = few[0]  # a root with a descendant
    for item_id in few:
        path = object_path(STORES / "fs_2_39_1", item_id)
        (folder / "dag" / "objects" / item_id[:2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "dag" / "objects" / item_id[:2])
    (folder / "dag" / "index.json").write_text('{"artifacts": {}}')
    rewrite(folder, spoiled, **changes)
    with ArtifactDAG.create(folder / "runs.db") as dag:
        for _ in range(2):
            import_atomicguard(dag, folder / "dag", provenance="links+history" if by_history else "links")
        assert set(ids(dag, everything())) >= set(few) - {spoiled}
        assert dag.verify().problems == []


def test_an_unreadable_index_costs_nothing_but_a_fault(dag, copy):
    store = copy()
    (store / "dag" / "index.json").write_text('{"version": "1.0", "artifacts": {"a')
    report = import_atomicguard(dag, store)
    assert report.new == 60
    assert report.faults[0] == "dag: index.json cannot be read; objects are read without it"


def test_reviews_become_events_and_no_status(dag, copy):
    folder = copy("sqlite_2_39_1")
    report = import_atomicguard(dag, STORES / "fs_2_39_1", reviews_path=folder / "reviews.db")
    assert report.unknown["review verdict"] == expected("sqlite_2_39_1")["reviews"]["pending"]
    assert len(ids(dag, reviewed())) == 3
    with dag.reading() as connection:
        noted = connection.exec_driver_sql("SELECT value FROM events WHERE kind = 'review'").scalars().all()
    assert Counter(noted) == {"approved": 1, "rejected": 2}
    assert dag.count_by(None, "status") == expected("fs_2_39_1")["by_status"]
    before = dag.last_seq
    import_atomicguard(dag, STORES / "fs_2_39_1", reviews_path=folder / "reviews.db")
    assert dag.last_seq == before
    assert sorted(path.name for path in folder.iterdir()) == ["expected.json", "reviews.db", "web.db"]
    connection = sqlite3.connect(folder / "reviews.db")
    connection.execute("UPDATE pending_reviews SET artifact_content = 'other', review_id = 'r' || review_id")
    connection.execute("UPDATE pending_reviews SET artifact_id = 'gone' WHERE status = 'approved'")
    connection.commit()
    connection.close()
    faults = import_atomicguard(dag, STORES / "fs_2_39_1", reviews_path=folder / "reviews.db").faults
    assert sum("quotes another content" in fault for fault in faults) == 2
    assert sum("is of item 'gone', which is not here" in fault for fault in faults) == 1
    assert dag.last_seq == before
    with pytest.raises(DataError, match="needs a table pending_reviews"):
        import_atomicguard(dag, STORES / "fs_2_39_1", reviews_path=folder / "web.db")
    with pytest.raises(DataError, match="no reviews database"):
        import_atomicguard(dag, STORES / "fs_2_39_1", reviews_path=folder / "none.db")


def test_a_store_is_only_read(dag, copy):
    store = copy("fs_hostile")

    def state():
        return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in store.rglob("*")}

    before = state()
    import_atomicguard(dag, store)
    assert state() == before
    assert len(list(read_atomicguard(store))) == 59


def test_wrong_requests_are_refused(dag, tmp_path):
    with pytest.raises(UsageError, match=r"provenance 'both' is unknown; allowed are: links, links\+history"):
        import_atomicguard(dag, STORES / "fs_2_3_0", provenance="both")
    with pytest.raises(DataError, match="holds no AtomicGuard store"):
        import_atomicguard(dag, tmp_path)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["guardlearn", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return ended.value.code, out, err


def test_the_command_takes_a_folder_for_a_store_and_a_file_for_a_log(monkeypatch, capsys, tmp_path):
    into = tmp_path / "runs.db"
    code, out, err = run(monkeypatch, capsys, "import", STORES / "fs_hostile", "--into", into)
    assert code == 0
    assert "59" in out and f"fault: {EFFECTOR}: it has no workflow_id" in err
    more = ("--provenance", "links", "--reviews", STORES / "sqlite_2_39_1" / "reviews.db", "--json")
    code, out, err = run(monkeypatch, capsys, "import", STORES / "fs_hostile", "--into", into, *more)
    said = json.loads(out)
    assert (code, said["new"], said["unchanged"], said["skipped"]) == (0, 0, 59, 2)
    log = tmp_path / "log.jsonl"
    log.write_text("{}\n")
    for arguments, words in (
        ((STORES / "fs_hostile", "--into", into, "--map", "spec=a"), "--map is for a log"),
        ((log, "--into", into), "needs --map"),
        ((log, "--into", into, "--map", "spec=a", "--provenance", "links"), "--provenance is for AtomicGuard stores"),
    ):
        code, _, err = run(monkeypatch, capsys, "import", *arguments)
        assert (code, words in err) == (2, True)
    (tmp_path / "empty").mkdir()
    code, _, err = run(monkeypatch, capsys, "import", tmp_path / "empty", "--into", tmp_path / "none.db")
    assert code == 1 and "holds no AtomicGuard store" in err
    assert not (tmp_path / "none.db").exists()


def test_times_out_of_order_and_of_both_kinds_are_ordered(dag, copy):
    """Erratum 12, and clocks that run backwards: a child older than its parent is still stored after it."""
    store = copy()
    child = next(each for each in truth("fs_2_39_1") if each["prev"])
    rewrite(store, child["id"], created_at="1999-01-01T00:00:00+02:00")
    import_atomicguard(dag, store)
    item, parent = dag.get_item(child["id"]), dag.get_item(child["prev"])
    assert item.created_at == datetime(1998, 12, 31, 22, tzinfo=UTC)
    assert item.seq > parent.seq and not item.facts.broken
    assert next(iter(dag.extract())).id == child["id"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "guardlearn" / "atomicguard"


def side_files(cache):
    return sorted(path.name for path in cache.rglob("*") if path.is_file())


def test_a_folder_opens_directly_and_cannot_be_appended_to(cache, copy):
    store = copy()
    right = expected("fs_2_39_1")
    with ArtifactDAG.load(store) as dag:
        assert ids(dag, refinement()) == right["ids"]["refinement_def21"]
        assert dag.imports()[0].report.new == 60
        with pytest.raises(RepositoryError, match="read-only"):
            dag.append_event(PENDING, "status", value="accepted")
    assert len(side_files(cache)) == 1
    assert not list(store.rglob("*.db"))


def test_a_folder_is_read_again_only_where_it_changed(cache, copy):
    store = copy()
    late = object_path(store, PENDING)
    kept = late.read_bytes()
    late.unlink()
    with ArtifactDAG.load(store) as dag:
        seq = dag.last_seq
        assert dag.count() == 59
    (made,) = side_files(cache)
    with ArtifactDAG.load(store) as dag:
        assert (dag.last_seq, len(dag.imports())) == (seq, 1)
    late.write_bytes(kept)
    rewrite(store, expected("fs_2_39_1")["ids"]["accepted"][0], status="superseded")
    with ArtifactDAG.load(store) as dag:
        assert dag.count() == 60
        report = dag.imports()[-1].report
        assert (report.read, report.new, report.changed, report.unknown.get("parent")) == (2, 1, 1, None)
        assert not dag.get_item(PENDING).facts.broken
        assert dag.verify().problems == []
    assert side_files(cache) == [made]


@pytest.mark.slow
@pytest.mark.parametrize("spoil", ["another content", "an object less", "another schema", "no database"])
def test_a_side_file_that_no_longer_fits_is_made_anew(cache, copy, spoil):
    store = copy()
    ArtifactDAG.load(store).close()
    (made,) = side_files(cache)
    side = next(cache.rglob(made))
    if spoil == "another content":
        rewrite(store, PENDING, content="something else")
    elif spoil == "an object less":
        object_path(store, PENDING).unlink()
    elif spoil == "another schema":
        connection = sqlite3.connect(side)
        connection.execute("DROP TRIGGER meta_refuse_update")
        connection.execute("UPDATE meta SET value = '1' WHERE name = 'schema_version'")
        connection.commit()
        connection.close()
    else:
        side.write_bytes(b"no database")
    with ArtifactDAG.load(store) as dag:
        assert dag.count() == (59 if spoil == "an object less" else 60)
        assert spoil != "another content" or dag.get_item(PENDING).artifact == "something else"
        assert dag.verify().problems == []
    assert side_files(cache)[-1] != made


def test_a_folder_without_a_store_and_a_cache_that_takes_nothing_are_one_line(cache, copy, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RepositoryError, match=r"it is a folder, and .* holds no AtomicGuard store"):
        ArtifactDAG.load(tmp_path / "empty")
    cache.parent.mkdir(parents=True)
    cache.write_text("a file is in the way")
    with pytest.raises(RepositoryError, match=r"side file in .* cannot be written"):
        ArtifactDAG.load(copy())


def test_every_database_takes_a_store_and_its_late_verdicts(place, copy):
    store = copy("fs_hostile")
    with ArtifactDAG.create(place.target) as dag:
        first = import_atomicguard(dag, store, reviews_path=STORES / "sqlite_2_39_1" / "reviews.db")
        assert (first.new, dag.count(refinement()), dag.count(reviewed())) == (59, 9, 3)
        rewrite(store, PENDING, status="accepted")
        assert import_atomicguard(dag, store).changed == 1
        assert (import_atomicguard(dag, store).unchanged, len(dag.imports())) == (59, 2)
        assert dag.verify().problems == []
