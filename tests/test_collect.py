"""Definition 7's loop, and collecting it into ℛ."""

import msgspec
import pytest

from guardlearn.attempts import attempt_chains
from guardlearn.budgets import Budget
from guardlearn.collect import collect
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import DataError, GeneratorUnavailable, GuardError, UsageError
from guardlearn.generators import ReplayGenerator
from guardlearn.prompts import Renderer
from guardlearn.types import ArtifactStatus, RepositoryItem, Source, Verdict
from rules import guard, specification

ANSWERS = {
    "s1": ["w1"],  # accepted at once
    "s2": ["no", "still no", "w2"],  # accepted at the third attempt
    "s3": ["no"],  # never
    "s4": ["no", "forbidden", "w4"],  # fatal at the second
    "s5": ["no", "crash", "w5"],  # the checker breaks at the second
}
SPECS = [specification(number) for number in range(1, 6)]


def run(specs=SPECS, **options):
    return attempt_chains(specs, ReplayGenerator(ANSWERS), guard, renderer=Renderer(), **options)


def chains(attempts):
    found = {}
    for attempt in attempts:
        found.setdefault(attempt.specification.id, []).append(attempt.verdict.status.value)
    return found


def test_a_chain_ends_when_accepted_fatal_without_verdict_or_at_r_max():
    assert chains(run(r_max=4)) == {
        "s1": ["accepted"],
        "s2": ["rejected", "rejected", "accepted"],
        "s3": ["rejected"] * 4,
        "s4": ["rejected", "rejected"],
        "s5": ["rejected", "pending"],
    }


def test_r_max_counts_the_first_attempt():
    assert chains(run(r_max=1)) == {f"s{n}": ["accepted" if n == 1 else "rejected"] for n in range(1, 6)}


def test_a_retry_is_asked_with_the_feedback_so_far():
    second = [attempt for attempt in run(r_max=2) if attempt.specification.id == "s2"][1]
    assert [entry.feedback for entry in second.history] == ["say w2"]
    assert second.messages[-1]["content"] == "Task 2\n\nsay w2"
    assert second.messages[0] == {"role": "system", "content": "Answer with one word."}


def test_a_guard_that_raises_gives_no_verdict_and_says_why():
    last = run(specs=[SPECS[4]])[-1]
    assert last.verdict.status is ArtifactStatus.PENDING
    assert last.verdict.feedback == "RuntimeError: the checker broke"
    assert last.verdict.cause == "guard failed"


def test_a_guard_that_returns_no_verdict_object_is_an_error():
    class Wrong(type(guard)):
        def __call__(self, artifact, context):
            return True

    with pytest.raises(GuardError, match=r"'word' returned bool"):
        attempt_chains(SPECS, ReplayGenerator(ANSWERS), Wrong(), renderer=Renderer())


def test_bad_arguments_are_refused():
    with pytest.raises(UsageError, match="r_max=0"):
        run(r_max=0)
    with pytest.raises(DataError, match="'s1' is given 2 times"):
        run(specs=[SPECS[0], SPECS[0]])


def test_collected_chains_are_in_the_repository_with_everything_known(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        summary = collect(dag, SPECS, ReplayGenerator(ANSWERS), guard, renderer=Renderer())
        assert (summary.attempts, summary.new_attempts, summary.accepted, summary.refinements) == (12, 12, 2, 1)
        assert summary.attempts_by_position == [5, 4, 2, 1]
        assert summary.accepted_by_position == [1, 0, 1, 0]
        items = [item for item in dag.extract(order_by="seq") if item.metadata["spec_id"] == "s2"]
        assert [item.facts.attempt for item in items] == [1, 2, 3]
        assert items[2].facts.rejected_ancestors == 2
        assert [entry.artifact for entry in items[2].history] == ["no", "still no"]
        assert items[0].guard == "word" and items[0].guard_version == "1" and items[0].model == "replay"
        assert dag.verify().problems == []


def test_collecting_again_changes_nothing_and_a_higher_r_max_goes_on(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        collect(dag, SPECS, ReplayGenerator(ANSWERS), guard, renderer=Renderer(), r_max=2)
        before = dag.last_seq
        again = collect(dag, SPECS, ReplayGenerator(ANSWERS), guard, renderer=Renderer(), r_max=2)
        assert (again.new_attempts, dag.last_seq) == (0, before)
        further = collect(dag, SPECS, ReplayGenerator(ANSWERS), guard, renderer=Renderer(), r_max=4)
        assert further.attempts == 12
        assert further.accepted == 2


def test_another_seed_is_another_run(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        collect(dag, SPECS, ReplayGenerator(ANSWERS), guard, renderer=Renderer())
        second = collect(dag, SPECS, ReplayGenerator(ANSWERS), guard, renderer=Renderer(), seed=1)
        assert second.new_attempts == 12
        assert dag.count() == 24


# what is stored, and how a run goes on from it


class Checker(type(guard)):
    """The word guard whose tool can be taken away and given back; it says what its parts said."""

    works = True

    def __call__(self, artifact, context):
        if not self.works:
            raise RuntimeError("no such tool")
        verdict = super().__call__(artifact, context)
        parts = (Verdict(status=ArtifactStatus.ACCEPTED, guard="parses", seconds=0.25), verdict)
        return msgspec.structs.replace(verdict, verdicts=parts)


def gather(dag, judge=guard, specs=SPECS, answers=ANSWERS, **options):
    return collect(dag, specs, ReplayGenerator(answers), judge, renderer=Renderer(), **options)


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        yield dag


def items_of(dag, spec_id):
    return [item for item in dag.extract(order_by="seq") if item.metadata.get("spec_id") == spec_id]


def test_an_item_says_how_it_was_asked_what_it_cost_and_what_each_part_of_the_guard_said(dag):
    gather(dag, Checker(), seed=3, adapter="a" * 64)
    item = items_of(dag, "s2")[1]
    assert (item.adapter, item.model, item.sampling["seed"]) == ("a" * 64, "replay", 3)
    assert item.prompt_digest == Renderer().digest
    assert item.metadata["request_key"] == "3/s2/0/2"
    assert (item.metadata["prompt_tokens"], item.metadata["completion_tokens"]) == (8, 2)
    assert {"generation_seconds", "latency_seconds", "guard_seconds", "finish"} <= item.metadata.keys()
    assert item.metadata["verdicts"] == [
        {"guard": "parses", "status": "accepted", "cause": "", "seconds": 0.25},
        {"guard": "", "status": "rejected", "cause": "word", "seconds": 0.0},
    ]


def test_answers_without_a_verdict_are_judged_again_when_asked_for(dag):
    judge = Checker()
    judge.works = False
    first = gather(dag, judge)
    assert (first.attempts, first.no_verdict) == (5, 5)
    assert gather(dag, judge).new_attempts == 0  # they wait until somebody asks
    broken = dag.last_seq
    assert gather(dag, judge, retry_no_verdict=True).judged_again == 0
    assert dag.last_seq == broken  # still no verdict: nothing is stored
    judge.works = True
    judged = gather(dag, judge, retry_no_verdict=True, budget=Budget(attempts=5))
    assert (judged.judged_again, judged.new_attempts) == (5, 0)  # judging costs no attempt, and answers were paid for
    again = gather(dag, judge, retry_no_verdict=True)
    assert (again.judged_again, again.new_attempts, again.no_verdict) == (0, 7, 1)  # the guard breaks on "crash"
    assert chains_of(dag) == chains(run())
    for item in items_of(dag, "s2")[:2]:
        assert item.parent_id is None
    old, new = items_of(dag, "s2")[:2]
    assert (old.status, new.status, new.artifact) == (ArtifactStatus.PENDING, ArtifactStatus.REJECTED, "no")
    assert old.facts.excluded
    assert not new.facts.excluded
    assert new.metadata["judged_before"] == old.id
    assert dag.verify().problems == []


def chains_of(dag):
    found = {}
    for item in dag.extract(order_by="seq"):
        if not item.facts.excluded:
            found.setdefault(item.metadata["spec_id"], []).append(item.status.value)
    return found


def test_a_later_attempt_without_verdict_is_judged_again_in_its_place(dag):
    class Breaks(Checker):
        def __call__(self, artifact, context):
            if artifact == "still no" and not self.works:
                raise RuntimeError("no such tool")
            return type(guard).__call__(self, artifact, context)

    judge = Breaks()
    judge.works = False
    gather(dag, judge, [SPECS[1]])
    judge.works = True
    again = gather(dag, judge, [SPECS[1]], retry_no_verdict=True)
    assert (again.attempts, again.new_attempts, again.judged_again, again.accepted) == (3, 1, 1, 1)
    first, old, new, last = items_of(dag, "s2")
    assert (old.parent_id, new.parent_id, last.parent_id) == (first.id, first.id, new.id)
    assert [entry.feedback for entry in last.history] == ["say w2", "say w2"]
    assert gather(dag, judge, [SPECS[1]], retry_no_verdict=True).new_attempts == 0


def test_a_chain_that_a_human_answered_needs_no_further_attempt(dag):
    gather(dag, specs=[SPECS[2]], r_max=2)
    last = items_of(dag, "s3")[-1]
    answer = RepositoryItem(
        id="human-1", parent_id=last.id, workflow_id=last.workflow_id, specification=f"{last.specification} At once!",
        artifact="w3", status=ArtifactStatus.ACCEPTED, source=Source.HUMAN, group=last.group,
        metadata={"spec_id": "s3", "sample": 0},
    )  # fmt: skip
    dag.append(answer)
    assert gather(dag, specs=[SPECS[2]], r_max=4).new_attempts == 0


def test_a_run_goes_on_from_items_whose_texts_were_redacted(dag):
    gather(dag, specs=[SPECS[1]], r_max=2)
    for item in items_of(dag, "s2"):
        dag.redact(item.id, "someone", "a name in it")
    summary = gather(dag, specs=[SPECS[1]], r_max=4)
    assert (summary.attempts, summary.new_attempts, summary.accepted) == (3, 1, 1)


def test_other_constraints_make_another_chain(dag):
    gather(dag, specs=[SPECS[0]])
    shorter = msgspec.structs.replace(SPECS[0], constraints="One word!")
    assert gather(dag, specs=[shorter]).new_attempts == 1
    assert gather(dag, specs=[shorter]).new_attempts == 0
    assert [item.constraints for item in items_of(dag, "s1")] == ["Answer with one word.", "One word!"]


def test_samples_are_chains_of_their_own(dag):
    assert gather(dag, samples=1).new_attempts == 12
    assert gather(dag, samples=3).new_attempts == 24
    assert gather(dag, samples=2).new_attempts == 0
    assert len({(i.metadata["spec_id"], i.metadata["sample"], i.facts.attempt) for i in dag.extract()}) == 36


def test_a_budget_counts_what_earlier_runs_spent(dag):
    first = gather(dag, budget=Budget(attempts=4))
    assert (first.attempts, first.stopped) == (4, "attempts")
    assert sum(first.unfinished.values()) == len(first.unfinished_chains) == 4  # s1 was accepted at once
    assert (gather(dag, budget=Budget(attempts=4)).new_attempts, gather(dag, budget=Budget(attempts=6)).attempts) == (
        0,
        6,
    )
    assert gather(dag).attempts == 12


def test_a_generator_that_answers_nothing_at_all_is_an_error(dag):
    class Down(ReplayGenerator):
        def generate(self, requests, on_done=None):
            raise GeneratorUnavailable("no route to host")

    with pytest.raises(GeneratorUnavailable, match="no route"):
        collect(dag, SPECS, Down(ANSWERS), guard, renderer=Renderer())
