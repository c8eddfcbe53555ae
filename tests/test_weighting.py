"""What a round trains on: laws of the choice and of the weights, and what each setting does."""

import itertools
import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.errors import UsageError
from guardlearn.traces import content_digest
from guardlearn.types import ArtifactStatus, FeedbackEntry, RepositoryItem, Side, Source, TrainingTrace
from guardlearn.weighting import Weighting, weigh

START = datetime(2026, 1, 1, tzinfo=UTC)
EXAMPLES = settings(max_examples=60, deadline=None)
SIDES = [Side.TRAIN, Side.TRAIN, Side.TRAIN, Side.VALIDATION]


def trace(number, *, spec="s", days=0.0, source=Source.GENERATOR, side=Side.TRAIN, artifact=None, name=None, retries=0):
    item = RepositoryItem(
        id=name or f"i{number}",
        artifact=f"a{number}" if artifact is None else artifact,
        specification=spec,
        status=ArtifactStatus.ACCEPTED,
        source=source,
        created_at=START + timedelta(days=days),
    )
    history = (FeedbackEntry(artifact="no", feedback="not yet"),) * retries
    return TrainingTrace(item=item, history=history, group="g", side=side)


one = st.builds(
    dict,
    spec=st.sampled_from("abc"),
    days=st.sampled_from([0.0, 0.5, 7.0, 7.0, 400.0]),
    source=st.sampled_from(list(Source)),
    side=st.sampled_from(SIDES),
    artifact=st.sampled_from(["x", "y", None]),
    retries=st.integers(0, 5),
)
traces = st.lists(one, max_size=25).map(lambda rows: [trace(number, **row) for number, row in enumerate(rows)])
weightings = st.builds(
    Weighting,
    per_spec=st.integers(0, 4),
    half_life_days=st.sampled_from([0.0, 0.01, 7.0, 365.0]),
    difficulty=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    balance_sources=st.booleans(),
    replay=st.sampled_from([0.0, 0.3, 1.0, 2.5]),
)


@st.composite
def rounds(draw):
    """Traces with the ids of those that are new, or None."""
    found = draw(traces)
    new = draw(st.none() | st.sets(st.sampled_from([t.item.id for t in found] or ["none"])))
    return found, new


def ids(found, side=None):
    return [t.item.id for t in found if side is None or t.side is side]


@EXAMPLES
@given(rounds(), weightings, st.integers(0, 3))
def test_order_and_validation_stay_and_every_trace_is_kept_or_counted(given_, weighting, seed):
    found, new = given_
    weighed = weigh(found, weighting, new_ids=new, seed=seed)
    kept = set(ids(weighed.traces))
    assert weighed.traces == [t for t in found if t.item.id in kept]
    assert ids(weighed.traces, Side.VALIDATION) == ids(found, Side.VALIDATION)
    counts = weighed.counts
    left = ids(weighed.traces, Side.TRAIN)
    assert counts["traces"] == len(left)
    assert counts["dropped_by_cap"] + counts["dropped_by_replay"] == len(ids(found, Side.TRAIN)) - len(left)
    assert msgspec.json.decode(msgspec.json.encode(counts)) == counts


@EXAMPLES
@given(rounds(), weightings, st.integers(0, 3))
def test_weights_have_mean_1_and_say_what_the_counts_say(given_, weighting, seed):
    found, new = given_
    weighed = weigh(found, weighting, new_ids=new, seed=seed)
    train = [t for t in weighed.traces if t.side is Side.TRAIN]
    weights = {t.item.id: weighed.weights.get(t.item.id, 1.0) for t in train}
    assert weighed.weights in ({}, weights)
    assert not weighed.weights or len(set(weights.values())) > 1
    assert all(0 < weight < math.inf for weight in weights.values())
    assert sum(weights.values()) == pytest.approx(len(train))
    squares = sum(weight**2 for weight in weights.values())
    assert weighed.counts["effective_sample_size"] == pytest.approx(len(train) ** 2 / squares if train else 0)
    shares = Counter()
    for t in train:
        shares[t.item.source.value] += weights[t.item.id] / len(train)
    assert weighed.counts["sources"] == pytest.approx(dict(shares))


@EXAMPLES
@given(rounds(), weightings, st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_traces_decides_nothing(given_, weighting, seed, chance):
    found, new = given_
    shuffled = found.copy()
    chance.shuffle(shuffled)
    one_way, other = (weigh(each, weighting, new_ids=new, seed=seed) for each in (found, shuffled))
    assert set(ids(one_way.traces)) == set(ids(other.traces))
    assert one_way.weights == other.weights
    assert one_way.counts == other.counts


@EXAMPLES
@given(traces, st.integers(1, 4))
def test_the_cap_holds_takes_no_more_than_it_must_and_keeps_the_newest(found, cap):
    weighed = weigh(found, Weighting(per_spec=cap))
    kept = set(ids(weighed.traces))
    for spec in "abc":
        same = [t for t in found if t.side is Side.TRAIN and t.item.specification == spec]
        left = [t for t in same if t.item.id in kept]
        assert len(left) == min(cap, len(same))
        gone = [t.item.created_at for t in same if t.item.id not in kept]
        assert not gone or max(gone) <= min(t.item.created_at for t in left)


@EXAMPLES
@given(rounds(), weightings, st.integers(0, 3))
def test_replay_is_bounded_by_what_is_new_and_drops_nothing_new(given_, weighting, seed):
    found, new = given_
    if new is None:
        assert weigh(found, weighting, seed=seed).counts["dropped_by_replay"] == 0
        return
    capped = weigh(found, msgspec.structs.replace(weighting, replay=1e9), new_ids=new, seed=seed)
    train = ids(capped.traces, Side.TRAIN)
    fresh = [name for name in train if name in new]
    weighed = weigh(found, weighting, new_ids=new, seed=seed)
    left = ids(weighed.traces, Side.TRAIN)
    assert [name for name in left if name in new] == fresh
    most = math.floor(weighting.replay * len(fresh) + 1e-9)
    assert len(left) - len(fresh) == (min(most, len(train) - len(fresh)) if fresh else 0)
    assert (weighed.counts["new"], weighed.counts["replayed"]) == (len(fresh), len(left) - len(fresh))


@EXAMPLES
@given(traces, st.sampled_from([0.0, 7.0]), st.sampled_from([0.0, 1.0]))
def test_balanced_sources_have_equal_weight_whatever_their_ages_and_retries(found, half_life, difficulty):
    weighting = Weighting(balance_sources=True, half_life_days=half_life, difficulty=difficulty)
    shares = weigh(found, weighting).counts["sources"]
    assert list(shares.values()) == pytest.approx([1 / (len(shares) or 1)] * len(shares))


def test_as_it_stands_nothing_is_left_out_or_weighted():
    found = [trace(n, spec="s", days=n, source=list(Source)[n % 4]) for n in range(8)]
    weighed = weigh(found)
    assert (weighed.traces, weighed.weights) == (found, {})
    assert weighed.counts == {
        "traces": 8,
        "dropped_by_cap": 0,
        "dropped_by_replay": 0,
        "effective_sample_size": 8.0,
        "sources": {"generator": 0.25, "human": 0.25, "imported": 0.25, "unknown": 0.25},
    }


def test_half_as_much_a_half_life_and_never_nothing():
    found = [trace(0, days=1000), trace(1, days=990), trace(2, days=980), trace(3, days=0)]
    weights = weigh(found, Weighting(half_life_days=10)).weights
    assert weights["i1"] / weights["i0"] == pytest.approx(1 / 2)
    assert weights["i2"] / weights["i0"] == pytest.approx(1 / 4)
    assert weights["i3"] / weights["i0"] == pytest.approx(2**-20)
    later = [msgspec.structs.replace(t, item=msgspec.structs.replace(t.item, created_at=t.item.created_at
             + timedelta(days=5000))) for t in found]  # fmt: skip
    assert weigh(later, Weighting(half_life_days=10)).weights == weights  # no clock: ages are relative


@EXAMPLES
@given(traces, st.sampled_from([0.5, 1.0, 4.0]), st.sampled_from([0.0, 7.0]))
def test_difficulty_multiplies_by_a_power_of_the_attempts_it_took(found, difficulty, half_life):
    plain = weigh(found, Weighting(half_life_days=half_life))
    harder = weigh(found, Weighting(half_life_days=half_life, difficulty=difficulty))
    assert harder.traces == plain.traces
    train = [t for t in found if t.side is Side.TRAIN]
    for one_, other in itertools.pairwise(train):
        names = one_.item.id, other.item.id
        before, after = ([each.weights.get(name, 1.0) for name in names] for each in (plain, harder))
        took = (1 + one_.retries) / (1 + other.retries)
        assert after[0] / after[1] == pytest.approx(before[0] / before[1] * took**difficulty)


def test_a_chain_of_three_attempts_counts_three_times_and_off_is_off():
    found = [trace(0, retries=0), trace(1, retries=2)]
    assert weigh(found, Weighting(difficulty=1.0)).weights == pytest.approx({"i0": 0.5, "i1": 1.5})
    assert weigh(found, Weighting(difficulty=0.0)).weights == {}


def test_a_source_of_few_counts_as_much_as_one_of_many():
    found = [trace(n, source=Source.HUMAN if n == 0 else Source.GENERATOR) for n in range(5)]
    weighed = weigh(found, Weighting(balance_sources=True))
    assert weighed.weights == pytest.approx({"i0": 2.5} | {f"i{n}": 0.625 for n in range(1, 5)})
    assert weighed.counts["effective_sample_size"] == pytest.approx(25 / (2.5**2 + 4 * 0.625**2))


def test_under_the_cap_what_is_not_learned_yet_comes_before_what_is_newer():
    found = [trace(0, days=1), trace(1, days=2), trace(2, days=3)]
    weighed = weigh(found, Weighting(per_spec=2, replay=1.0), new_ids={"i0"})
    assert ids(weighed.traces) == ["i0", "i2"]


def test_what_is_replayed_is_drawn_by_seed_and_content_and_not_by_id():
    found = [trace(n, spec=f"s{n}") for n in range(20)]
    renamed = [trace(n, spec=f"s{n}", name=f"other{-n}") for n in range(20)]
    drawn = []
    for seed in range(4):
        first = weigh(found, new_ids={"i0", "i1", "i2"}, seed=seed)
        second = weigh(renamed, new_ids={"other0", "other-1", "other-2"}, seed=seed)
        contents = [content_digest(t.item) for t in first.traces]
        assert contents == [content_digest(t.item) for t in second.traces]
        assert first == weigh(found, new_ids={"i0", "i1", "i2"}, seed=seed)
        assert len(contents) == 6
        drawn.append(tuple(contents))
    assert len(set(drawn)) == 4


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("per_spec", -1),
        ("per_spec", 1.5),
        ("half_life_days", -0.1),
        ("half_life_days", math.nan),
        ("half_life_days", math.inf),
        ("difficulty", -0.5),
        ("difficulty", 4.5),
        ("difficulty", math.nan),
        ("replay", -1.0),
        ("replay", math.inf),
    ],
)
def test_what_is_no_setting_is_refused_in_one_line(setting, value):
    with pytest.raises(UsageError, match=f"{setting} of weighting is {value}; allowed") as refused:
        Weighting(**{setting: value})
    assert "\n" not in str(refused.value)


def test_a_table_of_settings_is_read_strictly():
    assert msgspec.convert({"per_spec": 3, "half_life_days": 30}, Weighting) == Weighting(per_spec=3, half_life_days=30)
    for table in ({"per_specs": 3}, {"per_spec": "3"}, {"balance_sources": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(table, Weighting)
