"""JSON that must fit a JSON Schema (library jsonschema, extra `schema`).

A check cannot take for ever, whatever schema and artifact make of each other: keywords are counted and end at a bound,
regular expressions run in a limited process, and references to other documents are not followed.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from guardlearn.errors import GuardError, UsageError, missing_library
from guardlearn.guards import answers, patterns
from guardlearn.guards.verdicts import accepted, no_verdict, rejected, signed
from guardlearn.guards.versions import code_digest
from guardlearn.types import GuardContext, Verdict

__all__ = ["JsonSchemaGuard"]

_MOST_KEYWORDS = 100_000
"""Keywords a check may apply: seconds."""
_DEEPEST = 100
"""Levels an artifact may nest."""
_SHOWN_CHARS = 300


class JsonSchemaGuard:
    """Accepts JSON that is valid under a schema."""

    def __init__(
        self,
        *,
        schema: Mapping[str, Any] | None = None,
        schema_file: str = "",
        metadata_schema: str = "schema",
        most_errors: int = 5,
        name: str = "json_schema",
        constraints: str = "",
        extract: answers.Extract = "code",
        longest_chars: int = 1_000_000,
    ) -> None:
        """Configure the guard.

        Args:
            schema: the schema; its "$schema" chooses the draft, 2020-12 where it has none.
            schema_file: a JSON file of it, instead.
            metadata_schema: key of a specification's metadata that holds a schema of its own, in place of this one.
            most_errors: errors a feedback tells of.
            name: stored with each verdict.
            constraints: default Ω.
            extract: what of an answer is judged, see `answers.taken`.
            longest_chars: longer texts are rejected unread.

        Raises:
            BackendUnavailable: jsonschema is not installed.
            UsageError: the settings contradict themselves, or the schema is none.
        """
        if schema is not None and schema_file:
            raise UsageError(f"guard {name!r}: give schema or schema_file, not both")
        self.name = name
        self.constraints = constraints
        self.schema = _read(schema_file, name) if schema_file else schema
        self.metadata_schema, self.most_errors = metadata_schema, most_errors
        self.extract, self.longest_chars = extract, longest_chars
        self.version = code_digest(sys.modules[__name__], answers, patterns, vars(self))
        if self.schema is not None and (fault := _schema_fault(self.schema)):
            raise UsageError(f"guard {name!r}: its schema is no JSON Schema: {fault}")

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge `artifact`.

        Raises:
            GuardError: there is no schema, or the specification's own is none.
        """
        began = time.monotonic()
        return signed(self._judge(artifact, context), self, began)

    def _judge(self, artifact: str, context: GuardContext) -> Verdict:
        schema = context.specification.metadata.get(self.metadata_schema, self.schema)
        if (schema is not self.schema or schema is None) and (fault := _schema_fault(schema)):
            raise GuardError(
                f"specification {context.specification.id!r}: metadata.{self.metadata_schema} is no JSON Schema: "
                f"{fault}; guard {self.name!r} needs one, or a schema of its own"
            )
        if len(artifact) > self.longest_chars:
            return rejected("too long", f"The answer is longer than {self.longest_chars} characters.")
        text, cause, fault = answers.taken(artifact, self.extract)
        if fault:
            return rejected(cause, fault)
        value, fault = _parsed(text)
        if fault:
            return rejected("json", f"The answer is not valid JSON: {fault}")
        try:
            errors = _errors(schema, value)
        except GuardError as error:
            return no_verdict(str(error))
        if not errors:
            return accepted()
        more = f"\n(and {len(errors) - self.most_errors} more)" if len(errors) > self.most_errors else ""
        return rejected("schema", "\n".join(errors[: self.most_errors]) + more)


def _parsed(text: str) -> tuple[Any, str]:
    """Return (value, "") or (None, why it is no JSON)."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON value")

    try:
        value = json.loads(text, parse_constant=refuse)
    except RecursionError:
        return None, f"it nests deeper than {_DEEPEST} levels"
    except ValueError as error:  # JSONDecodeError, or an integer of thousands of digits
        return None, str(error)
    level, depth = [value], 0
    while level := [inner for each in level for inner in _inside(each)]:
        depth += 1
        if depth > _DEEPEST:
            return None, f"it nests deeper than {_DEEPEST} levels"
    return value, ""


def _inside(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []


def _schema_fault(schema: Any) -> str:
    """Return why `schema` is none, or ""."""
    library = _library()
    if not isinstance(schema, Mapping | bool):
        return f"it is {str(schema)[:40]!r}, and must be an object"
    kind = library.validators.validator_for(schema, default=library.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except library.SchemaError as error:
        return f"{error.json_path}: {error.message[:_SHOWN_CHARS]}"
    except RecursionError:
        return "it nests too deeply"
    return ""


def _errors(schema: Any, value: Any) -> list[str]:
    """Return what is wrong with `value`, a line each, in the order of the places.

    Raises:
        GuardError: the check did not decide within its bounds, or the schema refers to what is not there.
    """
    library = _library()
    kind = library.validators.validator_for(schema, default=library.Draft202012Validator)
    import referencing.exceptions

    try:
        with _Check() as check:
            validator = _bounded(kind)(_without_dialect(schema), registry=referencing.Registry())
            found = check.settled(lambda: list(validator.iter_errors(value)))
    except referencing.exceptions.Unresolvable as error:
        raise GuardError(f"the schema refers to {error.ref!r}, which is not in it") from None
    except RecursionError:
        raise GuardError("the schema and the answer nest too deeply to be checked") from None
    lines = []
    for each in sorted(found, key=lambda each: ([str(part).rjust(8) for part in each.absolute_path], each.message)):
        best = library.exceptions.best_match([each])
        message = best.message if len(best.message) <= _SHOWN_CHARS else f"{best.message[:_SHOWN_CHARS]}…"
        lines.append(f"{best.json_path}: {message}")
    return list(dict.fromkeys(lines))


class _Check:
    """One check's bounds, found by the keywords through the thread it runs in."""

    running = threading.local()

    def __init__(self) -> None:
        self.keywords = 0
        self.known: dict[tuple[str, str], bool] = {}
        """Whether a pattern was found in a text."""
        self.asked: dict[tuple[str, str], None] = {}

    def __enter__(self) -> _Check:
        self.running.check = self
        return self

    def __exit__(self, *_: object) -> None:
        del self.running.check

    def step(self) -> None:
        self.keywords += 1
        if self.keywords > _MOST_KEYWORDS:
            raise GuardError(f"the check did not decide within {_MOST_KEYWORDS} steps")

    def holds(self, pattern: str, text: str) -> bool:
        """Return whether a pattern is found in a text; one not yet known is asked for, and taken as found."""
        pair = (pattern, text)
        if pair not in self.known:
            self.asked[pair] = None
        return self.known.get(pair, True)

    def settled(self, run: Callable[[], list[Any]]) -> list[Any]:
        """Return what `run` returns once every pattern it asks for is known."""
        found = run()
        while self.asked:
            for pattern in {pattern for pattern, _ in self.asked}:
                texts = [text for asked, text in self.asked if asked == pattern]
                places = patterns.search(pattern, texts)
                self.known |= {(pattern, text): place is not None for text, place in zip(texts, places, strict=True)}
            self.asked.clear()
            found = run()
        return found


@functools.cache
def _bounded(kind: Any) -> Any:
    """Return a validator class that counts its keywords and leaves regular expressions to `_Check`."""
    library = _library()

    def counted(keyword: Callable[..., Any]) -> Callable[..., Any]:
        def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
            _Check.running.check.step()
            return keyword(validator, value, instance, schema)

        return apply

    own = {"pattern": _pattern, "patternProperties": _pattern_properties, "uniqueItems": _unique_items}
    keywords = {**kind.VALIDATORS, **{name: own[name] for name in own if name in kind.VALIDATORS}}
    for name in ("additionalProperties", "unevaluatedProperties"):
        if name in keywords:
            keywords[name] = _beside_patterns(name, keywords[name])
    return library.validators.extend(kind, {name: counted(keyword) for name, keyword in keywords.items()})


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not _Check.running.check.holds(pattern, instance):
        yield _library().ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(validator: Any, properties: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in properties.items():
            for name, value in instance.items():
                if _Check.running.check.holds(pattern, name):
                    yield from validator.descend(value, subschema, path=name, schema_path=pattern)


def _beside_patterns(name: str, keyword: Callable[..., Any]) -> Callable[..., Any]:
    """Return a keyword that does not look at the properties which `patternProperties` beside it covers."""

    def apply(validator: Any, value: Any, instance: Any, schema: Any) -> Any:
        covering = schema.get("patternProperties")
        if not covering or not validator.is_type(instance, "object"):
            return keyword(validator, value, instance, schema)
        holds = _Check.running.check.holds
        rest = {key: each for key, each in instance.items() if not any(holds(pattern, key) for pattern in covering)}
        plain = {key: each for key, each in schema.items() if key != "patternProperties"}
        return keyword(validator.evolve(schema=plain), value, rest, plain)

    return apply


def _unique_items(validator: Any, unique: Any, instance: Any, schema: Any) -> Iterator[Any]:
    """As the library's, but in linear time."""
    if unique and validator.is_type(instance, "array"):
        texts = [json.dumps(_plain(each), sort_keys=True) for each in instance]
        if len(set(texts)) < len(texts):
            yield _library().ValidationError(f"{instance!r} has non-unique elements")


def _plain(value: Any) -> Any:
    """Return a JSON value in which equal numbers are written alike."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _without_dialect(schema: Any) -> Any:
    """Return a schema without "$schema": a part that names its draft would be checked without our bounds."""
    if isinstance(schema, Mapping):
        inner = {key: each for key, each in schema.items() if not (key == "$schema" and isinstance(each, str))}
        kept = {"const", "enum", "default", "examples"}
        return {key: each if key in kept else _without_dialect(each) for key, each in inner.items()}
    return [_without_dialect(each) for each in schema] if isinstance(schema, list) else schema


def _library() -> Any:
    try:
        return importlib.import_module("jsonschema")
    except ImportError:
        raise missing_library("jsonschema", "schema", "the guard json_schema") from None


def _read(path: str, guard: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"guard {guard!r}: schema_file {path!r} cannot be read: {error}") from None


json_schema = JsonSchemaGuard()
"""The ready guard: every specification brings its schema."""
