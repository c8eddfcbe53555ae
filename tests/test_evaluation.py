"""Evaluation: figures worked out by hand, pairing, resuming, leakage; over the shipped replay generator."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import textwrap

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.digests import digest_text
from guardlearn.errors import DataError, LeakageError, ModelError, UsageError
from guardlearn.evaluation import check_leakage, evaluate
from guardlearn.generators.replay import ReplayGenerator
from guardlearn.prompts import Renderer
from guardlearn.types import ArtifactStatus, Specification, Verdict


class WordGuard:
    """Accepts "good"; "fatal" ends the chain; "silent" gets no verdict; another word is the cause of a rejection."""

    name = "word"
    version = "v1"
    constraints = "Say good."

    def __call__(self, artifact, context):
        if artifact == "silent":
            raise RuntimeError("the checker is down")
        accepted = artifact == "good"
        return Verdict(
            status=ArtifactStatus.ACCEPTED if accepted else ArtifactStatus.REJECTED,
            feedback="" if accepted else f"not {artifact}",
            cause="" if accepted else artifact,
            fatal=artifact == "fatal",
        )


def specifications(groups, per_group=3):
    return [
        Specification(id=f"s{g}.{n}", specification=f"Task {g}.{n}", group=f"g{g}")
        for g in range(groups)
        for n in range(per_group)
    ]


def draw(request, share):
    """Answer by the request's key alone, as common random numbers do."""
    number = int(hashlib.sha256(request.key.encode()).hexdigest()[:8], 16) / 2**32
    return "good" if number < share else ("style" if number < 0.9 else "cases")


def learner():
    return ReplayGenerator(lambda request: draw(request, 0.3), lambda request: draw(request, 0.8))


def run(specs, generator, folder, **options):
    options = {"adapter": "learned", "renderer": Renderer(), "r_max": 4} | options
    return evaluate(specs, generator, WordGuard(), folder=folder, **options)


def replay(base, candidate, folder, **options):
    """Evaluate from lists of words by specification id; the first letter of the id is its group."""
    specs = [Specification(id=name, specification=f"Do {name}", group=name[0]) for name in base]
    return run(specs, ReplayGenerator(base, candidate), folder, **options)


def test_figures_worked_out_by_hand(tmp_path):
    evidence = replay(
        {"a1": ["style", "good"], "a2": ["good"], "b1": ["cases"] * 4, "c1": ["fatal"], "c2": ["style"] * 4},
        {"a1": ["good"], "a2": ["good"], "b1": ["style", "good"], "c1": ["good"], "c2": ["good"]},
        tmp_path,
    )
    base, candidate = evidence.base, evidence.candidate
    assert (evidence.specs, evidence.groups, evidence.r_max) == (5, 3, 4)
    assert base.first_attempt.rate == pytest.approx((0.5 + 0 + 0) / 3)  # a mean of group means
    assert (base.first_attempt.passed, base.first_attempt.judged) == (1, 5)
    assert base.expected_attempts == pytest.approx(((2 + 1) / 2 + 4 + 4) / 3)  # the fatal chain is unsolved for good
    assert base.expected_retries == pytest.approx(base.expected_attempts - 1)
    assert base.solved_within_r_max == pytest.approx(1 / 3)
    assert base.solved_by_attempt == pytest.approx([1 / 6, 1 / 3, 1 / 3, 1 / 3])
    assert base.failures == {"style": 2, "cases": 1, "fatal": 1}
    assert base.outcomes == {"solved": 2, "unsolved": 2, "fatal": 1}
    assert base.attempts == 2 + 1 + 4 + 1 + 4
    assert candidate.first_attempt.rate == pytest.approx((1 + 0 + 1) / 3)
    assert evidence.difference.rate == pytest.approx((0.5 + 0 + 1) / 3)
    assert (evidence.changes.gained, evidence.changes.lost, evidence.changes.same) == (3, 0, 2)
    assert [(pair.id, pair.base.first, pair.base.attempts, pair.base.outcome) for pair in evidence.per_spec] == [
        ("a1", False, 2, "solved"),
        ("a2", True, 1, "solved"),
        ("b1", False, 4, "unsolved"),
        ("c1", False, 1, "fatal"),
        ("c2", False, 4, "unsolved"),
    ]


def test_no_verdicts_are_left_out_counted_and_held_against_the_candidate(tmp_path):
    good = {f"{group}1": ["good"] for group in "abcdefghij"}
    bad = {name: ["style"] * 4 for name in good}
    silent = {name: ["silent"] for name in ("a1", "b1", "c1", "d1")}
    evidence = replay(bad, good | silent, tmp_path)
    rate = evidence.candidate.first_attempt
    assert (rate.rate, rate.judged, rate.no_verdict) == (1.0, 6, 4)
    assert evidence.difference.rate == 1.0
    assert evidence.difference.pairs == 6
    assert evidence.difference.conservative.rate == pytest.approx(0.6)
    assert evidence.drops == {
        "candidate: no verdict on the first attempt": 4,
        "pairs without both verdicts": 4,
    }
    assert evidence.candidate.outcomes == {"solved": 6, "no verdict": 4}
    assert evidence.candidate.expected_attempts == 1.0  # the silent chains are censored before their first verdict
    assert evidence.candidate.failures == {}


def test_a_gain_that_only_no_verdicts_make_does_not_hold(tmp_path):
    names = [f"{group}1" for group in "abcdefghij"]
    base = {name: ["silent"] if name in names[:5] else ["style"] * 4 for name in names}
    candidate = {name: ["silent"] if name in names[:5] else ["good"] for name in names}
    difference = replay(base, candidate, tmp_path).difference
    assert difference.rate == 1.0
    assert difference.conservative.rate == 0.0
    assert not difference.holds


def test_an_adapter_that_changes_nothing_gives_the_bases_outcomes(tmp_path):
    same = ReplayGenerator(lambda request: draw(request, 0.4))
    evidence = run(specifications(20), same, tmp_path, samples=2)
    assert evidence.changes.chains_changed == 0
    assert (evidence.changes.gained, evidence.changes.lost) == (0, 0)
    assert all(pair.base == pair.candidate for pair in evidence.per_spec)
    assert len(evidence.per_spec) == 20 * 3 * 2
    assert (evidence.difference.rate, evidence.difference.p_value) == (0.0, 1.0)
    assert not evidence.difference.holds
    assert evidence.pairing == "common random numbers"


def test_a_better_adapter_is_seen_and_the_base_is_left_in_use(tmp_path):
    generator = learner()
    evidence = run(specifications(30), generator, tmp_path)
    assert evidence.difference.low > 0.3
    assert evidence.difference.holds
    assert evidence.difference.p_value < 1e-4
    assert evidence.candidate.expected_attempts < evidence.base.expected_attempts
    assert generator._adapter is None


def test_without_an_adapter_only_the_base_is_measured(tmp_path):
    evidence = run(specifications(4), learner(), tmp_path, adapter=None)
    assert evidence.candidate is None
    assert evidence.difference is None
    assert all(pair.candidate is None for pair in evidence.per_spec)


def test_the_evidence_has_the_promised_keys_and_is_plain_json(tmp_path):
    evidence = json.loads(msgspec.json.encode(run(specifications(6), learner(), tmp_path)))
    promised = {"model", "adapter", "specs", "groups", "samples_per_spec", "r_max", "base", "candidate", "difference"}
    assert promised | {"per_spec", "seed", "sampling", "versions", "digests", "drops"} <= evidence.keys()
    for side in ("base", "candidate"):
        assert {"first_attempt", "expected_attempts", "solved_within_r_max", "failures"} <= evidence[side].keys()
        assert {"rate", "low", "high"} <= evidence[side]["first_attempt"].keys()
    assert {"rate", "low", "high", "p_value", "minimum_detectable"} <= evidence["difference"].keys()


def test_specifications_without_a_group_count_for_themselves_and_equal_texts_together(tmp_path):
    texts = ["one", "one", "two"]
    specs = [Specification(id=str(n), specification=text) for n, text in enumerate(texts)]
    assert run(specs, learner(), tmp_path).groups == 2


def test_action_pairs_are_told_apart(tmp_path):
    specs = [
        Specification(id=f"{pair}{n}", specification=f"{pair} {n}", group=f"{pair}{n}", action_pair_id=pair)
        for pair in ("code", "text")
        for n in range(8)
    ]
    base = {spec.id: ["style"] * 4 for spec in specs}
    candidate = base | {spec.id: ["good"] for spec in specs if spec.action_pair_id == "code"}
    rows = run(specs, ReplayGenerator(base, candidate), tmp_path).by_action_pair
    assert [(row.action_pair_id, row.base, row.candidate, row.difference) for row in rows] == [
        ("code", 0.0, 1.0, 1.0),
        ("text", 0.0, 0.0, 0.0),
    ]


# resuming


class Unbroken:
    """An evaluation nobody interrupted."""

    def __init__(self, folder):
        self.evidence = run(specifications(8), learner(), folder)
        self.log = (folder / "attempts.jsonl").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return Unbroken(tmp_path_factory.mktemp("unbroken"))


def untimed(log):
    """Return the attempts of a log in a stable order, without the seconds the guard took."""
    rows = [json.loads(line) for line in log.splitlines()[1:]]
    for row in rows:
        row["verdict"].pop("seconds")
    return sorted(json.dumps(row) for row in rows)


@pytest.mark.slow
@given(cut=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_log_torn_at_any_byte_goes_on_to_the_same_evidence(unbroken, tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("torn")
    (folder / "attempts.jsonl").write_bytes(unbroken.log[: round(cut * len(unbroken.log))])
    assert run(specifications(8), learner(), folder) == unbroken.evidence
    assert untimed((folder / "attempts.jsonl").read_bytes()) == untimed(unbroken.log)  # nothing lost, nothing doubled


def test_a_finished_evaluation_asks_the_model_nothing(unbroken, tmp_path):
    (tmp_path / "attempts.jsonl").write_bytes(unbroken.log)
    asked = []
    answers = learner()._base
    silent = ReplayGenerator(lambda request: asked.append(request) or answers(request))
    assert run(specifications(8), silent, tmp_path) == unbroken.evidence
    assert asked == []


@pytest.mark.slow
def test_kill_9_in_the_middle_then_the_same_call_gives_the_same_evidence(unbroken, tmp_path):
    program = textwrap.dedent(
        f"""
        import os, signal, sys
        sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
        from pathlib import Path
        import test_evaluation as t
        from guardlearn.generators.replay import ReplayGenerator
        asked = 0
        def dying(share):
            def answer(request):
                global asked
                asked += 1
                if asked > 50:
                    os.kill(os.getpid(), signal.SIGKILL)
                return t.draw(request, share)
            return answer
        t.run(t.specifications(8), ReplayGenerator(dying(0.3), dying(0.8)), Path({str(tmp_path)!r}))
        """
    )
    killed = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    left = (tmp_path / "attempts.jsonl").read_bytes().count(b"\n")
    assert 20 < left < 60
    assert run(specifications(8), learner(), tmp_path) == unbroken.evidence


def test_another_plan_in_the_folder_is_refused_and_says_what_differs(unbroken, tmp_path):
    (tmp_path / "attempts.jsonl").write_bytes(unbroken.log)
    with pytest.raises(UsageError, match=r"seed 0 there, 1 here"):
        run(specifications(8), learner(), tmp_path, seed=1)
    with pytest.raises(UsageError, match=r"r_max 4 there, 3 here"):
        run(specifications(8), learner(), tmp_path, r_max=3)
    with pytest.raises(UsageError, match=r"specifications .* there"):
        run(specifications(9), learner(), tmp_path)
    assert (tmp_path / "attempts.jsonl").read_bytes() == unbroken.log


def test_an_adapter_is_known_by_its_weights_not_by_its_place(unbroken, tmp_path):
    for name, weights in (("one", b"w"), ("two", b"w"), ("three", b"other")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
    folder = tmp_path / "evaluation"
    first = run(specifications(3), learner(), folder, adapter=tmp_path / "one")
    moved = run(specifications(3), learner(), folder, adapter=tmp_path / "two")
    assert first.digests == moved.digests
    with pytest.raises(UsageError, match="adapter"):
        run(specifications(3), learner(), folder, adapter=tmp_path / "three")


def test_damage_before_the_last_line_is_an_error_naming_the_line(unbroken, tmp_path):
    lines = unbroken.log.splitlines(keepends=True)
    for damage, told in ((b"{}\n", "line 4"), (lines[2], "line 4.*attempt 1")):
        (tmp_path / "attempts.jsonl").write_bytes(b"".join([*lines[:3], damage, *lines[4:]]))
        with pytest.raises(DataError, match=told):
            run(specifications(8), learner(), tmp_path)
    (tmp_path / "attempts.jsonl").write_bytes(b"hello\n")
    with pytest.raises(DataError, match="no attempt log"):
        run(specifications(8), learner(), tmp_path)


def test_two_evaluations_at_once_in_one_folder_are_refused(tmp_path):
    def nested(request):
        with pytest.raises(UsageError, match="another evaluation is running"):
            run(specifications(1), learner(), tmp_path)
        return "good"

    run(specifications(1, 1), ReplayGenerator(nested), tmp_path, adapter=None)


def test_an_answer_with_a_lone_surrogate_survives_the_log(tmp_path):
    words = {"a1": ["\ud800", "good"], "b1": ["good"]}
    assert replay(words, words, tmp_path) == replay(words, words, tmp_path)


# what must not be evaluated


def manifest(texts=(), groups=(), **more):
    return {"specification_digests": [digest_text(text) for text in texts], "groups": list(groups)} | more


def test_evaluating_on_what_was_trained_is_an_error_that_names_it(tmp_path):
    specs = specifications(3)
    with pytest.raises(LeakageError, match=r"'s1.2' was trained on \(same text\); evaluate"):
        run(specs, learner(), tmp_path, manifest=manifest(["Task 1.2"]))
    with pytest.raises(LeakageError, match=r"'s2.0' is of group 'g2'.*and 2 more of 9"):
        run(specs, learner(), tmp_path, manifest=manifest(groups=["g2"]))
    assert not (tmp_path / "attempts.jsonl").exists()
    assert run(specs, learner(), tmp_path, manifest=manifest(["x"], ["y"])).leakage.startswith("no text")


def test_a_manifest_that_does_not_say_what_was_trained_on_is_refused():
    with pytest.raises(ModelError, match="'groups'"):
        check_leakage(specifications(1), {"specification_digests": []})


def test_prompts_other_than_the_trainings_are_refused(tmp_path):
    generator = learner()
    generator.prompt_digest = "b" * 64
    with pytest.raises(ModelError, match="aaaaaaaaaaaa, the generator asks with bbbbbbbbbbbb"):
        run(specifications(1), generator, tmp_path, manifest=manifest(template_digest="a" * 64))
    run(specifications(1), generator, tmp_path, manifest=manifest(template_digest="b" * 64))


def test_no_specifications_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="no specifications"):
        run([], learner(), tmp_path)


def test_one_group_gives_figures_without_intervals(tmp_path):
    evidence = run(specifications(1), learner(), tmp_path)
    assert evidence.difference.low is None
    assert not evidence.difference.holds
    assert "one group" in evidence.base.first_attempt.method


def test_progress_runs_once_through_both_models(tmp_path):
    seen = []
    run(specifications(4), learner(), tmp_path, on_progress=lambda done, total, note: seen.append((done, total, note)))
    assert {total for _, total, _ in seen} == {2 * 4 * 3 * 4}  # models, specifications, samples, R_max
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == 2 * 4 * 3 * 4
    assert seen[0][2].startswith("candidate") and seen[-1][2].startswith("base")
