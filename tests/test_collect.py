"""Definition 7's loop, and collecting it into ℛ."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from guardlearn.attempts import attempt_chains
from guardlearn.collect import collect
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import DataError, GuardError, UsageError
from guardlearn.generators import ReplayGenerator
from guardlearn.prompts import Renderer
from guardlearn.types import ArtifactStatus
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


SLOW_COLLECT = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from rules import guard, specification
    from guardlearn.collect import collect
    from guardlearn.dag import ArtifactDAG
    from guardlearn.generators import ReplayGenerator
    from guardlearn.prompts import Renderer

    def answer(request):
        time.sleep({pause})
        _, spec, _, attempt = request.key.split("/")
        return f"w{{spec[1:]}} done" if int(attempt) == 1 + int(spec[1:]) % 4 else "no"

    specs = [specification(number) for number in range(30)]
    with ArtifactDAG.open_or_create({db!r}) as dag:
        print(collect(dag, specs, ReplayGenerator(answer), guard, renderer=Renderer()).attempts)
"""


def test_kill_9_in_the_middle_loses_and_doubles_nothing(tmp_path):
    db = str(tmp_path / "runs.db")
    tests = str(os.path.dirname(__file__))  # noqa: PTH120
    script = textwrap.dedent(SLOW_COLLECT)
    kills = 0
    for moment in (0.3, 0.8, 1.3):
        process = subprocess.Popen([sys.executable, "-c", script.format(tests=tests, db=db, pause=0.02)])
        time.sleep(moment + 0.5)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    done = subprocess.run(
        [sys.executable, "-c", script.format(tests=tests, db=db, pause=0)], capture_output=True, text=True, check=True
    )
    expected = sum(1 + number % 4 for number in range(30))
    assert int(done.stdout) == expected
    with ArtifactDAG.load(db, read_only=True) as dag:
        asked = [(i.metadata["spec_id"], i.facts.attempt) for i in dag.extract()]
        assert sorted(asked) == sorted((f"s{n}", k) for n in range(30) for k in range(1, 2 + n % 4))
        assert dag.verify().problems == []
