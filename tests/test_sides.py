"""Sides: assigned once, never split what belongs together, and say when no honest split is possible."""

import contextlib
import random
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardlearn.dag.near_duplicates import NEAR, shingles
from guardlearn.dag.sides import SHARES, place
from guardlearn.errors import DataError
from guardlearn.traces import extract_traces
from guardlearn.types import ArtifactStatus, RepositoryItem, Side, Specification

FEW = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TEMPLATE = "You are a careful programmer. Answer with code only, and keep to the house style. Task: "


def text_of(seed: int, words: int = 40) -> str:
    """A specification that shares next to nothing with that of another seed."""
    return " ".join(random.Random(seed).choices([f"w{number}" for number in range(5000)], k=words))


def variant(text: str, word: int) -> str:
    """The same with one word replaced."""
    words = text.split()
    words[word % len(words)] = f"other{word}"
    return " ".join(words)


def spec(text: str, group: str | None = None) -> Specification:
    return Specification(id=text[:20], specification=text, group=group)


@pytest.fixture
def new_dag(databases):
    """Opens as many empty repositories as a hypothesis test asks for, on each database."""
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(databases.repository())


specs_strategy = st.lists(
    st.builds(
        lambda seed, word, group: spec(text_of(seed) if word is None else variant(text_of(seed), word), group),
        st.integers(0, 30),
        st.none() | st.integers(0, 39),
        st.none() | st.sampled_from(["a", "b", "c", "d"]),
    ),
    max_size=25,
)


@pytest.mark.slow
@FEW
@given(batches=st.lists(specs_strategy, max_size=5))
def test_no_side_ever_changes_and_one_group_has_one_side(new_dag, batches):
    dag = new_dag()
    known: dict[str, Side] = {}
    groups: dict[str, str] = {}
    for batch in batches:
        dag.register(batch)
        for each in batch:
            groups.setdefault(each.specification, each.group)
        now = {text: dag.side_of(text) for text in groups}
        assert all(now[text] is side for text, side in known.items())
        known = now
    for group in set(groups.values()) - {None}:
        assert len({known[text] for text, given_group in groups.items() if given_group == group}) == 1
    assert sum(dag.sides().values()) == len(known)


@pytest.mark.slow
@FEW
@given(
    seeds=st.lists(st.integers(0, 10**6), min_size=1, max_size=12, unique=True),
    words=st.lists(st.integers(0, 39), min_size=1, max_size=3),
    apart=st.booleans(),
)
def test_near_duplicates_share_a_side_in_one_batch_or_in_many(new_dag, seeds, words, apart):
    dag = new_dag()
    batch = [spec(text) for seed in seeds for text in (text_of(seed), *(variant(text_of(seed), w) for w in words))]
    for part in [[each] for each in batch] if apart else [batch]:
        dag.register(part)
    for seed in seeds:
        base = text_of(seed)
        for word in words:
            assert jaccard(base, variant(base, word)) > NEAR
            assert dag.side_of(variant(base, word)) is dag.side_of(base)
    assert dag.sides()[Side.SET_ASIDE] == 0


def jaccard(one: str, other: str) -> float:
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


@pytest.mark.slow
@FEW
@given(seeds=st.lists(st.integers(0, 10**6), min_size=10, max_size=15, unique=True), grouped=st.booleans())
def test_ten_groups_fill_every_side(new_dag, seeds, grouped):
    dag = new_dag()
    dag.register([spec(text_of(seed), f"g{seed}" if grouped else None) for seed in seeds])
    assert all(dag.sides()[side] for side, _ in SHARES)


def test_a_specification_near_two_sides_is_set_aside_and_so_is_what_is_near_it_alone(new_dag):
    dag = new_dag()
    shared, a, b = text_of(1, 60), text_of(2, 30), text_of(3, 30)
    dag.assign_side("a", Side.TRAIN)
    dag.assign_side("b", Side.HELD_OUT)
    dag.register([spec(f"{shared} {a}", "a"), spec(f"{shared} {b}", "b"), spec(shared)])
    assert dag.side_of(shared) is Side.SET_ASIDE
    near_shared_alone = " ".join(shared.split()[:40])
    dag.register([spec(near_shared_alone)])
    assert dag.side_of(near_shared_alone) is Side.SET_ASIDE


@pytest.mark.parametrize("together", [True, False])
def test_a_specification_without_group_joins_its_neighbour_that_has_one(new_dag, together):
    dag = new_dag()
    text = text_of(1)
    dag.assign_side("family", Side.HELD_OUT)
    loose, grouped = [spec(variant(text, 3))], [spec(text, "family")]
    for batch in [loose + grouped] if together else [grouped, loose]:
        dag.register(batch)
    assert dag.side_of(variant(text, 3)) is Side.HELD_OUT


@pytest.mark.slow
def test_a_shared_template_does_not_make_tasks_alike(new_dag):
    dag = new_dag()
    for number in range(120):  # one by one, as a recorder does
        dag.register([spec(TEMPLATE + text_of(number, 8))])
    counts = dag.sides()
    assert counts[Side.SET_ASIDE] == 0
    assert counts[Side.TRAIN] < 115 and counts[Side.VALIDATION] and counts[Side.HELD_OUT]


def test_near_duplicates_are_found_after_common_shingles_were_looked_for_again(new_dag):
    dag = new_dag()
    early = [spec(TEMPLATE + text_of(number)) for number in range(3)]
    dag.register(early)
    dag.register([spec(TEMPLATE + text_of(number)) for number in range(3, 60)])
    for each in early:
        near = each.specification[: len(TEMPLATE)] + variant(each.specification[len(TEMPLATE) :], 20)
        dag.register([spec(near)])
        assert dag.side_of(near) is dag.side_of(each.specification)


def test_given_groups_need_no_comparing_of_texts(tmp_path):
    program = (
        "import sys\nfrom guardlearn.dag import ArtifactDAG\nfrom guardlearn.types import Specification\n"
        "with ArtifactDAG.create(sys.argv[1]) as dag:\n"
        "    dag.register([Specification(id=str(n), specification=f'task {n}', group=f'g{n % 50}')"
        " for n in range(5000)])\n"
        "    assert sum(dag.sides().values()) == 5000\n"
        "assert 'numpy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "runs.db")], check=True, timeout=60)


def test_hash_space_is_shared_as_declared_and_salt_decides():
    counts = Counter(place(f"key {number}", "salt") for number in range(20_000))
    for side, share in SHARES:
        assert abs(counts[side] / 20_000 - share) < 0.01
    assert any(place(f"key {number}", "salt") is not place(f"key {number}", "other") for number in range(100))


def accepted(number: int, text: str, group: str | None = None) -> RepositoryItem:
    return RepositoryItem(
        id=f"i{number}", artifact=f"a{number}", specification=text, status=ArtifactStatus.ACCEPTED, group=group
    )


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([accepted(n, f"Write function number {n} that adds two numbers") for n in range(20)], "20 of 20"),
        ([accepted(n, text_of(n), "one" if n < 11 else f"g{n}") for n in range(20)], "11 of 20 .* group 'one'"),
        ([accepted(n, text_of(n), f"g{n % 2}") for n in range(30)], "no specification is on the side"),
    ],
    ids=["near-duplicates", "one group", "empty side"],
)
def test_sides_that_cannot_support_a_measurement_ask_for_group(new_dag, items, said):
    dag = new_dag()
    dag.append_many(items)
    with pytest.raises(DataError, match=rf"{said}.*give each specification a `group`"):
        extract_traces(dag, "all")


def test_sides_chosen_by_hand_may_be_empty(new_dag):
    dag = new_dag()
    for number in range(12):
        dag.assign_side(f"g{number}", Side.TRAIN)
    dag.append_many([accepted(n, text_of(n), f"g{n}") for n in range(12)])
    assert len(extract_traces(dag, "all").traces) == 12


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_every_text_has_shingles_that_spacing_does_not_change(text):
    assert shingles(text)
    assert shingles("  ".join(text.split(" "))) == shingles(text)
