"""The promotion gate: a pure function from figures to a decision.

A candidate is promoted only where all of this holds, each a check of its own:

- its answers differ from the base's at all;
- superiority: on held-out groups it passes first time more often. One-sided sign-flip test over groups, H0: gain <= 0,
  at a level that falls with each look at the same held-out specifications (`statistics.level_of_look`), and an observed
  gain of at least `min_gain`. Both must also hold with every missing verdict counted against the candidate;
- non-inferiority: on every regression set (action pairs that were not trained) the lower end of the one-sided interval
  of the difference lies above -`margin`; on the general text set the upper end of the rise in loss lies below
  `loss_margin`. A set too small to say so refuses: "no harm was seen" is not "there is no harm" (ICH E9, 3.3.2);
- divergence, only where `kl_margin` asks for it: on kept prompts the upper end of KL(base || candidate) lies below it;
- guards that no feedback ever showed accept what the visible guard accepts about as often as before: a gap that rises
  by more than `gap_margin` is guard gaming.

Nothing here reads a repository, a file or a clock: the same figures give the same decision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from guardlearn import statistics
from guardlearn.errors import UsageError

__all__ = ["Check", "Decision", "GateConfig", "GateFigures", "Paired", "decide", "plan"]

_DIFFERENCE = "difference"
"""Name of the check that the candidate changes anything."""

Differences = dict[str, list[float]]
"""Candidate minus base for each pair, by group."""


class GateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The gate's settings."""

    alpha: float = 0.05
    """Chance of ever promoting a candidate that gains nothing on one held-out version, in (0, 0.5)."""
    power: float = 0.8
    """What `plan` plans with."""
    min_gain: float = 0.02
    """Least observed gain of the first-attempt pass rate, in [0, 1)."""
    margin: float = 0.05
    """Most that the pass rate of an action pair that was not trained may have lost, in (0, 1]."""
    loss_margin: float = 0.05
    """Most that the loss on the general text set may have risen, in nats per token, > 0."""
    kl_margin: float | None = None
    """Most that KL(base || candidate) on kept prompts may be, in nats per token, > 0; None: it is shown and refuses
    nothing. No number fits all tasks: a candidate that learned another style diverges because it learned it."""
    gap_margin: float = 0.02
    """Most that the share accepted by the visible guard and rejected by the hidden ones may have risen, in [0, 1]."""

    def __post_init__(self) -> None:
        allowed = {
            "alpha": (0 < self.alpha < 0.5, "above 0, below 0.5"),
            "power": (0 < self.power < 1, "above 0, below 1"),
            "min_gain": (0 <= self.min_gain < 1, "from 0, below 1"),
            "margin": (0 < self.margin <= 1, "above 0, up to 1"),
            "loss_margin": (self.loss_margin > 0, "above 0"),
            "kl_margin": (self.kl_margin is None or self.kl_margin > 0, "above 0, or left out"),
            "gap_margin": (0 <= self.gap_margin <= 1, "from 0 to 1"),
        }
        for name, (fits, words) in allowed.items():
            if not fits:
                raise UsageError(f"the gate's {name} is {getattr(self, name)}; allowed: {words}")


class Paired(msgspec.Struct, frozen=True, kw_only=True):
    """Paired first attempts of base and candidate."""

    judged: Differences
    """Pairs in which both got a verdict: -1, 0 or 1."""
    against: Differences
    """All pairs, every missing verdict counted against the candidate: its own as failures, the base's as passes."""


class GateFigures(msgspec.Struct, frozen=True, kw_only=True):
    """All that the decision rests on."""

    held_out: Paired
    look: int
    """The how manyth test on these held-out specifications this is, from 1."""
    changed: bool
    """Whether any answer of the candidate differs from the base's."""
    regressions: dict[str, Paired] = {}
    """By action pair that was not trained, both models freshly sampled on all of it."""
    general_loss: Differences = {}
    """Rise of the loss on each general text, in nats per token, by group of texts."""
    kl: Differences = {}
    """KL(base || candidate) on each kept prompt, in nats per token, by group of prompts."""
    guard_gap: Differences = {}
    """By group: change in "accepted by the visible guard, rejected by a hidden one" (1 or 0) of each pair."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of promotion."""

    name: str
    passed: bool
    found: str
    """What was measured, in words."""
    needed: str
    """What would have passed."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate says, and why."""

    promoted: bool
    checks: list[Check]
    level: float
    """Of this look's test."""
    p_value: float | None
    gain: float | None
    detectable: float | None
    """The smallest true gain that this held-out set finds with the configured power."""

    @property
    def reason(self) -> str:
        """One line: the first failed check, or that all held. That nothing changed comes first, as the cause."""
        failed = [check for check in self.checks if not check.passed]
        failed.sort(key=lambda check: check.name != _DIFFERENCE)
        if not failed:
            return f"promoted: {self.checks[0].found}, and {len(self.checks) - 1} more checks hold"
        return f"refused by {failed[0].name}: {failed[0].found}; needed: {failed[0].needed}"


def decide(figures: GateFigures, config: GateConfig = GateConfig()) -> Decision:
    """Return the decision that `figures` lead to.

    Raises:
        UsageError: `look` below 1.
    """
    if figures.look < 1:
        raise UsageError(f"look is {figures.look}; looks at a held-out set are counted from 1")
    level = statistics.level_of_look(config.alpha, figures.look)
    judged, against = _reading(figures.held_out.judged), _reading(figures.held_out.against)
    checks = [_superiority(judged, against, level, config, figures.look), _difference(figures.changed)]
    for name, paired in sorted(figures.regressions.items()):
        checks.append(_no_worse(name, paired, config))
    if figures.general_loss:
        checks.append(_loss(figures.general_loss, config))
    if config.kl_margin is not None:
        checks.append(_divergence(figures.kl, config.kl_margin, config.alpha))
    if figures.guard_gap:
        checks.append(_gap(figures.guard_gap, config))
    moments = statistics.moments_of(list(_filled(figures.held_out.judged)))
    return Decision(
        promoted=all(check.passed for check in checks),
        checks=checks,
        level=level,
        p_value=judged.p_value,
        gain=judged.gain,
        detectable=statistics.detectable_gain(judged.groups, moments, level, config.power, config.min_gain)
        if moments is not None
        else None,
    )


def plan(
    gain: float, moments: statistics.Moments, groups: int, look: int = 1, config: GateConfig = GateConfig()
) -> tuple[statistics.Plan | None, float | None]:
    """Return how many held-out groups `gain` takes at this look, and the gain that `groups` can show.

    Args:
        gain: true gain to be found, in (0, 1].
        moments: of a group's difference: `statistics.moments_of` earlier evidence, or `statistics.assumed_moments`.
        groups: held-out groups there are.
        look: as in `GateFigures`.
        config: the gate's settings.
    """
    level = statistics.level_of_look(config.alpha, look)
    needed = statistics.plan_groups(gain, moments, level, config.power, config.min_gain)
    return needed, statistics.detectable_gain(groups, moments, level, config.power, config.min_gain)


class _Reading(NamedTuple):
    """One way of counting the same pairs."""

    groups: int
    gain: float | None
    """None: no pairs."""
    p_value: float | None
    """One-sided; None: fewer than two groups."""


def _reading(differences: Differences) -> _Reading:
    means = [math.fsum(values) / len(values) for values in _filled(differences)]
    gain = math.fsum(means) / len(means) if means else None
    p_value = statistics.sign_flip(means, alternative="greater") if len(means) > 1 else None
    return _Reading(len(means), gain, p_value)


def _superiority(judged: _Reading, against: _Reading, level: float, config: GateConfig, look: int) -> Check:
    needed = f"p <= {level:.2g} (look {look}) and a gain of at least {100 * config.min_gain:.1f} points"
    shown, passed = [], True
    for words, (_, gain, p_value) in {"as judged": judged, "missing verdicts against it": against}.items():
        if gain is None or p_value is None:
            return Check(name="superiority", passed=False, found=f"{judged.groups} held-out groups", needed=needed)
        passed &= p_value <= level and gain >= config.min_gain - 1e-12
        shown.append(f"{_points(gain)}, p = {p_value:.2g} {words}")
    if judged == against:
        shown = [shown[0]]
    return Check(name="superiority", passed=passed, found=f"{judged.groups} groups: {'; '.join(shown)}", needed=needed)


def _difference(changed: bool) -> Check:
    found = "its answers differ from the base's" if changed else "every answer is the base's: it changes nothing"
    return Check(name=_DIFFERENCE, passed=changed, found=found, needed="at least one answer that differs")


def _no_worse(name: str, paired: Paired, config: GateConfig) -> Check:
    """Compare the worse of both readings with the margin."""
    confidence = 1 - 2 * config.alpha  # the lower end of a two-sided interval is a one-sided bound
    bounds = [statistics.clustered_mean(each, (-1.0, 1.0), confidence) for each in (paired.judged, paired.against)]
    lows = [bound.low for bound in bounds]
    needed = f"not more than {100 * config.margin:.1f} points lost, with {1 - config.alpha:.0%} confidence"
    if any(low is None for low in lows):
        return Check(name=f"no harm to {name}", passed=False, found="too few groups to say", needed=needed)
    low, rate = min(low for low in lows if low is not None), bounds[0].rate
    found = f"{_points(rate or 0.0)}, at worst {_points(low)}"
    return Check(name=f"no harm to {name}", passed=low > -config.margin, found=found, needed=needed)


def _loss(rises: Differences, config: GateConfig) -> Check:
    bound = statistics.clustered_mean(rises, (-math.inf, math.inf), 1 - 2 * config.alpha)
    needed = f"at most {config.loss_margin:.3f} nats a token more, with {1 - config.alpha:.0%} confidence"
    if bound.high is None or bound.rate is None:
        return Check(name="general loss", passed=False, found="too few texts to say", needed=needed)
    found = f"{bound.rate:+.3f} nats a token, at worst {bound.high:+.3f}"
    return Check(name="general loss", passed=bound.high < config.loss_margin, found=found, needed=needed)


def _divergence(kl: Differences, margin: float, alpha: float) -> Check:
    """Compare with the bound that was asked for; where nothing was measured, it does not hold."""
    bound = statistics.clustered_mean(kl, (-math.inf, math.inf), 1 - 2 * alpha)
    needed = f"at most {margin:.3f} nats a token from the base, with {1 - alpha:.0%} confidence"
    if bound.high is None or bound.rate is None:
        found = "too few prompts to say" if kl else "not measured"
        return Check(name="divergence", passed=False, found=found, needed=needed)
    found = f"{bound.rate:.3f} nats a token, at worst {bound.high:.3f}"
    return Check(name="divergence", passed=bound.high < margin, found=found, needed=needed)


def _gap(rises: Differences, config: GateConfig) -> Check:
    _, rise, p_value = _reading(rises)
    needed = f"a rise of at most {100 * config.gap_margin:.1f} points that chance explains"
    if rise is None:
        return Check(name="hidden guards", passed=False, found="no pairs to say", needed=needed)
    surely = p_value is not None and p_value <= config.alpha
    return Check(
        name="hidden guards",
        passed=rise <= config.gap_margin + 1e-12 and not surely,
        found=f"accepted by the visible guard alone: {_points(rise)}{', more than chance' if surely else ''}",
        needed=needed,
    )


def _filled(groups: Mapping[str, Sequence[float]]) -> Iterator[Sequence[float]]:
    return (values for _, values in sorted(groups.items()) if len(values))


def _points(share: float) -> str:
    return f"{100 * share:+.1f} points"
