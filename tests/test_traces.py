"""τ = E(ℛ, Φ): what becomes a trace, what does not and why, and that reading leaves ℛ alone."""

import hashlib
from datetime import UTC, datetime, timedelta

import pytest

from guardlearn.dag import ArtifactDAG
from guardlearn.errors import NoTracesError, PredicateError, UsageError
from guardlearn.predicates import POLICIES, everything, refinement, status
from guardlearn.traces import extract_traces, extract_training_data, get_provenance_chain, sparse_reward
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Side, Source

START = datetime(2026, 1, 1, tzinfo=UTC)
ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING


class Notebook:
    """Appends chains with as little writing as possible; every group is on the train side unless it says otherwise."""

    def __init__(self, dag: ArtifactDAG) -> None:
        self.dag = dag
        self.count = 0
        for side in (Side.TRAIN, Side.VALIDATION, Side.HELD_OUT):
            dag.assign_side(side.value, side)

    def chain(self, *statuses: ArtifactStatus, spec: str = "", group: str | None = "train", **given) -> list[str]:
        ids: list[str] = []
        spec = spec or f"task {self.count}"
        for each in statuses:
            self.count += 1
            defaults = {
                "artifact": f"answer {self.count}",
                "feedback": "" if each is ACCEPTED else f"wrong {self.count}",
                "parent_id": ids[-1] if ids else None,
                "created_at": START + timedelta(seconds=self.count),
            }
            ids.append(f"i{self.count}")
            item = RepositoryItem(id=ids[-1], specification=spec, group=group, status=each, **{**defaults, **given})
            self.dag.append(item)
        return ids


@pytest.fixture
def book(databases):
    with databases.repository() as dag:
        yield Notebook(dag)


def ids_of(extraction) -> list[str]:
    return [trace.item.id for trace in extraction.traces]


def test_a_trace_is_an_accepted_artifact_with_the_history_that_led_to_it(book):
    first, second, last = book.chain(REJECTED, REJECTED, ACCEPTED)
    book.chain(ACCEPTED)
    extraction = extract_traces(book.dag)
    assert ids_of(extraction) == [last]
    (trace,) = extraction.traces
    assert trace.history == (
        FeedbackEntry(artifact="answer 1", feedback="wrong 1", item_id=first),
        FeedbackEntry(artifact="answer 2", feedback="wrong 2", item_id=second),
    )
    assert (trace.retries, trace.side, trace.group) == (2, Side.TRAIN, "train")
    assert (extraction.selected, extraction.dropped, extraction.predicate) == (1, {}, "refinement()")


def test_everything_selected_is_a_trace_or_counted_under_its_reason(book):
    dag = book.dag
    good = book.chain(REJECTED, ACCEPTED, spec="same", artifact="same", feedback="same")[-1]
    book.chain(REJECTED, ACCEPTED, spec="same", artifact="same", feedback="same")
    kept = book.chain(REJECTED, ACCEPTED, spec="same", artifact="same", feedback="other")[-1]
    book.chain(REJECTED, ACCEPTED, group="held_out")
    book.chain(REJECTED, ACCEPTED, group="held_out", spec="held out too")
    dag.append_event(book.chain(REJECTED, ACCEPTED)[-1], "exclude", actor="test")
    dag.redact(book.chain(REJECTED, ACCEPTED)[-1], "test", "private")
    book.chain(ACCEPTED, artifact=" \n")
    book.chain(ACCEPTED, spec=" ")
    book.chain(ACCEPTED, artifact="nul \0")
    book.chain(REJECTED, ACCEPTED, spec="told", feedback="lone \ud800")
    book.chain(ACCEPTED, parent_id="never stored")
    book.chain(PENDING)
    extraction = extract_traces(dag, everything())
    assert ids_of(extraction) == [good, kept]
    assert extraction.dropped == {
        "not accepted: an accepted artifact is needed": 9,
        "held-out side: kept for measuring": 2,
        "excluded": 1,
        "redacted": 1,
        "empty artifact": 1,
        "empty specification": 1,
        "NUL or lone surrogates in its text": 2,
        "broken chain: an earlier attempt is missing": 1,
        "exact duplicate of an earlier trace": 1,
    }
    assert extraction.selected == dag.count(everything()) == len(extraction.traces) + sum(extraction.dropped.values())


def test_what_lies_between_two_sides_is_set_aside(book):
    shared = " ".join(f"word{number}" for number in range(30))
    book.chain(ACCEPTED, spec=f"{shared} one two three")
    book.chain(ACCEPTED, spec=f"{shared} four five six", group="held_out")
    book.chain(ACCEPTED, spec=shared, group=None)
    extraction = extract_traces(book.dag, "all")
    assert extraction.dropped == {
        "held-out side: kept for measuring": 1,
        "set aside: its specification lies near two sides": 1,
    }


def test_a_chain_follows_its_roots_specification(book):
    book.chain(ACCEPTED, spec="a quite different amended text", group="train")
    (root,) = book.chain(REJECTED, spec="original", group="held_out")
    book.chain(ACCEPTED, spec="a quite different amended text", group="train", parent_id=root)
    extraction = extract_traces(book.dag, "all")
    assert len(extraction.traces) == 1
    assert extraction.dropped == {"held-out side: kept for measuring": 1}


def test_sides_are_asked_for_by_name(book):
    book.chain(ACCEPTED)
    validation = book.chain(ACCEPTED, group="validation")
    assert {trace.side for trace in extract_traces(book.dag, "all").traces} == {Side.TRAIN, Side.VALIDATION}
    assert ids_of(extract_traces(book.dag, "all", sides=[Side.VALIDATION])) == validation
    assert extract_traces(book.dag, "all", sides=[Side.TRAIN]).dropped == {"validation side: not asked for": 1}


def test_a_policy_is_a_name_a_predicate_its_text_or_a_function(book):
    (wanted,) = book.chain(REJECTED, ACCEPTED)[1:]
    book.chain(ACCEPTED)
    for predicate in ("refinement", refinement(), "refinement()", lambda item: item.facts.rejected_ancestors > 0):
        extraction = extract_traces(book.dag, predicate)
        assert ids_of(extraction) == [wanted]
    assert "satisfies(" in extraction.predicate
    assert extract_traces(book.dag, "recent(days=100000)").predicate.startswith('created_after("')


def test_a_wrong_name_or_text_never_falls_back_to_another_policy(book):
    book.chain(REJECTED, ACCEPTED)
    with pytest.raises(UsageError, match=r"'refinment'.*refinement, all, generator, human, high_value, recent"):
        extract_traces(book.dag, "refinment")
    with pytest.raises(PredicateError):
        extract_traces(book.dag, "refinement() and retries(3)")


def test_no_traces_says_what_every_policy_would_find(book):
    dag = book.dag
    book.chain(ACCEPTED)
    book.chain(REJECTED, ACCEPTED, source=Source.GENERATOR)
    book.chain(REJECTED, ACCEPTED, source=Source.UNKNOWN)
    book.chain(REJECTED, REJECTED, REJECTED, ACCEPTED, created_at=datetime.now(UTC))
    expected = {"refinement": 3, "all": 4, "generator": 2, "human": 0, "high_value": 1, "recent": 1}
    with pytest.raises(NoTracesError) as caught:
        extract_traces(dag, "human")
    assert caught.value.alternatives == expected == {name: dag.count(POLICIES[name]()) for name in POLICIES}
    message = str(caught.value)
    assert 'refinement() & source("human") selects none of 9 items' in message
    assert "refinement 3, all 4, generator 2, human 0, high_value 1, recent 1" in message


def test_no_traces_in_an_empty_repository_says_how_to_fill_it(book):
    with pytest.raises(NoTracesError, match="holds no items; fill it with `guardlearn collect`") as caught:
        extract_traces(book.dag)
    assert caught.value.alternatives == dict.fromkeys(POLICIES, 0)


def test_no_traces_because_all_were_dropped_says_why(book):
    book.chain(REJECTED, ACCEPTED, group="held_out")
    with pytest.raises(NoTracesError, match=r"selects 1 of 2 items, but none can be used: 1 held-out side"):
        extract_traces(book.dag)
    book.chain(REJECTED, ACCEPTED, group="validation")
    with pytest.raises(NoTracesError, match="gives 1 traces, but none on the train side"):
        extract_traces(book.dag)


def test_the_checkpoint_points_at_the_last_row_and_later_ones_are_not_seen(book):
    ids = book.chain(REJECTED, ACCEPTED)
    first = extract_traces(book.dag)
    assert (first.checkpoint.seq, first.checkpoint.item_id) == (book.dag.last_seq, ids[-1])
    book.dag.append_event(ids[0], "review", actor="test")
    second = extract_traces(book.dag)
    assert (second.checkpoint.seq, second.checkpoint.item_id) == (first.checkpoint.seq + 1, ids[-1])
    assert second.sides_digest == first.sides_digest == book.dag.sides_digest()


def test_extraction_is_repeatable_and_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "runs.db"
    with ArtifactDAG.create(str(path)) as dag:
        book = Notebook(dag)
        for number in range(20):
            book.chain(REJECTED, ACCEPTED, spec=f"task {number % 15}")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    with ArtifactDAG.load(str(path), read_only=True) as dag:
        assert extract_traces(dag) == extract_traces(dag)
        extract_training_data(dag)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [each.name for each in tmp_path.iterdir()] == ["runs.db"]


def test_traces_come_in_order_of_creation_with_ties_by_id(book):
    for name in ("b", "c", "a"):
        book.chain(ACCEPTED, spec=name, created_at=START)
    late = book.chain(ACCEPTED, created_at=START - timedelta(days=1))
    assert ids_of(extract_traces(book.dag, "all")) == [*late, "i1", "i2", "i3"]


def test_the_guides_training_data_holds_strings_and_no_held_out_item(book):
    last = book.chain(REJECTED, ACCEPTED, spec="add two numbers", constraints="be brief")[-1]
    book.chain(REJECTED, ACCEPTED, group="held_out")
    book.chain(REJECTED, ACCEPTED, group="validation")
    (row,) = extract_training_data(book.dag)
    assert set(row) == {"prompt", "completion", "text", "metadata"}
    assert row["completion"] == "answer 2" and row["text"] == f"{row['prompt']}\n\n{row['completion']}"
    for part in ("add two numbers", "be brief", "answer 1", "wrong 1"):
        assert part in row["prompt"]
    assert row["metadata"] == {
        "source": "generator", "action_pair_id": "default", "workflow_id": "", "retry_count": 1, "item_id": last,
    }  # fmt: skip
    assert type(row["metadata"]["source"]) is str
    assert extract_training_data(book.dag, status("superseded")) == []
    assert len(extract_training_data(book.dag, lambda item: item.status is ACCEPTED)) == 1


def test_the_chain_of_an_item_runs_from_its_root(book):
    ids = book.chain(REJECTED, REJECTED, ACCEPTED)
    chain = get_provenance_chain(book.dag.get_item(ids[-1]), book.dag)
    assert [item.id for item in chain] == ids


def test_the_sparse_reward_is_a_lookup_of_the_current_status(book):
    rejected, accepted = book.chain(REJECTED, ACCEPTED)
    (pending,) = book.chain(PENDING)
    book.dag.append_event(accepted, "status", value="superseded", actor="test")
    assert sparse_reward(book.dag.get_item(rejected)) == -1
    assert sparse_reward(book.dag.get_item(accepted)) == 1
    with pytest.raises(ValueError, match="PENDING"):
        sparse_reward(book.dag.get_item(pending))
    book.dag.append_event(pending, "status", value="accepted", actor="test")
    assert sparse_reward(book.dag.get_item(pending)) == 1
