"""Guards of guardlearn.toml: kinds, names, nesting, and malformed tables, each an error of one line."""

from __future__ import annotations

import pytest

from guardlearn import ArtifactStatus, CommandGuard, GuardContext, Specification, load_guard, settings
from guardlearn.errors import DataError, GuardError, GuardlearnError, UsageError

CONTEXT = GuardContext(specification=Specification(id="s", specification="a task"))


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str):
        (tmp_path / "guardlearn.toml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def test_a_table_is_the_guard_that_python_makes(file):
    file(
        '[guards.check]\nkind = "command"\ncommand = ["sh", "-c", "exit 1"]\nfile = "a.js"\naccept = [0, 2]\n'
        'limits = {wall_seconds = 7}\nfiles = {"x/y.txt" = "text"}\nfeedback_chars = 99\nconstraints = "Ω"\n'
    )
    from guardlearn.guards import COMMAND_LIMITS

    guard = load_guard("check")
    assert isinstance(guard, CommandGuard)
    assert (guard.name, guard.constraints) == ("check", "Ω")
    assert guard.limits.wall_seconds == 7
    assert guard.limits.memory_bytes == COMMAND_LIMITS.memory_bytes  # what the table leaves out is the kind's default
    same = CommandGuard(
        ["sh", "-c", "exit 1"], name="check", file="a.js", accept=[0, 2], limits=guard.limits,
        files={"x/y.txt": "text"}, feedback_chars=99, constraints="Ω",
    )  # fmt: skip
    assert guard.version == same.version
    verdict = guard("x", CONTEXT)
    assert (verdict.status, verdict.guard) == (ArtifactStatus.REJECTED, "check")


def test_paths_start_from_the_files_folder(file, tmp_path, monkeypatch):
    folder = file('[guards.s]\nkind = "json_schema"\nschema_file = "s.json"\n[guards.c]\nkind = "command"\n'
                  'command = ["sh"]\nfolder = "tests"\nreadable = ["tests"]\n')  # fmt: skip
    (folder / "s.json").write_text('{"type": "integer"}')
    (folder / "tests").mkdir()
    (folder / "tests" / "t.txt").write_text("t")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    found = settings.read(folder / "guardlearn.toml")
    assert load_guard("s", found)("3", CONTEXT).passed
    guard = load_guard("c", found)
    assert guard.files == {"t.txt": b"t"} and guard.readable == (folder / "tests",)


def test_a_table_comes_before_a_ready_guard_of_the_same_name(file):
    file('[guards.python]\nkind = "regex"\nmatch = ["x"]\n')
    assert load_guard("python")("x", CONTEXT).passed
    assert load_guard("guardlearn.guards.ready:python").name == "python"


def test_guards_of_guards(file):
    folder = file(
        '[guards.all]\nkind = "all_of"\nguards = ["python", "mine", "own:check"]\nparallel = true\n'
        '[guards.mine]\nkind = "any_of"\nguards = ["never", "has_x"]\nconstraints = "say x"\n'
        '[guards.never]\nkind = "regex"\nforbid = ["(?s)."]\n[guards.has_x]\nkind = "regex"\nmatch = ["x"]\n'
    )
    (folder / "own.py").write_text("def check(artifact):\n    return 'y' in artifact, 'no y'\n")
    guard = load_guard("all")
    assert (guard.name, guard.constraints) == ("all", "say x")
    assert guard("def f(): x, y", CONTEXT).passed
    verdict = guard("def f(): x", CONTEXT)
    assert verdict.feedback == "no y"
    assert [each.guard for each in verdict.verdicts] == ["python", "mine", "own:check"]
    assert [each.guard for each in verdict.verdicts[1].verdicts] == ["never", "has_x"]


def test_a_function_with_constraints_of_its_own(file):
    folder = file('[guards.f]\nkind = "function"\nfunction = "ours_f:check"\nconstraints = "Ω"\n'
                  '[guards.g]\nkind = "function"\nfunction = "ours_f:guard"\n'
                  '[guards.h]\nkind = "function"\nfunction = "ours_f:guard"\nconstraints = "Ω"\n')  # fmt: skip
    (folder / "ours_f.py").write_text(
        "from guardlearn import PythonGuard\ndef check(artifact):\n    return True\nguard = PythonGuard()\n"
    )
    assert (load_guard("f").name, load_guard("f").constraints) == ("f", "Ω")
    assert load_guard("g").name == "python"
    with pytest.raises(UsageError, match=r"\[guards.h\]: ours_f:guard is a guard with constraints of its own"):
        load_guard("h")


MALFORMED = [
    ('command = ["x"]', DataError, r"\[guards.g\]: kind is missing; it may be command, pytest, python, regex"),
    ('kind = "comand"', DataError, r"\[guards.g\]: unknown kind 'comand' \(did you mean 'command'\?\)"),
    ("kind = 3", DataError, r"\[guards.g\]: unknown kind 3"),
    ('kind = "command"', DataError, r"\[guards.g\]: command is missing"),
    ('kind = "command"\ncommand = "ruff"', DataError, r"\[guards.g\]: command: expected `list`, got `string`"),
    ('kind = "command"\ncommand = ["x"]\nacept = [0]', DataError, r"unknown key 'acept' \(did you mean 'accept'\?\)"),
    ('kind = "command"\ncommand = ["x"]\nname = "y"', DataError, r"unknown key 'name'"),
    ('kind = "command"\ncommand = ["x"]\nlimits = {wall = 1}', DataError, r"limits: unknown key 'wall'"),
    ('kind = "command"\ncommand = ["x"]\nlimits = {wall_seconds = "1"}', DataError, r"limits.wall_seconds: expected"),
    ('kind = "command"\ncommand = ["x"]\nextract = "json"', DataError, r"extract: invalid enum value 'json'"),
    ('kind = "command"\ncommand = ["x"]\nkeep = "("', UsageError, r"\[guards.g\]: guard 'g': keep '\('"),
    ('kind = "pytest"\nfolder = "none"', UsageError, r"\[guards.g\]: guard 'g': there is no folder"),
    ('kind = "json_schema"\nschema = {type = "nonsense"}', UsageError, r"\[guards.g\]: guard 'g': its schema is no"),
    ('kind = "sql"\nschema = "CREATE TABEL"', UsageError, r"\[guards.g\]: guard 'g': its schema is no SQL"),
    ('kind = "regex"', UsageError, r"\[guards.g\]: guard 'g' has no pattern"),
    ('kind = "all_of"', DataError, r"\[guards.g\]: guards is missing"),
    ('kind = "all_of"\nguards = []', UsageError, r"\[guards.g\]: all_of needs at least one guard"),
    ('kind = "all_of"\nguards = ["g"]', DataError, r"\[guards.g\]: the guard is made of itself \(g → g\)"),
    ('kind = "all_of"\nguards = ["h"]\n[guards.h]\nkind = "any_of"\nguards = ["g"]', DataError, r"g → h → g"),
    (
        'kind = "all_of"\nguards = ["pyhton"]',
        UsageError,
        r"\[guards.g\]: unknown guard 'pyhton' \(did you mean 'python'",
    ),
    (
        'kind = "function"\nfunction = "no_such:thing"',
        UsageError,
        r"function 'no_such:thing': there is no",
    ),
]


@pytest.mark.parametrize(("text", "kind", "words"), MALFORMED)
def test_a_malformed_table_says_what_is_allowed(file, text, kind, words):
    file(f"[guards.g]\n{text}\n")
    with pytest.raises(GuardlearnError, match=words) as caught:
        load_guard("g")
    assert isinstance(caught.value, kind)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("guardlearn.toml, [guards.")


def test_an_unknown_name_lists_what_there_is(file):
    file('[guards.tests]\nkind = "pytest"\n')
    with pytest.raises(UsageError, match=r"unknown guard 'test' \(did you mean 'tests'") as caught:
        load_guard("test")
    for name in ("house_style", "json_schema", "pytest", "python", "sql", "tests", "package.module:attribute"):
        assert name in str(caught.value)


def test_guards_can_be_sent_to_another_process(file):
    import pickle

    file('[guards.g]\nkind = "all_of"\nguards = ["python", "c", "s"]\n[guards.c]\nkind = "command"\n'
         'command = ["sh", "-c", "exit 0"]\n[guards.s]\nkind = "json_schema"\nschema = {}\n')  # fmt: skip
    guard = load_guard("g")
    copy = pickle.loads(pickle.dumps(guard))
    assert (copy.name, copy.version) == (guard.name, guard.version)
    assert copy("def f(): ...", CONTEXT).cause == guard("def f(): ...", CONTEXT).cause == "json"


def test_a_table_that_is_right_but_for_a_module_that_fails(file):
    folder = file('[guards.g]\nkind = "function"\nfunction = "fails_on_import:check"\n')
    (folder / "fails_on_import.py").write_text("1 / 0\n")
    with pytest.raises(GuardError, match=r"function 'fails_on_import:check' cannot be loaded: ZeroDivision"):
        load_guard("g")
