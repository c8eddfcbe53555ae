"""A human answers for the generator: the editor, what is stored, what training makes of it."""

from __future__ import annotations

import io
import json
import os
import pty
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from guardlearn import ArtifactDAG, ArtifactStatus, Source, extract_traces, predicates
from guardlearn.amending import Amendment, amend, amended_text, answered_by, last_rejected, unanswered
from guardlearn.cli import main
from guardlearn.collect import collect
from guardlearn.contexts import KnownSpecifications
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.generators import ReplayGenerator
from guardlearn.prompts import Renderer
from guardlearn.types import Side
from rules import guard, specification

ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING
SPECS = [specification(number) for number in range(1, 4)]
KNOWN = KnownSpecifications(SPECS)
ANSWERS = {"s1": ["no", "not yet"], "s2": ["w2"], "s3": ["crash"]}


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(tmp_path / "runs.db") as dag:
        for number in range(1, 4):
            dag.assign_side(f"g{number}", Side.TRAIN)
        run(dag)
        yield dag


def run(dag, r_max=2):
    return collect(dag, SPECS, ReplayGenerator(ANSWERS), guard, renderer=Renderer(), r_max=r_max)


def attempts(dag, spec="s1"):
    return [item for item in dag.extract(order_by="seq") if item.metadata["spec_id"] == spec]


def answer(dag, rejected, artifact, **given):
    return amend(dag, rejected, Amendment(artifact=artifact, **given), guard, known=KNOWN, actor="ada")


# -- what is stored


def test_an_answer_is_the_next_attempt_of_the_chain_by_a_human(dag):
    first, second = attempts(dag)
    stored = answer(dag, last_rejected(dag, first.id), "w1 by hand")
    assert (stored.status, stored.source, stored.parent_id) == (ACCEPTED, Source.HUMAN, second.id)
    assert stored.facts.attempt == 3 and stored.facts.rejected_ancestors == 2
    assert [entry.artifact for entry in stored.history] == ["no", "not yet"]
    assert (stored.guard, stored.guard_version) == ("word", "1")
    assert stored.workflow_id == second.workflow_id and stored.group == "g1" and stored.model == ""
    assert stored.metadata["actor"] == "ada" and stored.metadata["spec_id"] == "s1"
    assert dag.verify().problems == []


def test_the_guard_sees_the_rejected_answer_in_the_history_and_the_amended_specification(dag):
    seen = []

    class Watching(type(guard)):
        def __call__(self, artifact, context):
            seen.append(context)
            return super().__call__(artifact, context)

    rejected = last_rejected(dag, attempts(dag)[0].id)
    amend(dag, rejected, Amendment(artifact="w1", specification="In capitals."), Watching(), known=KNOWN)
    assert [entry.feedback for entry in seen[0].history] == ["say w1", "say w1"]
    assert seen[0].specification.specification == "Task 1\n\nIn capitals."
    assert seen[0].specification.metadata == {"word": "w1"}


def test_an_amended_specification_belongs_to_this_item_and_is_trained_on(dag):
    first, second = attempts(dag)
    stored = answer(dag, second, "w1 by hand", specification=" In capitals.\n", constraints="Shout.")
    assert stored.specification == "Task 1\n\nIn capitals."
    assert stored.constraints == f"{guard.constraints}\n\nShout."
    assert stored.metadata["amended"] == ["specification", "constraints"]
    assert dag.get_item(second.id).specification == dag.get_item(first.id).specification == "Task 1"
    traces = extract_traces(dag, predicates.refinement() & predicates.source("human")).traces
    assert [trace.item.id for trace in traces] == [stored.id]
    (trace,) = traces
    assert trace.item.specification == "Task 1\n\nIn capitals." and trace.side is Side.TRAIN
    assert [(entry.artifact, entry.feedback) for entry in trace.history] == [("no", "say w1"), ("not yet", "say w1")]
    assert trace.retries == 2
    assert [t.item.id for t in extract_traces(dag, "human").traces] == [stored.id]


def test_a_rejected_answer_and_one_without_verdict_are_stored_too(dag):
    _, second = attempts(dag)
    again = answer(dag, second, "still wrong")
    assert (again.status, again.feedback, again.parent_id) == (REJECTED, "say w1", second.id)
    assert last_rejected(dag, second.id).id == again.id
    silent = answer(dag, again, "crash")
    assert (silent.status, silent.cause) == (PENDING, "guard failed")
    assert last_rejected(dag, second.id).id == again.id  # no verdict is no rejection
    right = answer(dag, again, "w1")
    assert [item.status for item in dag.provenance(right.id)] == [REJECTED, REJECTED, REJECTED, ACCEPTED]


def test_two_people_answer_one_rejection_as_two_children(dag):
    _, second = attempts(dag)
    ada = amend(dag, second, Amendment(artifact="w1 ada"), guard, known=KNOWN, actor="ada")
    bob = amend(dag, second, Amendment(artifact="w1 bob"), guard, known=KNOWN, actor="bob")
    same = amend(dag, second, Amendment(artifact="w1 ada"), guard, known=KNOWN, actor="bob")
    assert len({ada.id, bob.id, same.id}) == 3
    assert {ada.parent_id, bob.parent_id, same.parent_id} == {second.id}
    assert [item.metadata["actor"] for item in answered_by(dag, second)] == ["ada", "bob", "bob"]
    assert {trace.item.id for trace in extract_traces(dag, "human").traces} == {ada.id, bob.id}  # no text twice


def test_in_a_tree_an_id_means_its_own_branch(dag):
    _, second = attempts(dag)
    left, right = answer(dag, second, "no left"), answer(dag, second, "no right")
    assert last_rejected(dag, left.id).id == left.id
    assert last_rejected(dag, second.id).id == right.id


def test_the_same_answer_again_is_the_same_item(dag):
    _, second = attempts(dag)
    stored = answer(dag, second, "w1")
    before = dag.last_seq
    assert answer(dag, second, "w1").id == stored.id and dag.last_seq == before


def test_an_answer_without_verdict_is_judged_again_when_it_is_given_again(dag):
    _, second = attempts(dag)
    broken = [True]

    class Repaired(type(guard)):
        def __call__(self, artifact, context):
            return super().__call__("crash" if broken[0] else artifact, context)

    def give():
        return amend(dag, second, Amendment(artifact="w1 by hand"), Repaired(), known=KNOWN, actor="ada")

    silent, before = give(), dag.last_seq
    assert silent.status is PENDING
    assert give().id == silent.id and dag.last_seq == before  # still none: nothing is stored twice
    broken[0] = False
    stored = give()
    assert (stored.status, stored.parent_id) == (ACCEPTED, second.id) and stored.id != silent.id
    assert dag.get_item(silent.id).status is PENDING
    before = dag.last_seq
    assert give().id == stored.id and dag.last_seq == before
    assert [trace.item.id for trace in extract_traces(dag, "human").traces] == [stored.id]


def test_nothing_new_is_refused_but_the_old_artifact_under_an_amended_specification_is_not(dag):
    _, second = attempts(dag)
    before = dag.last_seq
    with pytest.raises(UsageError, match="is unchanged; nothing was stored"):
        answer(dag, second, second.artifact)
    with pytest.raises(UsageError, match="is unchanged"):
        answer(dag, second, second.artifact, specification="  ")
    assert dag.last_seq == before
    assert answer(dag, second, second.artifact, specification="w1 need not be said").artifact == second.artifact


def test_without_an_id_the_oldest_chain_that_nobody_solved_is_answered(dag):
    first, last = attempts(dag)
    later = dag.chain("Task 9", guard="word", metadata={"spec_id": "s9"}, group="g9").record("no", False, "say w9")
    dag.chain("Task 8", guard="other").record("no", False)
    assert unanswered(dag, guard).id == last.id
    assert unanswered(dag, guard, predicates.group("g9")).id == later.id
    answer(dag, last, "w1")
    assert unanswered(dag, guard).id == later.id
    amend(dag, later, Amendment(artifact="w9"), guard, known=KnownSpecifications([specification(9)]))
    assert unanswered(dag, guard) is None
    assert first.id not in {item.id for item in dag.extract(predicates.source("human"))}


@pytest.mark.parametrize("name", ["s2", "s3"])
def test_a_chain_without_a_rejection_cannot_be_amended(dag, name):
    with pytest.raises(RepositoryError, match=r"no rejected attempt in the chain of .* \((accepted|pending)\)"):
        last_rejected(dag, attempts(dag, name)[0].id)
    with pytest.raises(RepositoryError, match="no item 'nobody'"):
        last_rejected(dag, "nobody")


def test_an_accepted_item_leads_to_the_rejection_before_it_and_a_redacted_one_nowhere(dag):
    _, second = attempts(dag)
    stored = answer(dag, second, "w1")
    assert last_rejected(dag, stored.id).id == second.id
    dag.redact(second.id, "ada", "a name")
    with pytest.raises(RepositoryError, match="redacted"):
        last_rejected(dag, stored.id)


def test_collecting_goes_on_beside_a_human(dag):
    before = dag.count()
    answer(dag, attempts(dag)[1], "w1 by hand")
    again = run(dag)
    assert (again.new_attempts, dag.count()) == (0, before + 1)
    assert run(dag, r_max=4).new_attempts == 0  # the human has settled the chain


def test_amending_only_ever_adds():
    assert amended_text("Ψ", " Δ\n") == "Ψ\n\nΔ"
    assert amended_text("Ψ", " \n") == "Ψ"
    assert amended_text("", "Δ") == "Δ"


# -- the command


@pytest.fixture
def command(tmp_path, monkeypatch, capsys, dag):
    """Return what runs `guardlearn amend runs.db`: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GUARDLEARN_ACTOR", "bob")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "edited"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "edited").mkdir()
    rows = [json.dumps({"id": s.id, "specification": s.specification, "metadata": s.metadata}) for s in SPECS]
    (tmp_path / "specs.jsonl").write_text("\n".join(rows))

    def run(*words, stdin=""):
        given = ["guardlearn", "amend", "runs.db", "--guard", "rules:guard", "--specs", "specs.jsonl", *words]
        monkeypatch.setattr(sys, "argv", given)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def editor(tmp_path, monkeypatch):
    """Return what makes an editor of a Python expression: `text` is the file's text, `path` its path."""

    def make(expression, variable="EDITOR"):
        script = tmp_path / f"my {variable.lower()}.py"
        body = f"text = open(path, newline='').read()\nopen(path, 'w', newline='').write({expression})\n"
        script.write_text(f"#!{sys.executable}\nimport sys\npath = sys.argv[-1]\n{body}")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv(variable, f"{shlex.quote(str(script))} --wait")
        return script

    return make


def test_the_editor_shows_the_feedback_and_none_of_it_ends_up_in_the_artifact(dag, command, editor, tmp_path):
    _, second = attempts(dag)
    editor(f"[open({str(tmp_path / 'seen.txt')!r}, 'w').write(text), text.replace('not yet', 'w1 now', 1)][1]")
    code, out, said = command(attempts(dag)[0].id)
    assert code == 0, said
    stored = dag.get_item(out.strip())
    assert (stored.artifact, stored.status, stored.parent_id) == ("w1 now", ACCEPTED, second.id)
    assert stored.metadata["actor"] == "bob"
    seen = (tmp_path / "seen.txt").read_text()
    above, below = seen.split("\n# ------------------------ >8 ------------------------\n")
    assert above == "not yet"
    assert "say w1" in below and "Task 1" in below and "Answer with one word." in below
    assert list((tmp_path / "edited").iterdir()) == []


SCISSORS = "# ------------------------ >8 ------------------------"
ODD = ["", "\n", "no end", "ends\n\n", "a\r\nb\r\n", SCISSORS, f"x\n{SCISSORS}\ny\n", f"{SCISSORS} z", "é \udc00 \0"]


@pytest.mark.slow
@pytest.mark.parametrize("artifact", ODD)
def test_what_is_not_edited_comes_back_to_the_byte_and_aborts(dag, command, monkeypatch, artifact):
    odd = dag.chain("Task 1", metadata={"spec_id": "s1"}, guard="word").record(artifact, False, "# say w1\n")
    monkeypatch.setenv("EDITOR", "touch")
    before = dag.last_seq
    code, _, said = command(odd.id)
    assert code == 2 and "is unchanged; nothing was stored" in said
    assert dag.last_seq == before


def test_visual_goes_before_editor_and_neither_is_an_error(dag, command, editor):
    code, _, said = command(attempts(dag)[0].id)
    assert code == 2 and "set VISUAL or EDITOR" in said and len(said.strip().splitlines()) == 2
    editor("text.replace('not yet', 'w1 editor', 1)")
    editor("text.replace('not yet', 'w1 visual', 1)", "VISUAL")
    _, out, _ = command(attempts(dag)[0].id)
    assert dag.get_item(out.strip()).artifact == "w1 visual"


def test_an_editor_that_fails_or_removes_the_line_stores_nothing_and_the_text_is_kept(
    dag, command, editor, monkeypatch, tmp_path
):
    before = dag.last_seq
    monkeypatch.setenv("EDITOR", "false")
    code, _, said = command(attempts(dag)[0].id)
    assert code == 2 and "ended with code 1" in said and list((tmp_path / "edited").iterdir()) == []
    editor("'w1 alone'")
    code, _, said = command(attempts(dag)[0].id)
    (kept,) = (tmp_path / "edited").iterdir()
    assert code == 2 and str(kept) in said and kept.read_text() == "w1 alone"
    assert dag.last_seq == before


def test_what_is_added_to_the_specification_is_written_in_the_editor_or_given(dag, command, editor):
    _, second = attempts(dag)
    editor("('Say it loudly.\\n' + text) if 'specification' in path else text.replace('not yet', 'w1', 1)")
    code, out, said = command(second.id, "--amend-spec")
    assert code == 0, said
    assert dag.get_item(out.strip()).specification == "Task 1\n\nSay it loudly."
    code, out, _ = command(second.id, "--spec-amendment", "Twice.", "--constraints-amendment", "Softly.", "--json")
    stored = json.loads(out)
    assert (stored["specification"], stored["constraints"]) == ("Task 1\n\nTwice.", f"{guard.constraints}\n\nSoftly.")
    code, _, said = command(second.id, "--amend-spec", "--spec-amendment", "x")
    assert code == 2 and "leave it out" in said
    editor("text")
    code, _, said = command(second.id, "--amend-spec")
    assert code == 2 and "nothing was added" in said


def test_without_an_editor_the_answer_comes_from_a_file_or_standard_input(dag, command, tmp_path):
    _, second = attempts(dag)
    (tmp_path / "answer.txt").write_bytes(b"w1 from\r\na file\n")
    code, out, _ = command(second.id, "--from", "answer.txt")
    assert code == 0 and dag.get_item(out.strip()).artifact == "w1 from\r\na file\n"
    code, out, said = command(second.id, "--from", "-", stdin="w1 é")
    assert code == 0 and dag.get_item(out.strip()).artifact == "w1 é"
    assert "bob has answered it" in said and "another child" in said
    code, out, said = command(second.id, "--from", "-", stdin="wrong")
    assert code == 1 and dag.get_item(out.strip()).status is REJECTED and "say w1" in said
    code, out, said = command(second.id, "--from", "-", stdin="crash")
    assert code == 1 and "no verdict" in said and dag.get_item(out.strip()).status is PENDING
    code, _, said = command(second.id, "--from", "missing.txt")
    assert code == 2 and "No such file" in said
    (tmp_path / "answer.txt").write_bytes(b"\xff")
    code, _, said = command(second.id, "--from", "answer.txt")
    assert code == 1 and "not UTF-8" in said


def test_what_was_written_is_kept_where_it_cannot_be_stored(dag, command, editor, tmp_path, monkeypatch):
    (tmp_path / "odd.py").write_text("def check(artifact):\n    return 'maybe'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    editor("text.replace('not yet', 'hours of work', 1)")
    code, _, said = command(attempts(dag)[0].id, "--guard", "odd:check")
    (kept,) = (tmp_path / "edited").iterdir()
    assert code == 1 and "no verdict" in said and str(kept) in said and "Traceback" not in said
    assert kept.read_text().startswith("hours of work\n")


def test_the_command_chooses_a_chain_by_itself_and_says_when_none_is_left(dag, command):
    _, second = attempts(dag)
    code, _, said = command(second.id, "--where", 'group("g1")', "--from", "-", stdin="w1")
    assert code == 2 and "exclude each other" in said
    code, out, _ = command("--where", 'group("g1")', "--from", "-", stdin="w1")
    assert code == 0 and dag.get_item(out.strip()).parent_id == second.id
    code, _, said = command("--from", "-", stdin="w1")
    assert code == 2 and "no chain left that 'word' rejected" in said


def test_a_rejected_answer_is_edited_again_on_a_terminal(dag, command, editor):
    """On a real terminal, where the human is asked."""
    _, second = attempts(dag)
    editor("text.replace('not yet', 'nearly', 1) if 'not yet' in text else text.replace('nearly', 'w1', 1)")
    ours, theirs = pty.openpty()
    words = ["amend", "runs.db", second.id, "--guard", "rules:guard", "--specs", "specs.jsonl"]
    tests = {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen(
        [sys.executable, "-m", "guardlearn", *words],
        stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | tests,
    )  # fmt: skip
    with process:
        os.write(ours, b"y\n")
        out, said = process.communicate()
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0 and "rejected, stored as" in said and "edit again?" in said
    stored = dag.get_item(out.strip())
    assert stored.artifact == "w1"
    assert [item.artifact for item in dag.provenance(stored.id)] == ["no", "not yet", "nearly", "w1"]
