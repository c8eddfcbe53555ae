"""Predicates as values: what Φ is made of, and how it judges an item.

    Predicate
    ├── Word        one word of the vocabulary: a conjunction of comparisons with an item's fields
    ├── Satisfies   a user's own function; the only part that has no text and no SQL
    ├── All         p & q & …
    ├── Any         p | q | …
    └── Not         ~p

A predicate sees one item and its facts, never ℛ. `Comparison` is the one place that says what a word means: `holds`
judges an item here, `dag/sql.py` turns the same comparison into SQL. Definitions 17 and 18.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from guardlearn.errors import UsageError
from guardlearn.predicates import wording
from guardlearn.types import RepositoryItem

__all__ = ["FIELDS", "All", "Any_", "Comparison", "Condition", "Not", "Predicate", "Satisfies", "Word", "and_", "or_"]


def _from_facts(name: str) -> Callable[[RepositoryItem], Any]:
    def read(item: RepositoryItem) -> Any:
        if item.facts is None:
            raise UsageError(f"item {item.id!r} has no facts: predicates on {name} need an item read from ℛ")
        return getattr(item.facts, name)

    return read


FIELDS: dict[str, Callable[[RepositoryItem], Any]] = {
    **{
        name: operator.attrgetter(name)
        for name in (
            "id seq source action_pair_id workflow_id workflow_ref guard guard_version model adapter created_at".split()
        )
    },
    "group": lambda item: item.group or "",
    "side": lambda item: item.side or "",
    # an item not yet stored has its first status only
    "status": lambda item: item.facts.status if item.facts else item.status,
    **{name: _from_facts(name) for name in "rejected_ancestors excluded reviewed stale redacted broken".split()},
}
"""What a comparison may look at, and how it is read from an item."""

_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "in": lambda value, allowed: value in allowed,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Comparison:
    """One test of one field."""

    field: str
    test: Literal["in", ">=", "<=", ">", "<"]
    value: Any
    """A tuple for "in", else a number or an aware time."""

    def holds(self, item: RepositoryItem) -> bool:
        """Whether `item` passes."""
        return _TESTS[self.test](FIELDS[self.field](item), self.value)


@dataclasses.dataclass(frozen=True, slots=True)
class Condition:
    """One thing that a predicate asks of an item: a comparison, or a part that is no conjunction of comparisons."""

    test: Comparison | Predicate
    held: tuple[Comparison, ...] = ()
    """Comparisons of the same word that stand before it, and hold where this one is asked for."""

    @property
    def named(self) -> str | None:
        """The field whose value a reason names; None: reasons name none."""
        comparison = isinstance(self.test, Comparison) and self.test.field in wording.NAMED
        return self.test.field if comparison else None  # type: ignore[union-attr]

    def holds(self, item: RepositoryItem) -> bool:
        """Whether `item` passes."""
        return self.test.holds(item) if isinstance(self.test, Comparison) else self.test.matches(item)

    def reason(self, actual: str | None = None) -> str:
        """Return in words why an item fails.

        Args:
            actual: its value of the field `named`.
        """
        if isinstance(self.test, Predicate):
            return self.test.failing()
        held = [wording.holding(each.field, each.test, each.value) for each in self.held]
        failing = wording.failing(self.test.field, self.test.test, self.test.value, actual)
        return f"{' and '.join(held)}, but {failing}" if held else failing


class Predicate:
    """Φ: a frozen value that selects items; combine with `&`, `|` and `~`."""

    __slots__ = ()

    def matches(self, item: RepositoryItem) -> bool:
        """Whether Φ(item) = ⊤."""
        raise NotImplementedError

    def resolve(self, now: datetime) -> Predicate:
        """Return the same predicate with relative times made absolute, so that it means the same for ever."""
        return self

    def conjuncts(self) -> tuple[Predicate, ...]:
        """Return the predicates whose conjunction this is."""
        return (self,)

    def conditions(self) -> tuple[Condition, ...]:
        """Return what is asked of an item, in order, down to single comparisons; all of them must hold."""
        return tuple(condition for part in self.conjuncts() for condition in part._asks())

    def rejection(self, item: RepositoryItem) -> str | None:
        """Return in words the first condition that `item` fails; None when it matches."""
        for condition in self.conditions():
            if not condition.holds(item):
                return condition.reason(str(FIELDS[condition.named](item)) if condition.named else None)
        return None

    def failing(self) -> str:
        """Return in words what can be said of an item that does not match, whichever it is."""
        return f"not selected by {self!r}"

    def _asks(self) -> tuple[Condition, ...]:
        return (Condition(self),)

    def __call__(self, item: RepositoryItem) -> bool:
        """Judge an item, as the guide's functions do."""
        return self.matches(item)

    def __and__(self, other: object) -> Predicate:
        return and_(self, other) if isinstance(other, Predicate) else NotImplemented

    def __or__(self, other: object) -> Predicate:
        return or_(self, other) if isinstance(other, Predicate) else NotImplemented

    def __invert__(self) -> Predicate:
        return Not(self)

    def __bool__(self) -> bool:
        raise UsageError(
            f"the predicate {self!r} has no truth value by itself: write `&`, `|` and `~` instead of `and`, `or` and "
            "`not`, and predicate.matches(item) instead of `if predicate`"
        )


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Word(Predicate):
    """One word of the vocabulary with its arguments."""

    name: str
    arguments: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    comparisons: tuple[Comparison, ...] = dataclasses.field(default=(), compare=False)
    """What the word means; all of them must hold. Follows from name and arguments, so it is not compared."""
    days: float | None = dataclasses.field(default=None, compare=False)
    """Set on `recent` only: how far back from "now"."""

    def matches(self, item: RepositoryItem) -> bool:
        """Whether every comparison holds."""
        return all(comparison.holds(item) for comparison in self.meaning(datetime.now(UTC)))

    def meaning(self, now: datetime) -> tuple[Comparison, ...]:
        """Return the comparisons, with `recent` reckoned from `now`."""
        if self.days is None:
            return self.comparisons
        try:
            cutoff = now - timedelta(days=self.days)
        except OverflowError:
            cutoff = datetime.min.replace(tzinfo=UTC)
        return (Comparison("created_at", ">", cutoff),)

    def resolve(self, now: datetime) -> Predicate:
        """Return `created_after` for `recent`, else the word itself."""
        if self.days is None:
            return self
        cutoff = self.meaning(now)[0]
        return Word("created_after", (cutoff.value.isoformat(),), (), (cutoff,))

    def _asks(self) -> tuple[Condition, ...]:
        meaning = self.meaning(datetime.now(UTC))
        return tuple(Condition(comparison, meaning[:place]) for place, comparison in enumerate(meaning))

    def __repr__(self) -> str:
        shown = [_source(argument) for argument in self.arguments]
        shown += [f"{name}={_source(value)}" for name, value in self.options]
        return f"{self.name}({', '.join(shown)})"


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Satisfies(Predicate):
    """A user's own function of an item; it runs in Python and has no text form."""

    function: Callable[[RepositoryItem], Any]

    def matches(self, item: RepositoryItem) -> bool:
        """Whether the function's result is true."""
        return bool(self.function(item))

    def __repr__(self) -> str:
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return f"satisfies({name})"


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class All(Predicate):
    """Every term matches; at least two terms, none of them an All. Made by `and_` or `&`."""

    terms: tuple[Predicate, ...]

    def matches(self, item: RepositoryItem) -> bool:
        """Whether every term matches; stops at the first that does not."""
        return all(term.matches(item) for term in self.terms)

    def resolve(self, now: datetime) -> Predicate:
        """Resolve every term."""
        return All(tuple(term.resolve(now) for term in self.terms))

    def conjuncts(self) -> tuple[Predicate, ...]:
        """Return the terms."""
        return self.terms

    def __repr__(self) -> str:
        return " & ".join(f"({term!r})" if isinstance(term, Any_) else repr(term) for term in self.terms)


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Any_(Predicate):
    """Some term matches; at least two terms, none of them an Any_. Made by `or_` or `|`."""

    terms: tuple[Predicate, ...]

    def matches(self, item: RepositoryItem) -> bool:
        """Whether some term matches; stops at the first that does."""
        return any(term.matches(item) for term in self.terms)

    def resolve(self, now: datetime) -> Predicate:
        """Resolve every term."""
        return Any_(tuple(term.resolve(now) for term in self.terms))

    def __repr__(self) -> str:
        return " | ".join(f"({term!r})" if isinstance(term, All) else repr(term) for term in self.terms)


@dataclasses.dataclass(frozen=True, slots=True, repr=False)
class Not(Predicate):
    """The term does not match."""

    term: Predicate

    def matches(self, item: RepositoryItem) -> bool:
        """Whether the term does not match."""
        return not self.term.matches(item)

    def failing(self) -> str:
        """Return what an item is that the term does select."""
        meaning = self.term.conditions()
        if len(meaning) == 1 and isinstance(only := meaning[0].test, Comparison):
            return wording.holding(only.field, only.test, only.value)
        return f"selected by {self.term!r}"

    def resolve(self, now: datetime) -> Predicate:
        """Resolve the term."""
        return Not(self.term.resolve(now))

    def __repr__(self) -> str:
        return f"~({self.term!r})" if isinstance(self.term, All | Any_) else f"~{self.term!r}"


def and_(*predicates: Predicate | Callable[[RepositoryItem], Any]) -> Predicate:
    """Return the conjunction; a plain callable becomes `satisfies(callable)`, nothing becomes `everything()`."""
    terms = _flat(predicates, All)
    return terms[0] if len(terms) == 1 else All(terms) if terms else Word("everything")


def or_(*predicates: Predicate | Callable[[RepositoryItem], Any]) -> Predicate:
    """Return the disjunction; a plain callable becomes `satisfies(callable)`, nothing becomes `~everything()`."""
    terms = _flat(predicates, Any_)
    return terms[0] if len(terms) == 1 else Any_(terms) if terms else Not(Word("everything"))


def as_predicate(candidate: object) -> Predicate:
    """Return `candidate` as a predicate; a plain callable becomes `Satisfies`."""
    if isinstance(candidate, Predicate):
        return candidate
    if not callable(candidate):
        raise UsageError(
            f"{candidate!r} is no predicate: give one, as in refinement() & source('generator'), or a function of an "
            "item; text goes through guardlearn.predicates.parse"
        )
    return Satisfies(candidate)


def _flat(predicates: tuple[Any, ...], kind: type[All] | type[Any_]) -> tuple[Predicate, ...]:
    terms: list[Predicate] = []
    for predicate in map(as_predicate, predicates):
        terms.extend(predicate.terms if isinstance(predicate, kind) else (predicate,))
    return tuple(terms)


def _source(value: Any) -> str:
    """Return Python source for an argument; strings in double quotes where that needs no escaping."""
    if isinstance(value, str) and '"' not in value:
        return '"' + repr("'" + str(value))[2:]  # a leading ' makes repr choose double quotes
    return repr(str(value) if isinstance(value, str) else value)
