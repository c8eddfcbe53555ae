"""The guard audit: honest guards pass it, each kind of dishonest one is found, stale verdicts are replaced."""

from __future__ import annotations

import ast
import itertools
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from guardlearn import ArtifactDAG, ArtifactStatus, RepositoryItem, Specification, Verdict, predicates, settings
from guardlearn.audit import CHECKS, AuditConfig, AuditReport, audit
from guardlearn.audit.degenerate import KINDS, degenerates
from guardlearn.cli import main
from guardlearn.demo import house_style
from guardlearn.demo.guard import HouseStyle
from guardlearn.demo.tasks import specifications
from guardlearn.errors import UsageError
from guardlearn.guards import FunctionGuard, all_of, load_guard

ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING


def solution(spec: Specification) -> str:
    """Return right code in the house style: the demo's specifications hold their own expression."""
    expression = spec.specification.rsplit("`return ", 1)[1].rstrip("`.")
    header = spec.metadata["signature"]
    return f'```python\ndef {header}:\n    """Return the result."""\n    return {expression}\n```'


def one_a_group(count: int) -> list[Specification]:
    groups = {spec.group: spec for spec in specifications("train") if "`return " in spec.specification}
    return list(groups.values())[:count]


SPECS = one_a_group(6)


def fill(dag: ArtifactDAG, guard, specs=SPECS, artifact=solution) -> list[RepositoryItem]:
    """Store a rejected and an accepted attempt for each specification, judged by a guard that is like `guard`."""
    items = []
    for spec in specs:
        given = {"guard": guard.name, "guard_version": guard.version, "metadata": {"spec_id": spec.id}}
        chain = dag.chain(spec.specification, group=spec.group, constraints=guard.constraints, **given)
        items.append(chain.record("no code", False, "Reply with code"))
        items.append(chain.record(artifact(spec), True))
    return items


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        yield dag


@pytest.fixture
def anywhere(installed):
    """ℛ on each of the databases."""
    with ArtifactDAG.load(installed.target) as dag:
        yield dag


def found(report, check=None):
    return {(each.check, each.kind) for each in report.findings if check in (None, each.check)}


def wrong_in(report, name):
    return next(check for check in report.checks if check.name == name)


# -- an honest guard


@pytest.mark.slow
def test_an_honest_guard_passes_and_everything_was_tried(dag):
    fill(dag, house_style)
    before = dag.last_seq
    report = audit(dag, house_style, specifications=SPECS)
    assert (report.wrong, report.findings) == ([], ())
    tried = {check.name: (check.tried, check.wrong, check.no_verdict) for check in report.checks}
    assert tried["deterministic"] == tried["reproduced"] == (12, 0, 0)
    assert tried["cross"] == (6, 0, 0) and tried["impossible"] == (6, 0, 0)
    assert tried["degenerate"][0] >= 6 * 12 and tried["degenerate"][1:] == (0, 0)
    assert dag.last_seq == before


def test_without_the_specification_file_a_guard_that_needs_it_gives_no_verdict_and_the_report_says_so(dag):
    fill(dag, house_style)
    report = audit(dag, house_style, AuditConfig(repeat=1))
    assert report.unknown_specifications == 12
    assert "metadata.signature is None" in report.first_failure
    assert any("no verdict on any" in line for line in report.wrong)


# -- guards that are not


def counting(every: int):
    """A guard whose every so-manieth verdict is the other one."""
    calls, lock = itertools.count(), threading.Lock()

    def flaky(artifact: str) -> bool:
        with lock:
            number = next(calls)
        return ("def " in artifact) != (number % every == 0)

    return FunctionGuard(flaky, "flaky")


def test_verdicts_that_vary_are_found_with_ids_and_verdicts(dag):
    guard = counting(5)
    items = fill(dag, guard)
    report = audit(dag, guard, AuditConfig(repeat=4, specifications=0, workers=1))
    flaky = [each for each in report.findings if each.check == "deterministic"]
    assert flaky and {each.item_id for each in flaky} <= {item.id for item in items}
    assert all(len(each.verdicts) == 4 and set(each.verdicts) == {"accepted", "rejected"} for each in flaky)
    assert report.wrong


def test_a_verdict_that_is_steady_but_not_the_stored_one_is_found(dag):
    guard = FunctionGuard(lambda artifact: "def " in artifact, "code")
    items = fill(dag, guard)
    odd = dag.chain("another", guard="code", guard_version=guard.version).record("def f(): ...", False, "wrongly")
    report = audit(dag, guard, AuditConfig(specifications=0))
    assert [(each.check, each.item_id, each.verdicts) for each in report.findings] == [
        ("reproduced", odd.id, ("rejected", "accepted"))
    ]
    assert wrong_in(report, "reproduced").tried == len(items) + 1


def test_what_somebody_noted_about_an_item_is_not_compared_with_the_guard(dag):
    guard = FunctionGuard(lambda artifact: "def " in artifact, "code")
    items = fill(dag, guard)
    dag.append_event(items[1].id, "status", value="rejected", actor="ada", reason="it is ugly")
    report = audit(dag, guard, AuditConfig(repeat=2, specifications=0))
    assert report.wrong == [] and wrong_in(report, "reproduced").tried == len(items) - 1


def test_the_composed_guards_parts_are_judged_again_as_one(dag):
    whole = all_of(FunctionGuard(parses, "syntax"), FunctionGuard(lambda artifact: "Return" in artifact, "style"))
    fill(dag, whole)
    report = audit(dag, whole, AuditConfig(repeat=2, specifications=1, allow=("exit first", "exit inside", "stub")))
    assert report.wrong == [] and wrong_in(report, "deterministic").tried == 12


def parses(artifact: str) -> bool:
    """Accepts whatever is valid Python."""
    code = artifact.split("```python\n")[-1].split("```")[0]
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def echoes(artifact: str, context) -> bool:
    return context.specification.specification[:10] in artifact or "def " in artifact


def runs(artifact: str) -> tuple[bool, str]:
    """Runs the program and trusts its exit code."""
    code = artifact.split("```python\n")[-1].split("```")[0]
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    return done.returncode == 0 and "def" in code, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "kinds", "not_kinds"),
    [
        (parses, {"empty", "whitespace", "exit", "exit first", "exit inside", "stub"}, {"echo"}),
        (echoes, {"echo", "stub", "exit first"}, {"empty", "whitespace", "exit"}),
        (runs, {"exit first", "exit inside", "stub"}, {"empty", "echo", "exit"}),
    ],
)
def test_guards_that_accept_degenerate_artifacts_are_found_by_kind(dag, function, kinds, not_kinds):
    guard = FunctionGuard(function, "weak")
    fill(dag, guard)
    report = audit(dag, guard, AuditConfig(repeat=1, specifications=2))
    accepted = {kind for check, kind in found(report, "degenerate")}
    assert kinds <= accepted and not (not_kinds & accepted)
    assert ("cross", "") in found(report)  # it does not look at the specification
    assert all(each.artifact or each.kind in {"empty"} for each in report.findings if each.check == "degenerate")


@pytest.mark.slow
def test_a_guard_that_does_not_run_every_case_accepts_what_cannot_be_met(dag):
    class FirstCase(HouseStyle):
        name = "first_case"

        def __call__(self, artifact, context):
            metadata = context.specification.metadata | {"cases": context.specification.metadata["cases"][:1]}
            less = Specification(id="x", specification="", metadata=metadata)
            return super().__call__(artifact, type(context)(specification=less))

    guard = FirstCase()
    fill(dag, guard)
    report = audit(dag, _Named(guard, "first_case"), AuditConfig(repeat=1), specifications=SPECS)
    assert wrong_in(report, "impossible").wrong == 6
    assert wrong_in(report, "degenerate").wrong == 0


class _Named:
    """A guard under another name, whose verdicts carry it."""

    def __init__(self, guard, name, version=None):
        self.guard, self.name, self.constraints = guard, name, guard.constraints
        self.version = version or guard.version

    def __call__(self, artifact, context):
        verdict = self.guard(artifact, context)
        return Verdict(status=verdict.status, feedback=verdict.feedback, cause=verdict.cause)


def test_an_artifact_is_not_tried_on_a_specification_of_its_own_group(dag):
    guard = FunctionGuard(parses, "syntax")
    fill(dag, guard, [msgspec.structs.replace(spec, group="one") for spec in SPECS[:2]])
    assert wrong_in(audit(dag, guard, AuditConfig(repeat=1)), "cross").tried == 0
    fill(dag, guard, SPECS[2:3])
    assert wrong_in(audit(dag, guard, AuditConfig(repeat=1)), "cross").tried == 3


def test_canaries_and_further_artifacts_of_the_configuration_are_tried(dag):
    guard = FunctionGuard(lambda artifact: "def " in artifact or artifact == "sorry", "code")
    fill(dag, guard)
    canary = Specification(id="never", specification="Return a number that is smaller than itself")
    report = audit(dag, guard, AuditConfig(repeat=1, specifications=2, canaries=(canary,), degenerate=("sorry", "no")))
    assert ("degenerate", "own") in found(report)
    assert {each.artifact for each in report.findings if each.kind == "own"} == {"sorry"}
    assert {each.specification_id for each in report.findings if each.check == "impossible"} == {"never"}
    assert wrong_in(report, "impossible").tried == 3  # nothing at all, and two accepted artifacts


def test_what_is_known_and_allowed_is_told_but_not_wrong(dag):
    guard = FunctionGuard(parses, "syntax")
    fill(dag, guard)
    told = audit(dag, guard, AuditConfig(repeat=1))
    allowed = AuditConfig(repeat=1, allow=("cross", "empty", "whitespace", "exit", "exit first", "exit inside", "stub"))
    report = audit(dag, guard, allowed)
    assert told.wrong and report.wrong == []
    assert len(report.findings) == len(told.findings) and all(each.allowed for each in report.findings)
    with pytest.raises(UsageError, match="allow='nothing' is unknown"):
        AuditConfig(allow=("nothing",))


# -- degenerate artifacts


def by_kind(accepted: str | None, specification="Say it") -> dict[str, list[str]]:
    made: dict[str, list[str]] = {}
    for each in degenerates(specification, accepted):
        made.setdefault(each.kind, []).append(each.artifact)
    assert set(made) <= set(KINDS)
    return made


def test_accepted_code_becomes_stubs_in_the_same_wrapping():
    code = 'from __future__ import annotations\ndef f(x):\n    """Return x."""\n    return x\n'
    accepted = f"Here:\n```python\n{code}```\nDone."
    made = by_kind(accepted)
    assert all(text.startswith("Here:\n```python\n") and text.endswith("\n```\nDone.") for text in made["stub"])
    stub = made["stub"][0].split("```python\n")[1].split("```")[0]
    assert stub == 'from __future__ import annotations\n\ndef f(x):\n    """Return x."""\n    pass\n'
    first = made["exit first"][0].split("```python\n")[1].split("```")[0]
    assert first.startswith("from __future__ import annotations\nimport os\nos._exit(0)\n")
    compile(first, "x", "exec")
    assert not {"no tests", "no assertions", "json", "sql"} & set(made)


def test_a_function_that_does_nothing_as_it_was_asked_to_is_no_stub():
    assert "pass" not in "".join(by_kind("def f(): pass\n").get("stub", []))


def test_accepted_tests_lose_their_assertions_and_themselves():
    accepted = "import unittest\n\ndef test_a():\n    assert f(1) == 2\n\nclass TestB(unittest.TestCase):\n" + (
        "    def test_b(self):\n        self.assertEqual(f(2), 3)\n"
    )
    made = by_kind(accepted)
    assert "assert" not in made["no assertions"][0] and "test_a" in made["no assertions"][0]
    assert "test_a" not in made["no tests"][0] and "test_b" not in made["no tests"][0]
    for text in (*made["no assertions"], *made["no tests"]):
        compile(text, "x", "exec")


@pytest.mark.parametrize(
    ("accepted", "kinds"),
    [
        ('{"name": "Ada"}', {"json"}),
        ("SELECT name FROM people", {"sql"}),
        ("Dear Sir", set()),
        (None, {"exit"}),
        ("```json\n[1]\n```", {"json"}),
        ("\udc00", set()),
        ("def f(:", set()),
    ],
)
def test_other_kinds_of_artifacts_have_their_own_emptiness(accepted, kinds):
    assert set(by_kind(accepted)) == {"empty", "whitespace", "echo"} | kinds


def test_what_was_accepted_is_never_called_degenerate():
    assert "echo" not in by_kind("Say it") and "empty" not in by_kind("")


# -- stale verdicts


def test_stale_items_are_found_marked_and_left_out_by_fresh(anywhere):
    dag = anywhere
    old = FunctionGuard(lambda artifact: "def" in artifact, "code")
    new = FunctionGuard(lambda artifact: "def " in artifact and "Return" in artifact, "code")
    items = fill(dag, old)
    quick = AuditConfig(repeat=1, specifications=0)
    report = audit(dag, new, quick)
    assert (report.stale.items, report.stale.unmarked, report.stale.marked) == (12, 12, 0)
    assert report.stale.changes == {"accepted": 6, "rejected": 6} and report.wrong
    marked = audit(dag, new, quick, mark=True, actor="ada")
    assert (marked.stale.marked, marked.stale.unmarked, marked.wrong) == (12, 0, [])
    assert list(dag.ids(predicates.fresh())) == []
    assert sum(1 for _ in dag.extract(~predicates.fresh())) == len(items)
    again = audit(dag, new, quick, mark=True)
    assert (again.stale.marked, again.stale.items) == (0, 12)
    assert dag.verify().problems == []


def test_rejudging_stores_new_verdicts_as_events_and_only_once(anywhere):
    dag = anywhere
    old = FunctionGuard(lambda artifact: "def" in artifact, "code")
    new = FunctionGuard(lambda artifact: "def " in artifact and "*" not in artifact, "code")
    items = fill(dag, old)
    changed = {item.id for item in items if item.status is ACCEPTED and "*" in item.artifact}
    assert 0 < len(changed) < 6
    report = audit(dag, new, AuditConfig(repeat=2, specifications=0), mark=True, rejudge=True, actor="ada")
    assert set(report.stale.changed) == changed
    assert report.stale.stored == 12 and report.wrong == []
    for item in items:
        now = dag.get_item(item.id)
        assert now.facts.stale is False
        assert (now.status is ACCEPTED) == new(item.artifact, None).passed
    assert sum(1 for _ in dag.extract(predicates.fresh())) == 12
    assert dag.verify().problems == []
    before = dag.last_seq
    again = audit(dag, new, AuditConfig(repeat=1, specifications=0), mark=True, rejudge=True)
    assert (again.stale.items, again.stale.stored, dag.last_seq) == (0, 0, before)
    back = audit(dag, old, AuditConfig(repeat=1, specifications=0))  # the old guard is another version again
    assert (back.stale.items, back.items) == (12, 12)


def test_a_superseded_item_stays_superseded_and_what_people_noted_stays_theirs(anywhere):
    dag = anywhere
    old = FunctionGuard(lambda artifact: True, "code")
    new = FunctionGuard(lambda artifact: "def " in artifact, "code")
    items = fill(dag, old)
    accepted = [item for item in items if item.status is ACCEPTED]
    dag.append_event(items[0].id, "status", value="accepted", actor="ada", reason="I looked")
    store = {"guard": "code", "guard_version": old.version}
    gone = dag.chain("s", **store).record("def a(): ...", ArtifactStatus.SUPERSEDED)
    report = audit(dag, new, AuditConfig(repeat=1, specifications=0), rejudge=True)
    assert dag.get_item(items[0].id).status is ACCEPTED  # the guard rejects it; ada's word stays
    assert dag.get_item(gone.id).status is ArtifactStatus.SUPERSEDED and not dag.get_item(gone.id).facts.stale
    assert report.stale.stored == len(items) + 1 - 1
    assert {dag.get_item(item.id).status for item in accepted} == {ACCEPTED}


def test_a_flaky_or_failing_guard_replaces_no_verdict(dag):
    old = FunctionGuard(lambda artifact: "def " in artifact, "flaky")
    fill(dag, old)
    before = dag.last_seq
    broken = _Named(FunctionGuard(lambda artifact: 1 / 0, "flaky"), "flaky")
    report = audit(dag, broken, AuditConfig(repeat=2, specifications=0), rejudge=True)
    assert (report.stale.stored, report.stale.changes, dag.last_seq) == (0, {}, before)
    assert "ZeroDivisionError" in report.first_failure
    flaky = counting(5)
    report = audit(dag, flaky, AuditConfig(repeat=3, specifications=0, workers=1), rejudge=True)
    told = {each.item_id for each in report.findings}
    assert told and report.stale.stored == 12 - len(told)
    assert all(dag.get_item(name).guard_version == old.version for name in told)


def test_what_was_judged_before_ctrl_c_is_stored_and_the_next_run_goes_on(dag):
    old = FunctionGuard(lambda artifact: True, "code")
    new = FunctionGuard(lambda artifact: "def " in artifact, "code")
    fill(dag, old)
    quick = AuditConfig(repeat=1, specifications=0)

    def stop(done, total, note):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(dag, new, quick, rejudge=True, on_progress=stop)
    assert dag.verify().problems == []
    again = audit(dag, new, quick, rejudge=True)
    assert (again.stale.items, again.stale.stored, again.wrong) == (8, 8, [])


# -- bounds and bad input


def test_a_large_repository_is_sampled_by_seed(dag):
    calls, lock = [], threading.Lock()

    def note(artifact: str) -> bool:
        with lock:
            calls.append(artifact)
        return artifact.startswith("yes")

    guard = FunctionGuard(note, "note")
    items = (
        RepositoryItem(
            id=f"i{number}", artifact=f"yes {number}", specification="s", status=ACCEPTED, guard="note",
            guard_version=guard.version,
        )
        for number in range(3000)
    )  # fmt: skip
    dag.append_many(items)
    config = AuditConfig(repeat=1, limit=50, specifications=0, seed=1)
    report = audit(dag, guard, config)
    first, calls[:] = sorted(calls), []
    assert (report.items, len(first)) == (3000, 50)
    audit(dag, guard, config)
    assert sorted(calls) == first
    calls.clear()
    audit(dag, guard, AuditConfig(repeat=1, limit=50, specifications=0, seed=2))
    assert sorted(calls) != first
    calls.clear()
    assert wrong_in(audit(dag, guard, AuditConfig(repeat=1, limit=0, specifications=0)), "reproduced").tried == 3000


def test_guards_run_side_by_side(dag):
    both = threading.Barrier(2)

    def meets(artifact: str) -> bool:
        both.wait(timeout=60)
        return "def " in artifact

    guard = FunctionGuard(meets, "meets")
    guard.version = "1"  # a barrier has no digest
    fill(dag, guard)
    report = audit(dag, guard, AuditConfig(repeat=1, specifications=0, workers=2))
    assert (report.wrong, report.first_failure) == ([], "")


def test_progress_counts_every_judgement(dag):
    guard = FunctionGuard(parses, "syntax")
    fill(dag, guard)
    seen = []
    report = audit(dag, guard, AuditConfig(repeat=2), on_progress=lambda *state: seen.append(state))
    made = sum(check.tried for check in report.checks if check.name in ("degenerate", "cross", "impossible"))
    assert [done for done, _, _ in seen] == list(range(1, 2 * 12 + made + 1))
    assert {total for _, total, _ in seen} == {2 * 12 + made}


def test_a_guard_that_judged_nothing_here_is_an_error_that_lists_the_guards(dag):
    fill(dag, house_style)
    with pytest.raises(UsageError, match=r"was judged by 'other'; items by guard: guardlearn.demo:house_style 12"):
        audit(dag, FunctionGuard(parses, "other"))
    with pytest.raises(UsageError, match="that the predicate selects"):
        audit(dag, house_style, where=predicates.group("none"))


def test_a_guard_that_returns_no_verdict_object_gave_none(dag):
    guard = _Named(FunctionGuard(parses, "odd"), "odd")
    fill(dag, guard)
    guard.__class__ = type("Odd", (_Named,), {"__call__": lambda self, artifact, context: "yes"})
    report = audit(dag, guard, AuditConfig(repeat=1))
    assert "returned str" in report.first_failure and report.wrong


@pytest.mark.parametrize("field", ["repeat", "limit", "specifications", "workers"])
def test_numbers_out_of_range_are_refused(field):
    with pytest.raises(UsageError, match=f"{field}=-1 must be at least"):
        AuditConfig(**{field: -1})


# -- the command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Return what runs the command line in `tmp_path`: it gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["guardlearn", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err

    return run


@pytest.fixture
def project(tmp_path):
    """A folder with an honest guard's repository and its specification file."""
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        fill(dag, house_style, SPECS[:2])
    lines = [json.dumps({f: getattr(s, f) for f in ("id", "specification", "group", "metadata")}) for s in SPECS]
    (tmp_path / "specs.jsonl").write_text("\n".join(lines))
    (tmp_path / "guardlearn.toml").write_text('[audit]\nrepeat = 1\nspecifications = 1\ndegenerate = ["def x"]\n')
    return tmp_path


HONEST = ("audit", "runs.db", "--guard", "house_style", "--specs", "specs.jsonl")


@pytest.mark.usefixtures("commands_start_warm")
def test_the_command_in_a_process_of_its_own(project):
    words = [sys.executable, "-m", "guardlearn", *HONEST]
    done = subprocess.run(words, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "degenerate" in done.stdout and "nothing wrong found" in done.stderr
    assert "audit: " in done.stderr  # progress


def test_the_command_without_the_specification_file_says_so(project, command):
    code, _, said = command(*HONEST[:-2])
    assert code == 1 and "give the file with --specs" in said


def test_the_command_reads_the_table_and_prints_json_with_exit_code_1(project, command):
    (project / "weak_guard.py").write_text("def check(artifact):\n    return 'def ' in artifact\n")
    with ArtifactDAG.load(project / "runs.db") as dag:
        fill(dag, load_guard("weak_guard:check"), specs=SPECS[:2])
    code, out, _ = command("audit", "runs.db", "--guard", "weak_guard:check", "--repeat", "2", "--json")
    report = json.loads(out)
    assert code == 1 and report["repeat"] == 2
    assert {"own", "stub"} <= {each["kind"] for each in report["findings"]} <= set(KINDS) | {""}
    assert any(line.startswith("degenerate:") for line in report["wrong"])
    assert wrong_in(msgspec.convert(report | {"wrong": 0}, AuditReport), "deterministic").tried == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[audit]\nrepeats = 2\n", "[audit]: unknown key 'repeats' (did you mean 'repeat'?)"),
        ("[audit]\nrepeat = 0\n", "repeat=0 must be at least 1"),
        ("[audit]\nallow = ['stubs']\n", "allow='stubs' is unknown"),
        ("[audit", "guardlearn.toml is no TOML"),
    ],
)
def test_a_table_that_is_wrong_is_one_line(project, command, text, message):
    (project / "guardlearn.toml").write_text(text)
    code, _, said = command(*HONEST)
    assert code == 1 and message in said and len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_the_command_marks_and_rejudges(project, command, monkeypatch):
    monkeypatch.setenv("GUARDLEARN_ACTOR", "ada")
    with ArtifactDAG.load(project / "runs.db") as dag:
        fill(dag, _Named(house_style, house_style.name, version="an older one"), SPECS[:2])
    code, _, said = command(*HONEST)
    assert code == 1 and "4 items were judged by another version" in said
    code, _, said = command(*HONEST, "--mark", "--rejudge")
    assert code == 0 and "4 new verdicts are stored" in said and "4 items are marked" in said
    assert command("export", "runs.db", "-o", "all.jsonl")[0] == 0
    assert (project / "all.jsonl").read_text().count('"ada"') == 8  # four marks, four verdicts
    assert command(*HONEST)[0] == 0


def test_the_command_writes_nothing_without_being_asked(project, command):
    before = (project / "runs.db").read_bytes()
    command(*HONEST)
    assert (project / "runs.db").read_bytes() == before


def test_the_pages_program_and_table_are_true(project, capsys, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "auditing.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (table,) = re.findall(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (project / "guards.py").write_text("def check(artifact):\n    return 'def ' in artifact\n")
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(str(project))
    with ArtifactDAG.load(project / "runs.db") as dag:
        fill(dag, load_guard("guards:check"), specs=SPECS[:2])
    exec(program, {})
    assert "degenerate: " in capsys.readouterr().out
    sys.modules.pop("guards")
    (project / "guardlearn.toml").write_text(table)
    config = settings.read(project / "guardlearn.toml").table("audit", AuditConfig)
    assert (config.allow, config.degenerate, config.canaries[0].id) == (("cross",), ("TODO",), "never")
    assert all(getattr(config, name) == getattr(AuditConfig(), name) for name in ("repeat", "limit", "seed", "workers"))
    told = re.findall(r"^\| `([a-z ]+)`(?:, `([a-z ]+)`)? \|", page, re.MULTILINE)
    assert {name for pair in told for name in pair if name} == set(CHECKS) | set(KINDS) - {
        "empty",
        "whitespace",
        "echo",
    }
