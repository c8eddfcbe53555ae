"""Reading ℛ at its limits: large texts, long chains and many attempts, in order and in bounded memory."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn import ArtifactDAG, ArtifactStatus, RepositoryItem, refinement
from guardlearn.dag.rows import READ_BODY, READ_FACTS, READ_ITEM, decode_item, encode_item
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.predicates import parse
from guardlearn.types import FeedbackEntry

REJECTED, ACCEPTED = ArtifactStatus.REJECTED, ArtifactStatus.ACCEPTED
LARGE = 16_384
START = datetime(2026, 1, 1, tzinfo=UTC)


def chain(name, sizes, start=0):
    """Attempts of one chain with artifacts of so many bytes, all but the last rejected."""
    return [
        RepositoryItem(
            id=f"{name}{n}",
            parent_id=f"{name}{n - 1}" if n else None,
            artifact=f"{name}{n} ".ljust(size, "x"),
            feedback=f"wrong {name}{n}",
            specification="one",
            group="g",
            status=ACCEPTED if n == len(sizes) - 1 else REJECTED,
            created_at=START + timedelta(seconds=start + n),
        )
        for n, size in enumerate(sizes)
    ]


def history_of(item, items):
    found, before = [], {each.id: each for each in items}
    while item.parent_id:
        item = before[item.parent_id]
        if item.status is REJECTED:
            found.append(FeedbackEntry(artifact=item.artifact, feedback=item.feedback, item_id=item.id))
    return tuple(reversed(found))


def test_large_and_small_texts_stand_side_by_side(installed):
    near = [LARGE - 30, LARGE - 8, LARGE, LARGE + 1, 40, 5 * LARGE, 40]
    items = [*chain("a", near), *chain("b", [9, 3 * LARGE, 9], start=3), *chain("c", [2 * LARGE], start=5)]
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many(items)
        for order in ("created_at", "seq"):
            for descending in (False, True):
                found = list(dag.extract(order_by=order, descending=descending))
                assert {item.id: item.artifact for item in found} == {item.id: item.artifact for item in items}
                assert all(item.history == history_of(item, items) for item in found)
        assert dag.get_item("a6").history == history_of(items[6], items)
        assert [item.artifact for item in dag.provenance("a6")] == [item.artifact for item in items[:7]]


def test_a_chain_longer_than_what_is_held_at_once(installed):
    items = chain("long", [30] * 700)
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many(items)
        (last,) = dag.extract(refinement())
        assert last.history == history_of(items[-1], items)
        lengths = [len(item.history) for item in dag.extract(order_by="seq")]
    assert lengths == list(range(700))


def test_ids_are_those_of_extract(installed):
    items = [item for n in range(300) for item in chain(f"c{n:03}-", [20] * (1 + n % 3), start=n % 7)]
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many(items)
        for text in ("refinement()", "~refinement()", "everything()", "item('c001-1', 'nowhere')"):
            for order in ("created_at", "seq"):
                predicate = parse(text)
                expected = [item.id for item in dag.extract(predicate, order_by=order)]
                assert list(dag.ids(predicate, order_by=order)) == expected
        assert list(dag.ids()) == [item.id for item in dag.extract()]
        by_hand = list(dag.ids(lambda item: len(item.history) == 2))
        assert by_hand == [item.id for item in dag.extract() if len(item.history) == 2]
        assert len(by_hand) == 100
        with pytest.raises(UsageError, match="order_by='size' is unknown"):
            dag.ids(order_by="size")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(metadata=st.dictionaries(st.text(st.characters(exclude_categories=()), max_size=6), JSON, max_size=4))
@settings(max_examples=200, deadline=None)
def test_metadata_comes_back_as_it_was(metadata):
    """Infinities and lone surrogates, which a strict JSON parser refuses, and numbers of any length."""
    item = RepositoryItem(id="a", artifact="", specification="", status=ACCEPTED, metadata=metadata)
    stored = encode_item(item)
    row = {**stored.row, "seq": 1, "specification": 1, "constraints": 2}
    facts = {"status": "accepted", "parent_seq": 0, "root_seq": 1, "attempt": 1, "rejected_ancestors": 0}
    facts |= dict.fromkeys(("excluded", "reviewed", "stale", "redacted", "broken"), 0)
    values = [*(row[name] for name in READ_ITEM), *(facts[name] for name in READ_FACTS)]
    read = decode_item(values, [{**stored.body, "seq": 1}[name] for name in READ_BODY], ("", ""), "train", "a", ())
    assert read.metadata == metadata
    assert json.dumps(read.metadata, sort_keys=True) == json.dumps(metadata, sort_keys=True)  # 1 is not 1.0


def test_a_row_that_lost_its_facts_is_one_line(installed):
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many(chain("a", [20, 20]))
    with installed.without_triggers() as connection:
        connection.exec_driver_sql("DELETE FROM facts WHERE seq = 1")
    with ArtifactDAG.load(installed.target) as dag, pytest.raises(RepositoryError, match=r"is damaged: .* run verify"):
        list(dag.extract(order_by="seq"))


GROWTH = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from measuring import Meter
from guardlearn import ArtifactDAG
with ArtifactDAG.load(sys.argv[1], read_only=True) as dag:
    next(dag.extract(limit=1))
    with Meter() as meter:
        total = sum(len(item.artifact) + sum(len(e.artifact) for e in item.history) for item in dag.extract())
print(total, meter.result()["growth_mib"])
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_what_is_stored(tmp_path):
    """90 MiB in attempts of one MiB, then many small ones: neither is ever in memory at once."""
    path, benchmarks = tmp_path / "runs.db", Path(__file__).parents[1] / "benchmarks"
    with ArtifactDAG.create(path) as dag:
        for n in range(30):
            dag.append_many(chain(f"large{n}-", [1 << 20] * 3, start=n))
        for n in range(20):
            dag.append_many([item for k in range(100) for item in chain(f"small{n}-{k}-", [3000] * 2, start=n)])
    command = [sys.executable, "-c", GROWTH, str(path), str(benchmarks)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    total, growth = done.stdout.split()
    assert int(total) == 30 * (1 + 2 + 3) * (1 << 20) + 2_000 * 3 * 3000
    assert float(growth) < 40
