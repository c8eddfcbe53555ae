"""Φ as values: text form, laws, errors, policies, the guide's names."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn import predicates as words
from guardlearn.errors import PredicateError, UsageError
from guardlearn.predicates import POLICIES, VOCABULARY, Predicate, and_, or_, parse, policy
from guardlearn.types import ArtifactStatus, Facts, RepositoryItem, Side, Source

NOW = datetime(2026, 10, 1, tzinfo=UTC)

any_text = st.text(st.characters() | st.characters(categories=["Cs"]), max_size=6) | st.sampled_from(
    ["", "a\0b", '"', "'", "\"'", "\\", "'; DROP TABLE items; --", "%", "Ψ", "😀", "\ud800", "a\nb", "{}"]
)
whole = st.integers(0, 2**63 - 1) | st.integers(0, 5)
moments = st.datetimes(timezones=st.just(UTC)) | st.datetimes()


def _words() -> st.SearchStrategy[Predicate]:
    def names(word: str, values: st.SearchStrategy[str] = any_text) -> st.SearchStrategy[Predicate]:
        return st.lists(values, min_size=1, max_size=3).map(lambda given: VOCABULARY[word](*given))

    flags = "everything refinement excluded reviewed fresh redacted broken".split()
    return st.one_of(
        st.sampled_from(flags).map(lambda word: VOCABULARY[word]()),
        *(names(word) for word in "action_pair workflow workflow_ref model adapter item".split()),
        names("group", any_text.filter(bool)),
        names("status", st.sampled_from([s.value for s in ArtifactStatus])),
        names("source", st.sampled_from([s.value for s in Source])),
        names("side", st.sampled_from([s.value for s in Side])),
        st.builds(words.guard, any_text, st.none() | any_text),
        st.builds(words.retries, at_least=whole, at_most=st.none() | whole),
        st.builds(words.created_after, moments),
        st.builds(words.created_before, moments),
        st.builds(words.recent, days=st.floats(0.001, 1e9) | st.integers(1, 400)),
        st.builds(words.after, whole),
        st.builds(words.up_to, whole),
    )


predicates = st.recursive(
    _words(),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda p: p[0] & p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] | p[1]),
        inner.map(lambda p: ~p),
        st.lists(inner, max_size=4).map(lambda p: and_(*p)),
        st.lists(inner, max_size=4).map(lambda p: or_(*p)),
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(predicates)
@settings(max_examples=400, deadline=None)
def test_text_form_round_trips(predicate: Predicate) -> None:
    text = repr(predicate)
    again = parse(text)
    assert again == predicate
    assert hash(again) == hash(predicate)
    assert repr(again) == text
    assert pickle.loads(pickle.dumps(predicate)) == predicate
    assert parse(f"  ({text}\n) ") == predicate


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_predicate_or_one_clear_error(text: str) -> None:
    try:
        assert isinstance(parse(text), Predicate)
    except PredicateError as error:
        assert "\n" not in str(error)
        assert error.column is not None and error.column >= 1


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("", 1, "everything()"),
        ("refinment()", 1, "did you mean refinement?"),
        ("refinement() & guardian('x')", 16, "unknown word 'guardian'"),
        ("refinement() and excluded()", 1, "write & instead of and"),
        ("refinement() & (excluded() or fresh())", 17, "write | instead of or"),
        ("not excluded()", 1, "write ~ instead of not"),
        ("refinement", 1, "write refinement()"),
        ("refinement() & (", 16, "never closed"),
        ("item('Ψ') & retries(3.5)", 13, "whole number"),
        ("source('bob')", 1, "allowed are generator, human, imported, unknown"),
        ("retries()", 1, "needs a bound"),
        ("status()", 1, "at least one of"),
        ("item()", 1, "at least one name"),
        ("group('')", 1, "names no group"),
        ("created_after('yesterday')", 1, "ISO 8601"),
        ("recent(days=-1)", 1, "above 0"),
        ("recent(days=1, hours=2)", 1, "unexpected keyword"),
        ("satisfies(print)", 1, "text cannot name"),
        ("__import__('os').system('true')", 1, "only words"),
        ("item(*['a'])", 6, "string or a number"),
        ("refinement() + excluded()", 1, "joined by &, | and ~"),
        ("~" * 20_000 + "refinement()", 1, "nested too deeply"),
    ],
)
def test_malformed_text_names_column_and_remedy(text: str, column: int, says: str) -> None:
    with pytest.raises(PredicateError) as caught:
        parse(text)
    assert caught.value.column == column
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_long_flat_predicates_are_read() -> None:
    text = " | ".join(f'item("i{n}")' for n in range(700))
    assert repr(parse(text)) == text


def test_precedence_and_shape() -> None:
    a, b, c = words.refinement(), words.excluded(), words.fresh()
    assert parse("refinement() | excluded() & fresh()") == a | (b & c)
    assert a & b & c == and_(a, b, c) == and_(a, and_(b, c))
    assert repr((a | b) & ~(b & c)) == "(refinement() | excluded()) & ~(excluded() & fresh())"
    assert and_() == words.everything()
    assert or_() == ~words.everything()


@pytest.mark.parametrize("use", [lambda p: p and p, lambda p: p or p, lambda p: not p, bool])
def test_truth_value_is_refused_with_advice(use) -> None:
    with pytest.raises(UsageError, match=r"write `&`, `\|` and `~`"):
        use(words.refinement())


def test_foreign_operands_and_arguments_are_refused() -> None:
    with pytest.raises(TypeError):
        words.refinement() & (lambda item: True)
    with pytest.raises(UsageError, match="no predicate"):
        and_("refinement()")
    with pytest.raises(UsageError, match="strings"):
        words.action_pair(3)
    with pytest.raises(UsageError, match="whole number"):
        words.after(True)


def _item(status: str = "accepted", rejected: int = 0, **fields) -> RepositoryItem:
    facts = Facts(status=ArtifactStatus(status), root_id="r", attempt=rejected + 1, rejected_ancestors=rejected)
    content = {"id": "i", "artifact": "a", "specification": "s", "status": ArtifactStatus(status), "created_at": NOW}
    return RepositoryItem(**{**content, "facts": facts, **fields})


@pytest.mark.parametrize(
    ("name", "selected"),
    [
        ("refinement", {"one", "three", "human", "old"}),
        ("all", {"first", "one", "three", "human", "old"}),
        ("generator", {"one", "three", "old"}),
        ("human", {"human"}),
        ("high_value", {"three"}),
        ("recent", {"one", "three", "human"}),
    ],
)
def test_policies_of_definition_22(name: str, selected: set[str]) -> None:
    items = {
        "first": _item(),
        "one": _item(rejected=1),
        "three": _item(rejected=3),
        "human": _item(rejected=1, source=Source.HUMAN),
        "old": _item(rejected=2, created_at=NOW - timedelta(days=31)),
        "rejected": _item("rejected", rejected=4),
        "pending": _item("pending", rejected=4),
        "superseded": _item("superseded", rejected=4),
    }
    chosen = policy(name).resolve(NOW + timedelta(days=1))
    assert {label for label, item in items.items() if chosen.matches(item)} == selected
    assert parse(repr(POLICIES[name]())) == POLICIES[name]()


def test_unknown_policy_lists_the_right_ones() -> None:
    with pytest.raises(UsageError, match=r"did you mean refinement.*high_value"):
        policy("refinements")


def test_recent_is_resolved_once_and_then_means_the_same_for_ever() -> None:
    resolved = (words.refinement() & ~words.recent(days=30)).resolve(NOW)
    assert repr(resolved) == 'refinement() & ~created_after("2026-09-01T00:00:00+00:00")'
    assert resolved.resolve(NOW + timedelta(days=9)) == resolved
    assert words.recent(days=1e12).resolve(NOW).matches(_item())


def test_rejection_names_the_first_failing_conjunct() -> None:
    chosen = words.refinement() & words.source("human") & words.satisfies(_has_text)
    assert chosen.rejection(_item()) == "accepted, but no rejected attempt before it"
    assert chosen.rejection(_item(rejected=1)) == "written by source generator"
    lacking = _item(rejected=1, source=Source.HUMAN, artifact="")
    assert chosen.rejection(lacking) == "not selected by satisfies(_has_text)"
    assert chosen.rejection(_item(rejected=1, source=Source.HUMAN)) is None


def _has_text(item: RepositoryItem) -> bool:
    return bool(item.artifact)


def test_facts_are_asked_for_where_they_are_missing() -> None:
    bare = RepositoryItem(id="i", artifact="a", specification="s", status=ArtifactStatus.ACCEPTED)
    assert words.status("accepted").matches(bare)
    with pytest.raises(UsageError, match="item read from"):
        words.refinement().matches(bare)


def test_guide_names_take_the_guides_arguments() -> None:
    dag = object()
    assert words.Φ_status(status=ArtifactStatus.ACCEPTED) == words.status("accepted") == words.Φ_all_successes()
    assert words.Φ_source(source="GENERATOR") == words.source("generator")  # erratum 10
    assert words.Φ_action_pair(action_pair_id="ap") == words.action_pair("ap")
    assert words.Φ_timestamp_after(cutoff=datetime(2026, 10, 1)) == words.created_after("2026-10-01")
    assert words.Φ_refinement(dag) == words.refinement()
    assert words.Φ_generator_only(dag) == policy("generator")
    assert words.Φ_human_only(dag) == policy("human")
    assert words.Φ_high_value(dag, min_retries=3) == policy("high_value")  # erratum 4
    both = and_(words.Φ_generator_only(dag), words.Φ_recent(dag, days=30))  # the guide's usage example
    assert both(_item(rejected=1, created_at=datetime.now(UTC)))
    assert not both(_item(rejected=1, source=Source.HUMAN, created_at=datetime.now(UTC)))
    assert or_(lambda item: item.id == "i", words.excluded())(_item())
