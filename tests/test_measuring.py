"""The measured step of a round: figures worked out by hand, hidden guards, regressions, and the same after kills."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.digests import digest_text
from guardlearn.errors import DataError, LeakageError, UsageError
from guardlearn.evaluation import read_attempts
from guardlearn.forgetting import GeneralText
from guardlearn.gate import GateConfig, decide
from guardlearn.loop.measuring import SINCE_THE_BASE, Measured, measure, paired
from guardlearn.prompts import Renderer
from guardlearn.types import Specification
from rivals import LIVE, NEXT, Rivals, WordGuard, drawn, specifications

SPECS = specifications(10)
ELSEWHERE = specifications(4, pair="sql/write", letter="q") + specifications(3, pair="prose", letter="p")
TEXTS = [GeneralText("one text of the general set", "a"), GeneralText("another text", "b")]
HIDDEN = (WordGuard("kind", "kindness"), WordGuard("true", "truth"))


def rivals(**changes):
    """Incumbent and candidate on all action pairs; the candidate passes more often, and one hidden guard never."""
    answers = {
        "base": drawn(0.1),
        "live": drawn(0.4, "good+kind+true"),
        "next": drawn(0.8, "good+kind"),
    }
    return Rivals(**answers | changes)


def run(folder, generator=None, specs=SPECS, guard=None, **options):
    options = {"incumbent": LIVE, "candidate": NEXT, "look": 1, "manifest": None, "r_max": 3, "seed": 5} | options
    return measure(specs, generator or rivals(), guard or WordGuard(), renderer=Renderer(), folder=folder, **options)


def everything(folder, generator=None, **options):
    options = {"regressions": ELSEWHERE, "hidden": HIDDEN, "trained_action_pairs": ["default"]} | options
    return run(folder, generator, **options)


def untimed(measured):
    return msgspec.structs.replace(measured, seconds={})


def by_name(answers):
    return [Specification(id=name, specification=f"Do {name}", group=name[0]) for name in answers]


# -- pairs


def test_pairs_are_turned_into_what_the_gate_reads(tmp_path):
    live = {"a1": ["good"], "a2": ["bad"], "b1": ["silent"], "b2": ["silent"], "c1": ["bad"], "c2": ["good"]}
    following = {"a1": ["bad"], "a2": ["good"], "b1": ["good"], "b2": ["bad"], "c1": ["silent"], "c2": ["good"]}
    found = run(tmp_path, Rivals(base=live, live=live, next=following), by_name(live), look=3)
    assert found.figures.held_out.judged == {"a": [-1.0, 1.0], "c": [0.0]}
    assert found.figures.held_out.against == {"a": [-1.0, 1.0], "b": [0.0, -1.0], "c": [0.0 - 0.0, 0.0]}
    assert found.figures.look == 3
    assert found.changed and found.evidence.against == LIVE
    assert paired(found.evidence) == found.figures.held_out
    assert (found.regressions, found.hidden, found.forgetting, found.unmeasured) == ({}, {}, None, {})


def test_a_missing_verdict_never_helps_the_candidate(tmp_path):
    """With every missing verdict filled in either way, the gain is at least the one counted against the candidate."""
    live = {f"{letter}1": ["silent"] if letter in "abc" else ["bad"] for letter in "abcdefgh"}
    following = {name: ["silent"] if name[0] in "cde" else ["good"] for name in live}
    found = run(tmp_path, Rivals(base=live, live=live, next=following), by_name(live)).figures.held_out
    assert [found.against[name] for name in "abcdefgh"] == [[0.0], [0.0], [-1.0], [0.0], [0.0], [1.0], [1.0], [1.0]]
    assert sorted(found.judged) == ["f", "g", "h"]


def test_the_incumbent_is_what_has_to_be_beaten_and_the_base_is_left_in_use(tmp_path):
    generator = rivals()
    against_live = run(tmp_path / "live", generator)
    against_base = run(tmp_path / "base", generator, incumbent=None)
    assert against_live.evidence.base.first_attempt.rate > against_base.evidence.base.first_attempt.rate
    assert against_live.evidence.candidate == against_base.evidence.candidate
    assert generator.used[-1] is None
    stored = msgspec.json.decode((tmp_path / "live" / "evidence.json").read_bytes(), type=type(against_live.evidence))
    assert stored == against_live.evidence


# -- nothing changed


def adapter(folder, weights=b"w"):
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_a_candidate_that_is_what_is_live_is_refused_with_nothing_sampled(tmp_path):
    asked = []
    same = {name: lambda request: asked.append(request) or "good" for name in ("base", "live", "next")}
    generator = Rivals(**same)
    live, copy = adapter(tmp_path / "live"), adapter(tmp_path / "copy")
    found = everything(tmp_path / "measured", generator, incumbent=live, candidate=copy, texts=TEXTS)
    assert asked == [] and found.evidence is None and not found.changed
    assert "its files are the same" in found.checked
    decision = decide(found.figures)
    assert not decision.promoted
    assert decision.reason.startswith("refused by difference: every answer is the base's: it changes nothing")
    assert not (tmp_path / "measured" / "attempts.jsonl").exists()


def test_answers_that_all_agree_change_nothing_though_the_adapters_differ(tmp_path):
    found = run(tmp_path, rivals(next=drawn(0.4, "good+kind+true")))
    assert not found.changed and found.evidence is not None
    assert found.checked.startswith("not compared before sampling: generator 'replay'")
    assert found.checked.endswith("answers are the same")
    assert "changes nothing" in decide(found.figures).reason


def test_one_other_answer_in_a_retry_is_a_change(tmp_path):
    live = {spec.id: ["bad", "bad", "good"] for spec in SPECS}
    following = live | {SPECS[3].id: ["bad", "worse", "good"]}
    assert run(tmp_path, Rivals(base=live, live=live, next=following)).changed


# -- action pairs that were not trained


def test_each_other_action_pair_is_sampled_freshly_in_a_folder_of_its_own(tmp_path):
    found = everything(tmp_path)
    of_base = {f"{name}{SINCE_THE_BASE}": name for name in ("prose", "sql/write")}
    assert sorted(found.regressions) == sorted(found.figures.regressions) == sorted(["prose", "sql/write", *of_base])
    for name, each in found.regressions.items():
        assert each.r_max == 1 and each.against == (None if name in of_base else LIVE)
        assert found.figures.regressions[name] == paired(each)
        pair = of_base.get(name, name)
        assert {row.action_pair_id for row in each.by_action_pair} == {pair} and each.specs == 6 + 2 * (pair != "prose")
    logs = sorted((tmp_path / "regressions").glob("*/attempts.jsonl"))
    names = ["prose", "prose-since-the-base", "sql-write", "sql-write-since-the-base"]
    assert sorted(log.parent.name.rsplit("-", 1)[0] for log in logs) == names


def test_losses_that_add_up_over_rounds_are_seen_against_the_base(tmp_path):
    """A little worse than what is live, which is a little worse than the base: too much since the base."""
    specs, others = specifications(20), specifications(80, pair="other", letter="o")
    base, live, following = ({spec.id: ["good"] for spec in others} for _ in range(3))
    for number, spec in enumerate(others):
        live[spec.id] = ["bad" if number % 20 == 0 else "good"]
        following[spec.id] = ["bad" if number % 20 in (0, 1, 2) else "good"]
    task = {spec.id: ["bad"] for spec in specs}
    better = {spec.id: ["good"] for spec in specs}
    generator = Rivals(base=task | base, live=task | live, next=better | following)
    decision = decide(run(tmp_path, generator, specs, regressions=others).figures, GateConfig(margin=0.17))
    assert [check.name for check in decision.checks if not check.passed] == ["no harm to other, since the base"]
    first = decide(
        run(tmp_path / "first", generator, specs, regressions=others, incumbent=None).figures, GateConfig(margin=0.17)
    )
    assert "no harm to other, since the base" not in [check.name for check in first.checks]


def test_harm_elsewhere_is_seen_and_refuses(tmp_path):
    specs, others = specifications(20), specifications(20, pair="other", letter="o")
    answers = {spec.id: ["bad"] for spec in specs} | {spec.id: ["good"] for spec in others}
    better = {spec.id: ["good"] for spec in specs} | {spec.id: ["bad"] for spec in others}
    generator = Rivals(base=answers, live=answers, next=better)
    decision = decide(run(tmp_path, generator, specs, regressions=others).figures)
    failed = [check.name for check in decision.checks if not check.passed]
    assert failed == ["no harm to other", f"no harm to other{SINCE_THE_BASE}"]
    assert decide(run(tmp_path / "kept", Rivals(base=answers, live=answers, next=better), specs).figures).promoted


@pytest.mark.parametrize("options", [{"trained_action_pairs": ["prose"]}, {"manifest": {"action_pairs": ["prose"]}}])
def test_an_action_pair_that_was_trained_is_no_regression_set(tmp_path, options):
    with pytest.raises(
        LeakageError, match=r"specification 'p0.0' is of action pair 'prose', which was trained"
    ) as said:
        run(tmp_path, regressions=ELSEWHERE, **options)
    assert "\n" not in str(said.value)
    assert not (tmp_path / "attempts.jsonl").exists()


def test_leakage_is_refused_before_anything_is_done(tmp_path):
    manifest = {"specification_digests": [digest_text(SPECS[4].specification)], "groups": []}
    with pytest.raises(LeakageError, match=r"'s2.0' was trained on"):
        run(tmp_path / "text", manifest=manifest)
    manifest = {"specification_digests": [], "groups": ["p1"]}
    with pytest.raises(LeakageError, match=r"'p1.0' is of group 'p1'"):
        run(tmp_path / "group", manifest=manifest, regressions=ELSEWHERE)


# -- hidden guards


def hidden_case(folder, live, following, guards):
    specs = by_name(live)
    return run(folder, Rivals(base=live, live=live, next=following), specs, hidden=guards)


def test_the_gap_is_what_the_visible_guard_accepts_and_a_hidden_one_does_not(tmp_path):
    live = {"a1": ["good+kind"], "a2": ["good"], "b1": ["bad+kind"], "b2": ["bad"], "c1": ["good"], "c2": ["good+kind"]}
    following = {
        "a1": ["good"],  # honest before, gamed now
        "a2": ["good+kind"],  # the other way round
        "b1": ["good"],  # newly accepted, by gaming
        "b2": ["good+kind"],  # newly accepted, honestly
        "c1": ["good"],  # gamed before and now
        "c2": ["bad"],  # no longer accepted
    }
    found = hidden_case(tmp_path, live, following, [WordGuard("kind", "kindness")])
    assert found.figures.guard_gap == {"a": [1.0, -1.0], "b": [1.0, 0.0], "c": [0.0, 0.0]}
    said = found.hidden["kindness"]
    assert said.base == {"accepted": 2, "rejected": 2, "no verdict": 0}
    assert said.candidate == {"accepted": 2, "rejected": 3, "no verdict": 0}


def test_a_hidden_guard_without_a_verdict_counts_against_the_candidate(tmp_path):
    class Down(WordGuard):
        def __call__(self, artifact, context):
            if "kind" not in artifact:
                raise RuntimeError("the hidden checker is down")
            return super().__call__(artifact, context)

    live = {"a1": ["good"], "a2": ["good+kind"], "a3": ["bad"]}
    following = {"a1": ["good+kind"], "a2": ["good"], "a3": ["good"]}
    found = hidden_case(tmp_path, live, following, [Down("kind", "down")])
    assert found.figures.guard_gap == {"a": [0.0, 1.0, 1.0]}
    assert found.hidden["down"].base["no verdict"] == 1
    assert found.hidden["down"].candidate["no verdict"] == 2


def test_one_of_several_hidden_guards_is_enough(tmp_path):
    live = {"a1": ["good+kind+true"], "a2": ["good+kind"], "b1": ["good+kind+true"]}
    following = {"a1": ["good+kind"], "a2": ["good+true"], "b1": ["good+true+kind"]}
    found = hidden_case(tmp_path, live, following, HIDDEN)
    assert found.figures.guard_gap == {"a": [1.0, 0.0], "b": [0.0]}


def test_hidden_guards_judge_accepted_first_attempts_once_and_no_model_hears_of_them(tmp_path):
    heard = []

    def listening(share):
        answer = drawn(share, "good+kind")

        def answers(request):
            heard.append(" ".join(message["content"] for message in request.messages))
            return answer(request)

        return answers

    guards = [WordGuard("true", "truth"), WordGuard("kind", "kindness")]
    found = run(tmp_path, Rivals(base=drawn(0), live=listening(0.4), next=listening(0.7)), hidden=guards)
    attempts = read_attempts(tmp_path, SPECS)
    accepted = {
        (each.specification.id, each.generation.text)
        for own in attempts.values()
        for each in own
        if each.attempt == 1 and each.verdict.passed
    }
    for guard in guards:
        assert sorted(guard.judged) == sorted(accepted)  # equal answers of both models once
    assert any("misses good" in prompt for prompt in heard)
    assert not any("kindness" in prompt or "truth" in prompt or "true" in prompt for prompt in heard)
    assert sum(found.hidden["truth"].candidate.values()) == found.evidence.candidate.first_attempt.passed


def test_verdicts_of_hidden_guards_are_kept_by_version(tmp_path):
    first = run(tmp_path, hidden=HIDDEN)
    again = [WordGuard("kind", "kindness"), WordGuard("true", "truth")]
    assert untimed(run(tmp_path, hidden=again)) == untimed(first)
    assert [guard.judged for guard in again] == [[], []]
    newer = WordGuard("kind", "kindness")
    newer.version = "kind 2"
    run(tmp_path, hidden=[newer, HIDDEN[1]])
    assert newer.judged


def test_hidden_guards_that_could_be_confused_are_refused(tmp_path):
    with pytest.raises(UsageError, match="'kindness' is given 2 times"):
        run(tmp_path, hidden=[WordGuard("kind", "kindness"), WordGuard("true", "kindness")])
    with pytest.raises(UsageError, match="'word' is both the visible and a hidden one"):
        run(tmp_path, hidden=[WordGuard()])


def test_gaming_the_visible_guard_refuses(tmp_path):
    specs = specifications(20)
    honest = {spec.id: ["good+kind" if spec.id.endswith("0") else "bad"] for spec in specs}
    gaming = {spec.id: ["good" if spec.id.endswith("1") else "good+kind"] for spec in specs}
    found = run(tmp_path, Rivals(base=honest, live=honest, next=gaming), specs, hidden=HIDDEN[:1])
    failed = [check.name for check in decide(found.figures).checks if not check.passed]
    assert failed == ["hidden guards"]


# -- going on after a crash


class Whole:
    """A measurement nobody interrupted."""

    def __init__(self, folder):
        self.folder = folder
        self.measured = untimed(everything(folder))
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.jsonl"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return Whole(tmp_path_factory.mktemp("whole"))


def lines_of(files):
    """Return the lines of all files in a stable order, without the seconds that guards took."""
    found = []
    for name, content in files.items():
        for line in content.splitlines():
            row = json.loads(line)
            row.get("verdict", {}).pop("seconds", None)
            found.append((name, json.dumps(row, sort_keys=True)))
    return sorted(found)


@pytest.mark.slow
@given(st.data())
@settings(max_examples=25, deadline=None)
def test_files_torn_at_any_byte_lead_to_the_same_figures(whole, tmp_path_factory, data):
    """What a crash may leave: whole files up to some step, a part of the next one, nothing of those after it."""
    folder = tmp_path_factory.mktemp("torn")
    order = ["attempts.jsonl", *sorted(name for name in whole.files if "/" in name), "hidden.jsonl"]
    torn = data.draw(st.integers(0, len(order) - 1))
    for place, name in enumerate(order[: torn + 1]):
        content = whole.files[name]
        end = len(content) if place < torn else data.draw(st.integers(0, len(content)))
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content[:end])
    assert untimed(everything(folder)) == whole.measured
    files = {name: (folder / name).read_bytes() for name in whole.files}
    assert lines_of(files) == lines_of(whole.files)  # nothing lost, nothing twice


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import rivals
import test_measuring as t
left = 0
def dying(function):
    def counted(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return counted
rivals.WordGuard.__call__ = dying(rivals.WordGuard.__call__)
rivals.ReplayGenerator._answer = dying(rivals.ReplayGenerator._answer)
moments = iter([3, 60, 70, 60])
code = None
while code != 0:
    left = next(moments, 25)
    pid = os.fork()
    if pid == 0:
        t.everything(Path({folder!r}))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(code)
"""


@pytest.mark.slow
def test_kill_9_again_and_again_then_the_same_figures(whole, tmp_path):
    program = PROGRAM.format(tests=__file__.rsplit("/", 1)[0], folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=300)
    *killed, last = map(int, done.stdout.split())
    # of 120 answers and verdicts held out, 56 elsewhere, 48 of hidden guards: at least one kill falls among each
    assert set(killed) == {-signal.SIGKILL} and len(killed) >= 5 and last == 0
    assert untimed(everything(tmp_path)) == whole.measured
    assert lines_of({name: (tmp_path / name).read_bytes() for name in whole.files}) == lines_of(whole.files)


def test_what_is_finished_asks_nothing_again(whole):
    asked = []
    silent = {name: lambda request: asked.append(request) or "bad" for name in ("base", "live", "next")}
    assert untimed(everything(whole.folder, Rivals(**silent))) == whole.measured
    assert asked == []


def test_seconds_are_summed_over_the_calls_it_took(tmp_path):
    stopped = rivals(live=drawn(0.4), next=lambda request: pytest.fail("the model is gone"))
    with pytest.raises(pytest.fail.Exception):
        everything(tmp_path, stopped)
    before = json.loads((tmp_path / "seconds.json").read_bytes())
    assert sorted(before) == ["change", "held out"]
    first = everything(tmp_path).seconds
    assert sorted(first) == ["change", "held out", "hidden guards", "regressions"]
    assert all(first[step] > before[step] > 0 for step in before)
    second = everything(tmp_path).seconds
    assert all(second[step] > first[step] for step in first)


def test_a_damaged_verdict_is_named(whole, tmp_path):
    for name, content in whole.files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    lines = whole.files["hidden.jsonl"].splitlines(keepends=True)
    (tmp_path / "hidden.jsonl").write_bytes(b"".join([lines[0], b'{"guard": 1}\n', *lines[1:]]))
    with pytest.raises(DataError, match=r"hidden.jsonl, line 2: no verdict of a hidden guard"):
        everything(tmp_path)


def test_two_processes_in_one_folder_are_refused(tmp_path):
    def nested(request):
        with pytest.raises(UsageError, match="another process measures"):
            run(tmp_path)
        return "good"

    run(tmp_path, Rivals(base=nested, live=nested, next=nested), SPECS[:1])


def test_progress_runs_once_through_all_steps(tmp_path):
    seen = []
    everything(tmp_path, on_progress=lambda done, total, note: seen.append((done, total, note)))
    evaluated, elsewhere, hidden = 2 * 20 * 3, 2 * 2 * 14, 2 * 20 * 2  # elsewhere against what is live, and the base
    assert {total for _, total, _ in seen} == {evaluated + elsewhere + hidden}
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_measurement_is_plain_json_and_reads_back(whole):
    assert msgspec.json.decode(msgspec.json.encode(whole.measured), type=Measured) == whole.measured


# -- forgetting


def test_what_cannot_be_measured_is_said_and_gives_the_gate_no_check(tmp_path):
    found = run(tmp_path, texts=TEXTS, kept=specifications(2, letter="k"))
    assert found.forgetting is None
    assert "'replay' gives no probabilities" in found.unmeasured["forgetting"]
    names = [check.name for check in decide(found.figures).checks]
    assert names == ["superiority", "difference"]
    asked_for = decide(found.figures, GateConfig(kl_margin=0.5))
    (check,) = [each for each in asked_for.checks if each.name == "divergence"]
    assert not check.passed and check.found == "not measured"


@pytest.fixture(scope="module")
def tiny(tiny_model, tmp_path_factory):
    """A real generator, an incumbent and a candidate."""
    from guardlearn.generators import SamplingConfig, open_generator
    from small_loras import write_lora

    folder = tmp_path_factory.mktemp("tiny")
    sampling = SamplingConfig(temperature=1.0, max_new_tokens=5)
    generator = open_generator("transformers", tiny_model, sampling=sampling, dtype="float32")
    return generator, write_lora(folder / "live", tiny_model, 0.03, 1), write_lora(folder / "next", tiny_model, 0.06, 2)


def real(tiny, folder, **options):
    generator, live, following = tiny
    options = {
        "incumbent": live,
        "candidate": following,
        "texts": TEXTS,
        "kept": specifications(3, letter="k"),
    } | options
    return run(folder, generator, SPECS[:6], guard=WordGuard("a"), r_max=2, **options)


def test_a_real_models_forgetting_is_against_the_bare_base_and_kept(tiny, tmp_path):
    found = real(tiny, tmp_path)
    assert found.figures.general_loss == found.forgetting.general_loss()
    assert found.figures.kl == found.forgetting.divergences()
    assert sorted(found.figures.kl) == ["k0", "k1", "k2"] and found.forgetting.kl > 0
    assert found.changed and "on 4 prompts log-probabilities" in found.checked
    without = real(tiny, tmp_path / "other", incumbent=None)
    assert without.forgetting == found.forgetting  # whatever is live
    steps = []
    again = real(tiny, tmp_path, on_progress=lambda done, total, note: steps.append(note))
    assert untimed(again) == untimed(found)
    assert not any("general texts" in note for note in steps)
    (tmp_path / "forgetting.json").write_bytes((tmp_path / "forgetting.json").read_bytes()[:40])
    assert untimed(real(tiny, tmp_path)) == untimed(found)
    more = real(tiny, tmp_path, texts=[*TEXTS, GeneralText("a third text")])
    assert len(more.forgetting.texts) == 3


def test_a_real_candidate_that_adds_nothing_to_what_is_live_is_not_sampled(tiny, tiny_model, tmp_path):
    from small_loras import write_lora

    _, live, _ = tiny
    found = real(tiny, tmp_path / "same", candidate=live)
    assert found.evidence is None and not found.changed
    zero = write_lora(tmp_path / "zero", tiny_model, 0.0)
    found = real(tiny, tmp_path / "base", incumbent=None, candidate=zero)
    assert found.evidence is None and "each of its LoRA products is zero" in found.checked
    assert real(tiny, tmp_path / "undone", candidate=zero).changed  # it would take back what is live
