"""The scheduler and the local engine: the same results however many are under way, failures that lose nothing else."""

import threading
import time
import zlib
from concurrent.futures import Future

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.attempts import attempt_chains, run_chains
from guardlearn.budgets import Budget
from guardlearn.engines import LocalEngine
from guardlearn.errors import GeneratorUnavailable, ModelError, RequestRefused, UsageError
from guardlearn.generators import ReplayGenerator
from guardlearn.prompts import Renderer
from guardlearn.types import ArtifactStatus, GuardContext, Specification, Verdict
from rules import WordGuard, guard, specification


def noise(text):
    return zlib.crc32(text.encode())


class Draws(ReplayGenerator):
    """Answers by the request's key alone; takes `lanes` calls of `batch` requests, each after a while."""

    def __init__(self, lanes=1, batch=0, pause=0.0):
        super().__init__(self.draw)
        self.lanes, self.batch, self.pause = lanes, batch, pause
        self.calls = []
        self._lock, self._now, self.most = threading.Lock(), 0, 0

    @staticmethod
    def draw(request):
        return f"w{request.key.split('/')[1][1:]}" if noise(request.key) % 3 == 0 else f"no {noise(request.key) % 50}"

    def generate(self, requests, on_done=None):
        with self._lock:
            self.calls.append(len(requests))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            time.sleep(self.pause * (noise(requests[0].key) % 5))
            return super().generate(requests, on_done)
        finally:
            with self._lock:
                self._now -= 1


class Slow(WordGuard):
    """Takes a time that depends on the artifact; ends chains in every way there is."""

    def __init__(self, pause=0.0):
        self.pause = pause

    def __call__(self, artifact, context):
        time.sleep(self.pause * (noise(artifact) % 4))
        kind = noise(artifact) % 11
        if kind == 0 and not artifact.startswith("w"):
            raise RuntimeError("the checker broke")
        verdict = super().__call__(artifact, context)
        fatal = kind == 1 and verdict.status is ArtifactStatus.REJECTED
        return Verdict(status=verdict.status, feedback=f"{verdict.feedback} not {artifact}", fatal=fatal)


def one_after_the_other(specs, r_max, samples, seed):
    """The definition, written as plainly as it can be."""
    made, generator, judge = [], Draws(), Slow()
    for spec in specs:
        for sample in range(samples):
            for attempt in range(1, r_max + 1):
                text = generator.draw(type("Request", (), {"key": f"{seed}/{spec.id}/{sample}/{attempt}"}))
                try:
                    verdict = judge(text, GuardContext(specification=spec))
                except RuntimeError:
                    made.append((spec.id, sample, attempt, text, ArtifactStatus.PENDING))
                    break
                made.append((spec.id, sample, attempt, text, verdict.status))
                if verdict.passed or verdict.fatal:
                    break
    return made


def shape(attempts):
    return [(a.specification.id, a.sample, a.attempt, a.generation.text, a.verdict.status) for a in attempts]


@pytest.mark.slow
@given(
    chains=st.integers(1, 14),
    samples=st.integers(1, 2),
    r_max=st.integers(1, 5),
    seed=st.integers(0, 9),
    lanes=st.integers(1, 5),
    batch=st.integers(0, 3),
    in_flight=st.none() | st.integers(1, 6),
    workers=st.integers(1, 4),
    pauses=st.tuples(st.sampled_from([0, 0.001]), st.sampled_from([0, 0.001])),
)
@settings(max_examples=60, deadline=None)
def test_the_results_are_those_of_one_chain_after_the_other(
    chains, samples, r_max, seed, lanes, batch, in_flight, workers, pauses
):
    specs = [specification(n) for n in range(chains)]
    generator, told = Draws(lanes, batch, pauses[0]), []
    judge = Slow(pauses[1])
    with LocalEngine(generator, judge, guard_workers=workers) as engine:
        outcome = run_chains(
            specs, generator, judge, renderer=Renderer(), r_max=r_max, samples=samples, seed=seed, in_flight=in_flight,
            on_attempt=told.append, engine=engine,
        )  # fmt: skip
    expected = one_after_the_other(specs, r_max, samples, seed)
    assert shape(outcome.attempts) == expected
    assert sorted(shape(told)) == sorted(expected)  # each exactly once
    assert (outcome.unfinished, outcome.stopped) == ({}, "")
    for attempt in told:  # H is the chain so far, whatever was judged beside it
        assert [entry.feedback for entry in attempt.history] == [
            each.verdict.feedback for each in outcome.attempts if each.chain == attempt.chain
        ][: attempt.attempt - 1]
    assert generator.most <= lanes and (batch == 0 or max(generator.calls) <= batch)


def test_no_chain_waits_for_anothers_answer_where_requests_go_one_by_one():
    """Four chains of three attempts: with a lane each they take as long as one."""
    waits = threading.Barrier(4, timeout=30)

    class Together(ReplayGenerator):
        lanes, batch = 4, 1

        def generate(self, requests, on_done=None):
            waits.wait()  # breaks unless all four are asked at once
            return super().generate(requests, on_done)

    specs = [specification(n) for n in range(4)]
    answers = {spec.id: ["no", "no", f"w{n}"] for n, spec in enumerate(specs)}
    attempts = attempt_chains(specs, Together(answers), guard, renderer=Renderer())
    assert len(attempts) == 12


def test_one_that_takes_batches_gets_all_that_wait_while_others_are_judged():
    generator = Draws(lanes=1, batch=0)
    specs = [specification(n) for n in range(50)]
    attempts = attempt_chains(specs, generator, Slow(), renderer=Renderer(), r_max=4)
    assert generator.calls[0] == 50
    assert sum(generator.calls) == len(attempts)
    assert len(generator.calls) <= 8  # four waves, and a few calls that did not wait for the slowest verdict


def test_at_most_so_many_chains_are_under_way():
    open_now, most = set(), [0]

    class Watched(Draws):
        def generate(self, requests, on_done=None):
            open_now.update(request.key.rsplit("/", 1)[0] for request in requests)
            most[0] = max(most[0], len(open_now))
            return super().generate(requests, on_done)

    def stored(attempt):
        if attempt.verdict.status is not ArtifactStatus.REJECTED or attempt.verdict.fatal or attempt.attempt == 4:
            open_now.discard(f"0/{attempt.specification.id}/{attempt.sample}")

    specs = [specification(n) for n in range(30)]
    run_chains(specs, Watched(3, 1), Slow(), renderer=Renderer(), in_flight=5, on_attempt=stored)
    assert most[0] == 5


def test_a_generator_that_tells_of_answers_at_the_end_only_is_heard():
    class Silent(ReplayGenerator):
        def generate(self, requests, on_done=None):
            return super().generate(requests)

    class Short(ReplayGenerator):
        def generate(self, requests, on_done=None):
            return super().generate(requests)[:-1]

    specs = [specification(n) for n in range(3)]
    answers = {spec.id: ["no", f"w{n}"] for n, spec in enumerate(specs)}
    assert len(attempt_chains(specs, Silent(answers), guard, renderer=Renderer())) == 6
    with pytest.raises(ModelError, match="2 answers"):
        attempt_chains(specs, Short(answers), guard, renderer=Renderer())


# failures


class Failing(Draws):
    """Fails for some requests; `fails` maps a key to the error."""

    def __init__(self, fails, **options):
        super().__init__(**options)
        self.fails, self.asked = fails, []

    def generate(self, requests, on_done=None):
        self.asked += [request.key for request in requests]
        for request in requests:
            if error := self.fails(request.key):
                raise error
        return super().generate(requests, on_done)


def test_an_answer_that_never_came_leaves_its_chain_and_no_other():
    specs = [specification(n) for n in range(12)]
    lost = {"0/s3/0/1", "0/s7/0/2"}

    def fails(key):
        return GeneratorUnavailable("timed out") if key in lost else None

    generator = Failing(fails, lanes=3, batch=1)
    outcome = run_chains(specs, generator, Slow(), renderer=Renderer())
    expected = one_after_the_other(specs, 4, 1, 0)
    hit = {("s3", 0), ("s7", 0)} if any(row[:3] == ("s7", 0, 2) for row in expected) else {("s3", 0)}
    assert outcome.unfinished == dict.fromkeys(hit, "timed out")
    assert outcome.stopped == ""
    left = [row for row in expected if f"0/{row[0]}/0/{row[2]}" not in lost and (row[0] != "s3")]
    assert shape(outcome.attempts) == [row for row in left if row[0] != "s7" or row[2] < 2 or ("s7", 0) not in hit]
    assert len(generator.asked) == len(set(generator.asked))  # not asked again in the same run
    done = {}
    for attempt in outcome.attempts:
        done.setdefault(attempt.chain, []).append(attempt)
    again = run_chains(specs, Draws(), Slow(), renderer=Renderer(), done=done)
    assert shape(again.attempts) == expected


def test_a_server_that_is_down_ends_the_run_soon():
    specs = [specification(n) for n in range(200)]
    generator = Failing(lambda key: GeneratorUnavailable("no route to host"), lanes=2, batch=1)
    outcome = run_chains(specs, generator, guard, renderer=Renderer())
    assert outcome.stopped == "unavailable" and len(outcome.unfinished) == 200
    assert set(outcome.unfinished.values()) == {"no route to host"}
    assert 3 <= len(generator.asked) <= 8
    with pytest.raises(GeneratorUnavailable, match="no route"):
        attempt_chains(specs, generator, guard, renderer=Renderer())


def test_a_server_that_answers_now_and_then_is_not_down():
    specs, calls = [specification(n) for n in range(30)], []

    def fails(key):
        calls.append(key)
        return GeneratorUnavailable("busy") if len(calls) % 3 else None

    outcome = run_chains(specs, Failing(fails, lanes=1, batch=1), guard, renderer=Renderer())
    assert outcome.stopped == "" and len(outcome.unfinished) == len(calls) - len(outcome.attempts)
    assert {attempt.chain for attempt in outcome.attempts} | outcome.unfinished.keys() == {(s.id, 0) for s in specs}


def test_a_server_that_goes_down_on_the_way_keeps_what_is_there():
    specs = [specification(n) for n in range(40)]
    answered = []

    def fails(key):
        answered.append(key)
        return GeneratorUnavailable("gone") if len(answered) > 20 else None

    outcome = run_chains(specs, Failing(fails, lanes=1, batch=1), guard, renderer=Renderer())
    assert outcome.stopped == "unavailable"
    assert len(outcome.attempts) == 20
    assert len(answered) == 23  # three in a row


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_a_request_that_can_never_be_answered_leaves_its_chain_and_no_other(batch):
    specs = [specification(n) for n in range(9)]

    def fails(key):
        return RequestRefused(f"the prompt of {key} is too long", key) if key == "0/s4/0/1" else None

    outcome = run_chains(specs, Failing(fails, batch=batch), Slow(), renderer=Renderer())
    assert outcome.unfinished == {("s4", 0): "the prompt of 0/s4/0/1 is too long"}
    assert shape(outcome.attempts) == [row for row in one_after_the_other(specs, 4, 1, 0) if row[0] != "s4"]


def test_any_other_error_is_raised_after_what_is_in_flight_was_kept():
    """One lane raises at once; the other's answer, which comes later, is judged and told of all the same."""
    failed = threading.Event()

    class Broken(ReplayGenerator):
        lanes, batch = 2, 1

        def generate(self, requests, on_done=None):
            if "/s0/" in requests[0].key:
                failed.set()
                raise ModelError("the key was refused")
            assert failed.wait(30)
            time.sleep(0.1)
            return super().generate(requests, on_done)

    kept = []
    specs = [specification(n) for n in range(20)]
    with pytest.raises(ModelError, match="the key was refused"):
        run_chains(
            specs, Broken({f"s{n}": [f"w{n}"] for n in range(20)}), guard, renderer=Renderer(), on_attempt=kept.append
        )
    assert [attempt.specification.id for attempt in kept] == ["s1"]


def test_what_keeps_attempts_may_fail_and_is_not_called_again():
    calls = []

    def full(attempt):
        calls.append(attempt)
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        run_chains([specification(n) for n in range(9)], Draws(), guard, renderer=Renderer(), on_attempt=full)
    assert len(calls) == 1


# budgets and stopping


def spend(budget, generator=None, specs=30, **options):
    chosen = generator or Draws(3, 1)
    return run_chains(
        [specification(n) for n in range(specs)], chosen, Slow(0.001), renderer=Renderer(), budget=budget, **options
    )


@given(attempts=st.integers(1, 60), lanes=st.integers(1, 4), batch=st.integers(0, 2))
@settings(max_examples=25, deadline=None)
def test_a_budget_of_attempts_is_kept_to_the_last_one(attempts, lanes, batch):
    outcome = spend(Budget(attempts=attempts), Draws(lanes, batch))
    whole = len(one_after_the_other([specification(n) for n in range(30)], 4, 1, 0))
    assert len(outcome.attempts) == min(attempts, whole)
    assert outcome.stopped == ("attempts" if attempts < whole else "")
    if attempts < whole:
        assert set(outcome.unfinished.values()) == {f"the budget of {attempts} attempts is used up"}


@pytest.mark.slow
@given(tokens=st.integers(1, 150), lanes=st.integers(1, 4), batch=st.integers(0, 2), prompts=st.booleans())
@settings(max_examples=25, deadline=None)
def test_a_budget_of_tokens_is_not_exceeded_by_more_than_was_in_flight(tokens, lanes, batch, prompts):
    generator, budget = Draws(lanes, batch), Budget(tokens=tokens, prompt_tokens=prompts)
    outcome = spend(budget, generator)
    costs = sorted((budget.spent_by(attempt.generation) for attempt in outcome.attempts), reverse=True)
    last = sum(costs[: max(generator.calls) * lanes])  # what one call in each lane may have cost at most
    assert sum(costs) < tokens + last
    assert (
        (outcome.stopped == "tokens") == bool(outcome.unfinished) == (sum(costs) >= tokens and bool(outcome.unfinished))
    )
    done = {}
    for attempt in outcome.attempts:
        done.setdefault(attempt.chain, []).append(attempt)
    if outcome.unfinished:  # the same budget again buys nothing; a larger one goes on
        assert shape(spend(budget, done=done).attempts) == shape(outcome.attempts)
    assert shape(spend(None, done=done).attempts) == one_after_the_other([specification(n) for n in range(30)], 4, 1, 0)


def test_a_call_takes_no_more_than_the_budget_has_room_for():
    """All thirty wait, an answer costs one or two tokens: the first call is small, the later ones fit what is left."""
    generator = Draws()
    outcome = spend(Budget(tokens=20), generator)
    spent = sum(attempt.generation.completion_tokens for attempt in outcome.attempts)
    assert 20 <= spent <= 24


def test_a_server_that_counts_no_tokens_spends_the_budget_all_the_same():
    class Uncounted(ReplayGenerator):
        lanes, batch = 1, 1

        def generate(self, requests, on_done=None):
            return [
                msgspec.structs.replace(each, completion_tokens=0, prompt_tokens=0, tokens_known=False)
                for each in super().generate(requests)
            ]

    outcome = spend(Budget(tokens=20), Uncounted(lambda request: "x" * 10))
    assert (outcome.stopped, len(outcome.attempts)) == ("tokens", 7)  # three tokens each


def test_a_budget_of_time_ends_the_run_and_a_batched_call_is_cut_to_it():
    started = time.monotonic()
    outcome = spend(Budget(seconds=0.5), Draws(1, 0), specs=2000)
    assert outcome.stopped == "seconds"
    assert 0 < len(outcome.attempts) < 2000
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("name", ["tokens", "attempts", "seconds"])
def test_a_budget_of_nothing_is_refused(name):
    with pytest.raises(UsageError, match=f"budget of {name} is 0"):
        Budget(**{name: 0})


@pytest.mark.slow
def test_stopping_keeps_what_was_judged_and_waits_for_nothing():
    release, kept = threading.Event(), []

    class Stuck(ReplayGenerator):
        lanes, batch = 2, 1

        def generate(self, requests, on_done=None):
            if "/s1/" in requests[0].key:
                release.wait(60)
            return super().generate(requests, on_done)

    specs = [specification(n) for n in range(6)]
    answers = {spec.id: [f"w{n}"] for n, spec in enumerate(specs)}
    started = time.monotonic()
    outcome = run_chains(
        specs, Stuck(answers), guard, renderer=Renderer(), stop=lambda: len(kept) >= 5, on_attempt=kept.append
    )
    release.set()
    assert time.monotonic() - started < 30
    assert outcome.stopped == "interrupted" and outcome.unfinished == {("s1", 0): "it was interrupted"}
    assert len(outcome.attempts) == len(kept) == 5


# the engine by itself


@pytest.mark.slow
def test_closing_gives_up_what_waits_and_what_runs():
    begun, release = threading.Event(), threading.Event()

    class Waits(WordGuard):
        def __call__(self, artifact, context):
            begun.set()
            release.wait(60)
            return super().__call__(artifact, context)

    engine = LocalEngine(None, Waits(), guard_workers=1)
    spec = specification(1)
    futures: list[Future] = [engine.judge("w1", GuardContext(specification=spec)) for _ in range(3)]
    assert begun.wait(30)
    engine.close()
    assert [future.cancelled() for future in futures] == [False, True, True]
    release.set()
    assert futures[0].result(30).passed
    engine.close()


def test_an_engine_needs_a_guard_thread_and_for_answers_a_generator():
    with pytest.raises(UsageError, match="guard_workers is 0"):
        LocalEngine(None, guard, guard_workers=0)
    with LocalEngine(None, guard) as engine, pytest.raises(UsageError, match="no generator"):
        engine.generate([], lambda index, generation: None)


def test_in_flight_must_be_a_number_of_chains():
    with pytest.raises(UsageError, match="in_flight is 0"):
        run_chains([Specification(id="a", specification="a")], Draws(), guard, renderer=Renderer(), in_flight=0)
