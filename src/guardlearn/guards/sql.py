"""SQL that must fit a schema, on SQLite in memory: prepared, or run and its rows compared.

It runs in a limited process, with an authorizer that refuses to attach files, set pragmas or load code, a bound on
the steps of the virtual machine (so that a recursion without end is found alike on every machine), and bounds on the
size of a value, of the database and of the heap.
"""

from __future__ import annotations

import json
import marshal
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

from guardlearn.errors import GuardError, UsageError
from guardlearn.guards import answers
from guardlearn.guards.feedback import bounded
from guardlearn.guards.process import Limits, Outcome, run_limited
from guardlearn.guards.verdicts import accepted, no_verdict, rejected, signed
from guardlearn.guards.versions import code_digest
from guardlearn.types import GuardContext, Verdict

__all__ = ["SqlGuard"]

_LIMITS = Limits(wall_seconds=30.0, cpu_seconds=5, memory_bytes=512 << 20, output_bytes=8 << 20)

# Prints one JSON object: {"fault": kind, "text": …} or {"rows": […]}. SQL has no way to the standard output.
_HARNESS = r"""
import json, marshal, sqlite3, sys
schema, artifact, run, read_only, most_statements, most_steps, most_rows = marshal.loads(sys.stdin.buffer.read())
def end(**answer):
    try:
        print(json.dumps(answer))
    except MemoryError:
        print('{"fault": "memory", "text": ""}')
    raise SystemExit(0)
connection = sqlite3.connect(":memory:", isolation_level=None)
try:
    connection.executescript(schema)
except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
    end(fault="schema", text=str(error))
def statements(text):
    parts, start, at = [], 0, text.find(";")
    while at >= 0:
        if sqlite3.complete_statement(text[start : at + 1]):
            parts.append(text[start : at + 1])
            start = at + 1
        at = text.find(";", at + 1)
    return [part for part in [*parts, text[start:]] if bare(part)]
def bare(part):  # what is left of a statement without comments
    while (part := part.strip(" \t\r\n;")).startswith(("--", "/*")):
        ending = "\n" if part.startswith("--") else "*/"
        part = part.partition(ending)[2] if ending in part else ""
    return part
connection.execute("PRAGMA temp_store = MEMORY")
connection.execute("PRAGMA trusted_schema = OFF")
connection.execute("PRAGMA max_page_count = 16384")
connection.execute("PRAGMA hard_heap_limit = 134217728")
for name, most in (("LENGTH", 1 << 20), ("SQL_LENGTH", 1 << 18), ("ATTACHED", 0), ("EXPR_DEPTH", 200)):
    connection.setlimit(getattr(sqlite3, "SQLITE_LIMIT_" + name), most)
actions = {getattr(sqlite3, "SQLITE_" + name): name for name in ALLOWED | DENIED}
refused = []
def authorize(action, first, second, database, trigger):
    name = actions.get(action, "")
    if name in ALLOWED and not (read_only and name not in READING):
        if name != "FUNCTION" or str(second).lower() not in ("load_extension", "fts3_tokenizer"):
            return sqlite3.SQLITE_OK
    refused.append(str(second or first) if name == "FUNCTION" else name.replace("_", " ") or "this statement")
    return sqlite3.SQLITE_DENY
steps = 0
def tick():
    global steps
    steps += 1
    return steps * 1000 > most_steps
parts = statements(artifact)
if not parts:
    end(fault="empty", text="there is no statement")
if len(parts) > most_statements:
    end(fault="many", text="%d statements" % len(parts))
rows = []
connection.set_authorizer(authorize)
connection.set_progress_handler(tick, 1000)
for part in parts:
    try:
        rows = []
        for row in connection.execute(part if run else "EXPLAIN " + part):
            if run and len(rows) < most_rows:
                rows.append([{"blob": cell.hex()} if isinstance(cell, bytes) else cell for cell in row])
    except MemoryError:
        end(fault="memory", text="")
    except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
        if steps * 1000 > most_steps:
            end(fault="steps", text="")
        end(fault="refused" if refused else "error", text=refused[0] if refused else str(error))
try:
    connection.execute("ROLLBACK")
except sqlite3.Error:
    pass
end(rows=rows)
"""

_READING = {"READ", "SELECT", "FUNCTION", "RECURSIVE"}
_ALLOWED = _READING | {
    "INSERT", "UPDATE", "DELETE", "TRANSACTION", "SAVEPOINT", "ALTER_TABLE", "ANALYZE", "REINDEX",
    "CREATE_INDEX", "CREATE_TABLE", "CREATE_TRIGGER", "CREATE_VIEW",
    "DROP_INDEX", "DROP_TABLE", "DROP_TRIGGER", "DROP_VIEW",
    "CREATE_TEMP_INDEX", "CREATE_TEMP_TABLE", "CREATE_TEMP_TRIGGER", "CREATE_TEMP_VIEW",
    "DROP_TEMP_INDEX", "DROP_TEMP_TABLE", "DROP_TEMP_TRIGGER", "DROP_TEMP_VIEW",
}  # fmt: skip
_DENIED = {"ATTACH", "DETACH", "PRAGMA", "CREATE_VTABLE", "DROP_VTABLE"}


class SqlGuard:
    """Accepts SQL that SQLite can prepare, or run, on a schema."""

    def __init__(
        self,
        *,
        schema: str = "",
        schema_file: str = "",
        run: bool = True,
        read_only: bool = False,
        most_statements: int = 1,
        most_steps: int = 10_000_000,
        metadata_schema: str = "schema",
        metadata_rows: str = "rows",
        name: str = "sql",
        constraints: str = "",
        extract: answers.Extract = "code",
    ) -> None:
        """Configure the guard.

        Args:
            schema: statements that make the database, rows included.
            schema_file: a file of them, instead.
            run: whether the statement is run, else it is only prepared.
            read_only: whether only SELECT is allowed.
            most_statements: statements an answer may hold.
            most_steps: steps of SQLite's virtual machine an answer may take; more rejects it.
            metadata_schema: key of a specification's metadata that holds a schema of its own, in place of this one.
            metadata_rows: key of a specification's metadata that holds the rows, [[value, …], …], that the last
                statement must return, in any order; without it every result is accepted.
            name: stored with each verdict.
            constraints: default Ω.
            extract: what of an answer is judged, see `answers.taken`.

        Raises:
            UsageError: the settings contradict themselves, or the schema is no SQL.
        """
        if schema and schema_file:
            raise UsageError(f"guard {name!r}: give schema or schema_file, not both")
        if most_statements < 1 or most_steps < 1000:
            raise UsageError(f"guard {name!r}: most_statements must be at least 1, most_steps at least 1000")
        self.name = name
        self.constraints = constraints
        self.schema = _read(schema_file, name) if schema_file else schema
        self.run, self.read_only = run, read_only
        self.most_statements, self.most_steps = most_statements, most_steps
        self.metadata_schema, self.metadata_rows = metadata_schema, metadata_rows
        self.extract = extract
        self.version = code_digest(sys.modules[__name__], answers, vars(self), sqlite3.sqlite_version)
        if self.schema and (fault := self._ask("SELECT 1", self.schema).get("text")):
            raise UsageError(f"guard {name!r}: its schema is no SQL that SQLite can run: {fault}")

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge `artifact`.

        Raises:
            GuardError: the specification's own schema or rows are not what they should be.
        """
        began = time.monotonic()
        return signed(self._judge(artifact, context), self, began)

    def _judge(self, artifact: str, context: GuardContext) -> Verdict:
        text, cause, fault = answers.taken(artifact, self.extract)
        if fault:
            return rejected(cause, fault)
        spec = context.specification
        schema, rows = spec.metadata.get(self.metadata_schema, self.schema), spec.metadata.get(self.metadata_rows)
        if not isinstance(schema, str) or not (rows is None or isinstance(rows, list)):
            raise GuardError(
                f"specification {spec.id!r}: guard {self.name!r} needs metadata.{self.metadata_schema} as text "
                f"and metadata.{self.metadata_rows} as a list of rows"
            )
        answer = self._ask(text, schema, 0 if rows is None else len(rows) + 1)
        if "fault" in answer:
            return self._fault(answer["fault"], bounded(answer["text"], 500))
        if rows is not None and self.run and _bag(answer["rows"]) != _bag(rows):
            shown = bounded(json.dumps(answer["rows"][:20]), 500)
            return rejected("rows", f"The statement returns other rows than it should: {shown}")
        return accepted()

    def _fault(self, kind: str, text: str) -> Verdict:
        if kind in {"schema", "process"}:
            return no_verdict(f"the check failed before the statement: {text}")
        words = {
            "error": f"SQLite says: {text}",
            "refused": f"The statement is not allowed: {text}.",
            "empty": "There is no SQL statement in the answer.",
            "many": f"The answer has {text}; write at most {self.most_statements}.",
            "steps": f"The statement takes more than {self.most_steps} steps.",
            "timeout": "The statement takes too long.",
            "memory": "The statement needs too much memory.",
            "output": "The statement returns too much.",
        }
        causes = {"error": "sql", "refused": "not allowed", "empty": "no code", "many": "too long", "steps": "timeout"}
        return rejected(causes.get(kind, kind), words[kind])

    def _ask(self, text: str, schema: str, most_rows: int = 0) -> dict[str, Any]:
        """Return what the process says: the first rows, or a fault and its text."""
        given = (schema, text, self.run, self.read_only, self.most_statements, self.most_steps, most_rows)
        code = f"READING, ALLOWED, DENIED = {_READING!r}, {_ALLOWED!r}, {_DENIED!r}\n{_HARNESS}"
        try:
            payload = marshal.dumps(given)
            result = run_limited(code, payload, _LIMITS, preload=["sqlite3", "json", "marshal"])
        except OSError as error:
            return {"fault": "process", "text": str(error)}
        if result.outcome is Outcome.EXITED and result.returncode == 0:
            answer: dict[str, Any] = json.loads(result.stdout)
            return answer
        if result.outcome in {Outcome.EXITED, Outcome.SIGNALLED}:
            return {"fault": "process", "text": f"its process ended with {result.returncode}"}
        return {"fault": result.outcome.value, "text": ""}


def _bag(rows: list[Any]) -> list[str]:
    """Return rows in an order of their own; 1 and 1.0 are equal, as in SQL."""
    plain = [[float(cell) if isinstance(cell, bool | int) else cell for cell in row] for row in rows]
    return sorted(json.dumps(row, sort_keys=True) for row in plain)


def _read(path: str, guard: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"guard {guard!r}: schema_file {path!r} cannot be read: {error}") from None


sql = SqlGuard()
"""The ready guard: every specification brings its schema."""
