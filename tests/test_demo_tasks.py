"""demo/families.py and the committed data: the specifications are right, tell mistakes apart, and their sides hold."""

from __future__ import annotations

import collections

import msgspec
import pytest

from guardlearn.demo import house_style
from guardlearn.demo.families import candidates, specifications_of
from guardlearn.demo.tasks import selection_record, specifications
from guardlearn.errors import UsageError
from guardlearn.types import GuardContext, Side

SIDES = (Side.TRAIN, Side.VALIDATION, Side.HELD_OUT)


def by_family(side, swap=False):
    groups = collections.defaultdict(list)
    for spec in specifications(side, swap):
        groups[spec.group].append(spec)
    return groups


def test_sizes_of_the_sides():
    train, validation, held_out = (by_family(side) for side in SIDES)
    assert len(train) >= 40 and len(held_out) >= 40 and len(validation) >= 3
    assert sum(map(len, train.values())) >= 100 and sum(map(len, held_out.values())) >= 100
    assert all(len(specs) <= 4 for side in (train, validation, held_out) for specs in side.values())


def test_no_family_id_or_text_is_on_two_sides():
    for field in ("group", "id", "specification"):
        seen = [{getattr(spec, field) for spec in specifications(side)} for side in SIDES]
        assert sum(map(len, seen)) == len(set.union(*seen)), field


def test_every_side_is_broad():
    category = {family.name: family.category for family in candidates()}
    for side in (Side.TRAIN, Side.HELD_OUT):
        counts = collections.Counter(category[name] for name in by_family(side))
        assert set(counts) == {"arithmetic", "comparison", "text", "lists"}
        assert min(counts.values()) >= 6


def test_swapping_exchanges_train_and_held_out_only():
    assert specifications(Side.TRAIN, swap=True) == specifications(Side.HELD_OUT)
    assert specifications("held_out", swap=True) == specifications("train")
    assert specifications(Side.VALIDATION, swap=True) == specifications(Side.VALIDATION)


def test_an_unknown_side_is_refused():
    for side in ("tset", Side.SET_ASIDE):
        with pytest.raises(UsageError, match="allowed: train, validation, held_out"):
            specifications(side)


def test_the_committed_tasks_are_what_the_families_make():
    made = {spec.id: spec for family in candidates() for spec in specifications_of(family)}
    for side in SIDES:
        for spec in specifications(side):
            assert msgspec.to_builtins(spec) == msgspec.to_builtins(made[spec.id])


def test_the_record_explains_the_choice():
    record, families = selection_record()
    assert [family["family"] for family in families] == [family.name for family in candidates()]
    for family in families:
        share = family["passed"] / family["sampled"]
        assert not family["side"] or share >= record["kept_from"], family
    sizes = collections.Counter(family["side"] for family in families if family["side"])
    assert sizes == record["sides"]
    assert record["kept"] == sum(f["passed"] >= record["kept_from"] * f["sampled"] for f in families)


@pytest.mark.slow
@pytest.mark.parametrize("family", candidates(), ids=lambda family: family.name)
def test_cases_tell_a_family_s_specifications_apart(family):
    """An answer with a sibling's parameter fails; boolean functions see both results."""
    names = [argument.split(":")[0] for argument in family.arguments.split(", ")]
    specs = specifications_of(family)
    for spec in specs:
        cases = spec.metadata["cases"]
        assert 4 <= len(cases) <= 8
        assert family.returns != "bool" or {expected for _, expected in cases} == {True, False}
        for other in specs:
            expression = other.specification.split("`return ")[1].removesuffix("`")
            right = [_evaluate(expression, names, arguments) == expected for arguments, expected in cases]
            assert all(right) == (other is spec), (spec.id, other.id)


def _evaluate(expression, names, arguments):
    try:
        return eval(expression, dict(zip(names, arguments, strict=True)))
    except IndexError as error:
        return error


@pytest.mark.slow
def test_the_guard_accepts_the_stated_expression_everywhere():
    """The specification's own expression, in house style, passes; with an honest mistake it fails."""
    for spec in [spec for side in SIDES for spec in specifications(side)][::9]:
        expression = spec.specification.split("`return ")[1].removesuffix("`")
        answer = f'def {spec.metadata["signature"]}:\n    """Return it."""\n    return {expression}\n'
        context = GuardContext(specification=spec)
        assert house_style(answer, context).passed, spec.id
        wrong = answer.replace(f"return {expression}", f"return [{expression}, 0]")
        assert house_style(wrong, context).cause == "cases", spec.id
