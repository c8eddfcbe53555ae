"""The ready guards that run nothing of an artifact: python, regex, json_schema, sql."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from guardlearn import (
    ArtifactStatus,
    GuardContext,
    JsonSchemaGuard,
    PythonGuard,
    RegexGuard,
    Specification,
    SqlGuard,
    load_guard,
)
from guardlearn.errors import BackendUnavailable, GuardError, UsageError
from guardlearn.guards import judge

ACCEPTED, REJECTED, PENDING = ArtifactStatus.ACCEPTED, ArtifactStatus.REJECTED, ArtifactStatus.PENDING
SURROGATE = "x = '\ud800'"


def context(**metadata):
    return GuardContext(specification=Specification(id="s", specification="a task", metadata=metadata))


def test_python_that_compiles():
    guard = load_guard("python")
    for good in (
        "def f(): ...",
        "```\nx = 1\n```",
        "```python\ndef f():\n    return 1\n```",
        "Sure:\n\ndef f(): ...\n\nThat is f.",
    ):
        assert guard(good, context()).passed
    verdict = PythonGuard(extract="")("def f():\n    return 1\n\nreturn 2", context())
    assert (verdict.status, verdict.cause) == (REJECTED, "syntax")
    assert verdict.feedback == "The code is not valid Python: line 4: 'return' outside function\n    return 2"
    assert (verdict.guard, verdict.guard_version) == ("python", PythonGuard(extract="").version)


PYTHON = [
    ("", "There is no code"),
    ("no code at all", "There is no code"),
    ("def f(: ...", "line 1: "),
    ("def f():\n\treturn 1\n        return 2", "line 3: "),
    ("def f(): return '\0'", "null bytes"),
    (f"def f(): {SURROGATE}", "line 1 holds half of a surrogate pair (U+D800)"),
    ("def f(): return " + "(" * 5000 + ")" * 5000, "too many nested parentheses"),
    ("def f(): return " + "-" * 19_000 + "1", "nested too deeply"),
    ("def f(): return '\\d'\nimport warnings; x = 1 is 1\n", None),
]


@pytest.mark.parametrize(("artifact", "words"), PYTHON)
def test_python_that_does_not_compile_says_why(artifact, words, recwarn):
    verdict = load_guard("python")(artifact, context())
    assert verdict.status is (REJECTED if words else ACCEPTED)
    assert (words or "") in verdict.feedback
    assert len(recwarn) == 0


def test_python_too_long_is_not_read():
    verdict = PythonGuard(extract="", longest_chars=10)("x = 1234567", context())
    assert (verdict.cause, verdict.feedback) == ("too long", "The answer is longer than 10 characters.")


def test_a_regular_expression_must_and_must_not_match():
    guard = RegexGuard(match=[r"^SELECT\b", "FROM"], forbid=["(?i)drop"])
    assert guard("SELECT a FROM t", context()).passed
    missing = guard("SELECT a", context())
    assert (missing.cause, missing.feedback) == ("missing", "The text must match the regular expression FROM")
    forbidden = guard("SELECT a FROM t;\nDrop table t", context())
    assert forbidden.cause == "forbidden"
    assert forbidden.feedback == "The text must not match the regular expression (?i)drop, and line 2 has 'Drop'"
    assert RegexGuard(match=["a+"], full=True)("aaa", context()).passed
    assert not RegexGuard(match=["a+"], full=True)("aaab", context()).passed
    assert RegexGuard(forbid=["x"], message="No x.")("x", context()).feedback == "No x."


def test_a_regular_expression_reads_what_no_file_can_hold():
    assert RegexGuard(match=["\ud800$"])("a\0\ud800", context()).passed
    shown = RegexGuard(forbid=["\ud800"])("a\ud800", context())
    assert shown.status is REJECTED
    shown.feedback.encode()


def test_a_catastrophic_pattern_gives_no_verdict():
    verdict = RegexGuard(match=["^(a+)+$"])("a" * 50 + "b", context())
    assert (verdict.status, verdict.cause) == (PENDING, "guard failed")
    assert "did not decide within its limits (timeout)" in verdict.feedback


@pytest.mark.parametrize("settings", [{}, {"match": ["("]}, {"forbid": ["a{99999999999}"]}])
def test_a_pattern_that_is_none_is_refused_when_the_guard_is_made(settings):
    with pytest.raises(UsageError, match="guard 'regex'"):
        RegexGuard(**settings)


SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]+$"},
        "count": {"type": "integer", "minimum": 1},
        "tags": {"type": "array", "uniqueItems": True},
        "inner": {"anyOf": [{"type": "string"}, {"$ref": "#"}]},
        "not": {"not": {"pattern": "secret"}},
    },
    "patternProperties": {"^x-": {"type": "integer"}},
    "required": ["name"],
    "additionalProperties": False,
}
VALID = [
    '{"name": "ada", "count": 2, "x-a": 1, "inner": {"name": "b", "inner": "c"}}',
    'Here:\n```json\n{"name": "ada", "tags": [1, true, "1", [1], {"a": 1}, {"a": 2}]}\n```',
    '{"name": "ada", "not": "open"}',
]
INVALID = [
    ("{}", "schema", "$: 'name' is a required property"),
    ('{"name": "ADA"}', "schema", "$.name: 'ADA' does not match '^[a-z]+$'"),
    ('{"name": "\\ud800"}', "schema", "does not match"),
    ('{"name": "a", "count": 0}', "schema", "$.count: 0 is less than the minimum of 1"),
    ('{"name": "a", "other": 0}', "schema", "'other' was unexpected"),
    ('{"name": "a", "x-a": "1"}', "schema", "$['x-a']: '1' is not of type 'integer'"),
    ('{"name": "a", "tags": [1, 2, 1.0]}', "schema", "has non-unique elements"),
    ('{"name": "a", "tags": [{"a": 1, "b": 2}, {"b": 2, "a": 1}]}', "schema", "has non-unique elements"),
    ('{"name": "a", "inner": {"name": 3}}', "schema", "$.inner.name: 3 is not of type 'string'"),
    ('{"name": "a", "not": "a secret"}', "schema", "$.not: "),
    ('{"name": "a",}', "json", "line 1 column"),
    ("", "no code", "There is no code"),
    ("NaN", "json", "NaN is no JSON value"),
    ('{"name": "a\0"}', "json", "control character"),
    (f'{{"name": "{SURROGATE}"}}', "encoding", "U+D800"),
    ("[" * 100_000, "json", "nests deeper than 100 levels"),
    ("[" * 200 + "]" * 200, "json", "nests deeper than 100 levels"),
    ("9" * 10_000, "json", "Exceeds the limit"),
]


@pytest.mark.parametrize("artifact", VALID)
def test_json_that_is_valid_under_a_schema(artifact):
    verdict = JsonSchemaGuard(schema=SCHEMA)(artifact, context())
    assert verdict.passed, verdict.feedback


@pytest.mark.parametrize(("artifact", "cause", "words"), INVALID, ids=lambda each: str(each)[:20])
def test_json_that_is_not_says_where(artifact, cause, words):
    verdict = JsonSchemaGuard(schema=SCHEMA)(artifact, context())
    assert (verdict.status, verdict.cause) == (REJECTED, cause)
    assert words in verdict.feedback and len(verdict.feedback) < 2000


def test_errors_are_told_in_the_order_of_their_places_and_counted():
    guard = JsonSchemaGuard(schema={"items": {"type": "integer"}}, most_errors=3)
    verdict = guard(json.dumps(["a"] * 12), context())
    assert verdict.feedback.splitlines() == [
        "$[0]: 'a' is not of type 'integer'",
        "$[1]: 'a' is not of type 'integer'",
        "$[2]: 'a' is not of type 'integer'",
        "(and 9 more)",
    ]


@pytest.mark.slow
def test_patterns_beside_others_agree_with_the_library():
    """The keywords this package brings of its own say what jsonschema's say."""
    import jsonschema

    schemas = [
        {"patternProperties": {"^a": {"type": "string"}, "b$": {"minLength": 2}}, "additionalProperties": False},
        {"properties": {"a": {}}, "patternProperties": {"^a": {"minLength": 1}}, "additionalProperties": {"const": 0}},
        {"patternProperties": {"^a": True}, "unevaluatedProperties": False},
        {"anyOf": [{"pattern": "^a"}, {"pattern": "b$"}], "not": {"pattern": "c"}},
        {"oneOf": [{"pattern": "^a"}, {"pattern": "b$"}]},
        {"if": {"pattern": "^a"}, "then": {"pattern": "b$"}, "else": {"pattern": "^c"}},
        {"uniqueItems": True},
    ]  # fmt: skip
    values = [
        {},
        {"a": "x"},
        {"ab": "x"},
        {"ab": "xy", "b": "zz"},
        {"c": None},
        {"a": 1},
        "a",
        "ab",
        "b",
        "c",
        "abc",
        "d",
    ]
    values += [[1, 1.0], [0, False], [1, True], [[1], [1.0]], [{"a": 1}, {"a": True}], [None, None], ["1", 1]]
    for schema in schemas:
        guard, library = JsonSchemaGuard(schema=schema), jsonschema.Draft202012Validator(schema)
        for value in values:
            verdict = guard(json.dumps(value), context())
            assert verdict.passed == library.is_valid(value), (schema, value, verdict.feedback)


@pytest.mark.slow
def test_what_would_take_for_ever_gives_no_verdict():
    verdict = JsonSchemaGuard(schema={"pattern": "^(a+)+$"})(json.dumps("a" * 50 + "b"), context())
    assert verdict.status is PENDING and "did not decide" in verdict.feedback
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema", "properties": {"x": {"$ref": "#"}}}
    verdict = JsonSchemaGuard(schema={**draft, "pattern": "^(a+)+$"})(json.dumps({"x": "a" * 50 + "b"}), context())
    assert verdict.status is PENDING and "did not decide" in verdict.feedback
    both = [{"type": "array", "items": {"$ref": "#"}, "minItems": 1}, {"type": "array", "items": {"$ref": "#"}}]
    verdict = JsonSchemaGuard(schema={"anyOf": both})("[" * 60 + "1" + "]" * 60, context())
    assert verdict.status is PENDING and "100000 steps" in verdict.feedback


def test_unique_items_take_linear_time():
    artifact = json.dumps([{"a": n, "b": "x"} for n in range(3000)])
    guard = JsonSchemaGuard(schema={"uniqueItems": True})
    began = time.process_time()
    assert guard(artifact, context()).passed
    assert time.process_time() - began < 3  # comparing each with each takes tens of seconds


def test_a_reference_to_elsewhere_is_not_followed():
    verdict = JsonSchemaGuard(schema={"$ref": "http://127.0.0.1:9/s.json"})("1", context())
    assert verdict.status is PENDING and "is not in it" in verdict.feedback


def test_a_specification_may_bring_its_schema():
    guard = load_guard("json_schema")
    assert guard("3", context(schema={"type": "integer"})).passed
    assert guard("'3'", context(schema={"type": "integer"})).cause == "json"
    assert JsonSchemaGuard(schema={"type": "string"})("3", context(schema={"type": "integer"})).passed
    for bad in ({}, {"schema": {"type": 3}}, {"schema": "text"}):
        with pytest.raises(GuardError, match=r"specification 's': metadata\.schema is no JSON Schema"):
            guard("3", context(**bad))


def test_without_the_library_the_command_that_helps_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonschema", None)  # as Python has it where an import must fail
    with pytest.raises(BackendUnavailable, match=r"pip install 'guardlearn\[schema\]'"):
        JsonSchemaGuard(schema={})
    with pytest.raises(BackendUnavailable):  # of the run, not of one artifact
        judge(load_guard("json_schema"), "3", context(schema={}))


def test_a_schema_that_is_none_is_refused_when_the_guard_is_made(tmp_path):
    with pytest.raises(UsageError, match=r"\$.type: 'nonsense' is not valid"):
        JsonSchemaGuard(schema={"type": "nonsense"})
    with pytest.raises(UsageError, match="cannot be read"):
        JsonSchemaGuard(schema_file=str(tmp_path / "none.json"))
    with pytest.raises(UsageError, match="not both"):
        JsonSchemaGuard(schema={}, schema_file="x.json")
    (tmp_path / "s.json").write_text('{"type": "integer"}')
    from_file = JsonSchemaGuard(schema_file=str(tmp_path / "s.json"))
    assert from_file("3", context()).passed
    assert from_file.version == JsonSchemaGuard(schema={"type": "integer"}).version
    assert from_file.version != JsonSchemaGuard(schema={"type": "string"}).version


TABLES = "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y');"
SQL = [
    ("SELECT a, b FROM t", ACCEPTED, "", ""),
    ("```sql\nSELECT a -- first; really\nFROM t;\n```", ACCEPTED, "", ""),
    ("INSERT INTO t VALUES (3, 'a;b')", ACCEPTED, "", ""),
    ("CREATE TRIGGER r AFTER INSERT ON t BEGIN DELETE FROM t; END;", ACCEPTED, "", ""),
    ("SELECT c FROM t", REJECTED, "sql", "no such column: c"),
    ("SELEC", REJECTED, "sql", "syntax error"),
    ("SELECT 1; SELECT 2", REJECTED, "too long", "2 statements; write at most 1"),
    ("-- nothing\n/* here */;", REJECTED, "no code", "no SQL statement"),
    ("", REJECTED, "no code", "There is no code"),
    ("SELECT '\0'", REJECTED, "sql", "null character"),
    (f"SELECT {SURROGATE}", REJECTED, "encoding", "U+D800"),
    ("ATTACH '{folder}/stolen.db' AS s", REJECTED, "not allowed", "ATTACH"),
    ("VACUUM INTO '{folder}/stolen.db'", REJECTED, "not allowed", "ATTACH"),
    ("PRAGMA writable_schema = ON", REJECTED, "not allowed", "PRAGMA"),
    ("SELECT load_extension('{folder}/evil.so')", REJECTED, "not allowed", "load_extension"),
    ("CREATE VIRTUAL TABLE v USING fts5(x)", REJECTED, "not allowed", "VTABLE"),
    ("SELECT zeroblob(1000000000)", REJECTED, "sql", "too big"),
    (
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
        REJECTED,
        "timeout",
        "steps",
    ),
    (
        "WITH RECURSIVE c(x) AS (SELECT randomblob(1000000) UNION ALL SELECT randomblob(1000000) FROM c LIMIT 9999) "
        "SELECT * FROM c ORDER BY x",
        REJECTED,
        "memory",
        "too much memory",
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("artifact", "status", "cause", "words"), SQL, ids=lambda each: str(each)[:24])
def test_sql_against_a_schema(tmp_path, artifact, status, cause, words):
    verdict = SqlGuard(schema=TABLES)(artifact.replace("{folder}", str(tmp_path)), context())
    assert (verdict.status, verdict.cause) == (status, cause), verdict
    assert words in verdict.feedback
    assert list(Path(tmp_path).iterdir()) == []


def test_sql_must_return_the_rows_that_a_specification_names():
    guard = load_guard("sql")
    rows = [[2, "y"], [1, "x"]]
    assert guard("SELECT a, b FROM t", context(schema=TABLES, rows=rows)).passed
    wrong = guard("SELECT a, b FROM t WHERE a = 1", context(schema=TABLES, rows=rows))
    assert (wrong.cause, wrong.feedback) == ("rows", 'The statement returns other rows than it should: [[1, "x"]]')
    assert not guard("SELECT a, b FROM t UNION ALL SELECT 1, 'x'", context(schema=TABLES, rows=rows)).passed
    assert guard("SELECT 1.0, x'00ff', NULL", context(rows=[[1, {"blob": "00ff"}, None]])).passed
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 500000) SELECT x FROM c"
    assert guard(endless, context(rows=[[1]])).cause == "rows"


def test_sql_that_is_only_prepared_or_only_reads():
    prepared = SqlGuard(schema=TABLES, run=False)
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
    assert prepared(endless, context()).passed
    assert not prepared("SELECT c FROM t", context()).passed
    reading = SqlGuard(schema=TABLES, read_only=True, most_statements=2)
    assert reading("SELECT a FROM t; SELECT b FROM t", context()).passed
    assert reading("DELETE FROM t", context()).feedback == "The statement is not allowed: DELETE."
    several = SqlGuard(schema=TABLES, most_statements=3)
    assert several("BEGIN; INSERT INTO t VALUES (3, 'z'); ROLLBACK", context()).passed


def test_a_schema_that_is_no_sql_is_refused_or_gives_no_verdict():
    with pytest.raises(UsageError, match="no SQL that SQLite can run: near"):
        SqlGuard(schema="CREATE TABEL t (a)")
    verdict = load_guard("sql")("SELECT 1", context(schema="CREATE TABEL t (a)"))
    assert (verdict.status, verdict.cause) == (PENDING, "guard failed")
    with pytest.raises(GuardError, match="specification 's': guard 'sql' needs"):
        load_guard("sql")("SELECT 1", context(schema=3))
    with pytest.raises(GuardError, match="needs"):
        load_guard("sql")("SELECT 1", context(rows="all"))
