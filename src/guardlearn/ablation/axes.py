"""What an ablation varies: an axis, and its arms, each a way of training that differs from the others in one setting.

An arm is a resolved `TrainingConfig`, a selection of traces, and the share of them it gets. One arm is the reference:
the one that is set already, so that every difference says what a change would bring.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import msgspec

from guardlearn.errors import UsageError
from guardlearn.jobs import TrainingConfig
from guardlearn.predicates import POLICIES
from guardlearn.selections import to_predicate
from guardlearn.settings import closest
from guardlearn.types import View

__all__ = ["AXES", "Arm", "Axis", "arms_of"]

_VIEWS = {
    "first_attempt": (View.FIRST_ATTEMPT.value,),
    "repair": (View.REPAIR.value,),
    "both": (View.FIRST_ATTEMPT.value, View.REPAIR.value),
}
_WAYS = ("feedback", "artifact")
_METHODS = ("sft", "kto", "dpo", "sft+kto", "sft+dpo")
_USUAL_METHODS = ("sft", "sft+kto", "sft+dpo")
_SHARES = ("25 %", "50 %", "100 %")
_SHARE = re.compile(r"\s*(\d{1,3}(?:\.\d+)?)\s*%?\s*")


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """One way of training."""

    name: str
    training: TrainingConfig
    select: str
    """Φ: a policy's name or a predicate's text."""
    share: float = 1.0
    """Of the traces that Φ selects, by group; in (0, 1]."""


class Axis(msgspec.Struct, frozen=True, kw_only=True):
    """A setting that arms differ in."""

    name: str
    usual: Callable[[Arm], Sequence[str]]
    """Arms where none are named, given what is set."""
    arm: Callable[[str, Arm], Arm]
    """The arm of a name, made of what is set."""
    set_now: Callable[[Arm], str]
    """Name of the arm that is set."""
    optional: bool = False
    """Arms that nobody named are left out where they select nothing."""
    by_attempts: bool = False
    """Arms differ in retries, so they are told apart by the attempts that chains need."""


def arms_of(
    over: str,
    training: TrainingConfig,
    select: str,
    names: Sequence[str] = (),
    reference: str | None = None,
) -> tuple[list[Arm], str]:
    """Return the arms of an axis and the name of the reference.

    Args:
        over: a key of `AXES`.
        training: what all arms share.
        select: Φ of the arms that do not choose another.
        names: the arms; none: the axis's usual ones.
        reference: the arm that the others are held against; None: the one that `training` and `select` are, else the
            first.

    Raises:
        UsageError: no such axis or arm, an arm named twice, fewer than two arms, or a reference that is none of them.
    """
    if over not in AXES:
        raise UsageError(f"unknown axis {over!r}{closest(over, AXES)}; choose {' or '.join(AXES)}")
    axis = AXES[over]
    now = Arm(name="", training=training, select=select)
    arms = [axis.arm(name, now) for name in (names or axis.usual(now))]
    given = [arm.name for arm in arms]
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"arm {twice!r} of axis {over} is named {given.count(twice)} times; name each once")
    if len(arms) < 2:
        raise UsageError(f"{len(arms)} arm of axis {over} compares nothing; name at least two")
    if reference is None:
        usual = axis.set_now(now)
        return arms, usual if usual in given else given[0]
    asked = axis.arm(reference, now).name
    if asked not in given:
        raise UsageError(f"reference {reference!r} is none of the arms {', '.join(given)}; name one of them")
    return arms, asked


def _views(name: str, now: Arm) -> Arm:
    views = _VIEWS[_known("views", name, _VIEWS)]
    return _trained(name, now, dataclasses.replace(now.training, views=views))


def _views_now(now: Arm) -> str:
    return next((name for name, views in _VIEWS.items() if set(views) == set(now.training.views)), "")


def _policy(name: str, now: Arm) -> Arm:
    to_predicate(name)  # a typo never trains on another policy (erratum 21)
    return msgspec.structs.replace(now, name=name, select=name)


def _policies(now: Arm) -> list[str]:
    return list(dict.fromkeys([*POLICIES, now.select]))


def _way(name: str, now: Arm) -> Arm:
    _known("retry_prompt", name, _WAYS)
    return _trained(name, now, dataclasses.replace(now.training, retry=name))  # type: ignore[arg-type]  # known above


def _method(name: str, now: Arm) -> Arm:
    _known("method", name, _METHODS)
    return _trained(name, now, dataclasses.replace(now.training, method=name))


def _methods(now: Arm) -> list[str]:
    return list(dict.fromkeys([*_USUAL_METHODS, now.training.method]))


def _share(name: str, now: Arm) -> Arm:
    found = _SHARE.fullmatch(name)
    share = float(found[1]) / 100 if found else 0.0
    if not 0 < share <= 1:
        raise UsageError(f"arm {name!r} of axis budget is no share of the traces; write a percentage, as in 25 %")
    return msgspec.structs.replace(now, name=f"{100 * share:g} %", share=share)


def _known(axis: str, name: str, allowed: Sequence[str] | dict[str, tuple[str, ...]]) -> str:
    if name not in allowed:
        raise UsageError(f"unknown arm {name!r} of axis {axis}{closest(name, allowed)}; choose {' or '.join(allowed)}")
    return name


def _trained(name: str, now: Arm, training: TrainingConfig) -> Arm:
    return msgspec.structs.replace(now, name=name, training=training)


AXES = {
    axis.name: axis
    for axis in (
        Axis(name="views", usual=lambda now: tuple(_VIEWS), arm=_views, set_now=_views_now),
        Axis(name="policy", usual=_policies, arm=_policy, set_now=lambda now: now.select, optional=True),
        Axis(
            name="retry_prompt",
            usual=lambda now: _WAYS,
            arm=_way,
            set_now=lambda now: now.training.retry,
            by_attempts=True,
        ),
        Axis(name="budget", usual=lambda now: _SHARES, arm=_share, set_now=lambda now: "100 %"),
        Axis(name="method", usual=_methods, arm=_method, set_now=lambda now: now.training.method),
    )
}
"""Name → axis: views of a trace, policies, ways of asking a retry, shares of the traces, methods."""
