"""Near-duplicates of one specification, found by reading alone: what a comparison of every pair gives."""

from __future__ import annotations

from hypothesis import strategies as st

from databases import Files, Place, Server, law
from guardlearn.dag import ArtifactDAG, near_duplicates
from guardlearn.dag.nearby import Nearby, nearby
from guardlearn.dag.neighbours import unpack
from guardlearn.dag.reading import seq_of
from guardlearn.dag.side_tables import side_index
from guardlearn.types import ArtifactStatus, RepositoryItem, Side

WORDS = "sum product list text number first last even odd sorted unique longest".split()
FAMILY = "Write a function that returns the {} of all values in a list of numbers, and raises for an empty one"


def item(name: str, specification: str, **given: object) -> RepositoryItem:
    fields = {"id": name, "artifact": "a", "specification": specification, "status": ArtifactStatus.ACCEPTED}
    return RepositoryItem(**fields | given)


def near_to(dag: ArtifactDAG, name: str, limit: int = 12) -> Nearby:
    with dag.reading() as connection:
        return nearby(connection, seq_of(connection, name, dag.target), limit)


def by_hand(dag: ArtifactDAG, own: str, others: list[str]) -> dict[str, float]:
    """The Jaccard similarity of what is distinctive, for every other text where it is half or more."""
    with dag.reading() as connection:
        packed = connection.execute(side_index.select().with_only_columns(side_index.c.common)).scalar_one_or_none()
    common = unpack(packed) if packed is not None else frozenset()
    mine = near_duplicates.distinctive(own, common)
    found = {}
    for other in set(others) - {own}:
        theirs = near_duplicates.distinctive(other, common)
        share = len(mine & theirs) / len(mine | theirs)
        if share >= near_duplicates.NEAR:
            found[other] = share
    return found


texts = st.lists(st.lists(st.sampled_from(WORDS), min_size=2, max_size=5).map(" ".join), min_size=1, max_size=14)


@law(texts, examples=15)
def test_specifications_with_groups_are_compared_one_by_one(databases: Files | Server, given: list[str]) -> None:
    with databases.repository() as dag:
        dag.append_many([item(f"i{at}", text, group=f"g{at}") for at, text in enumerate(given)])
        found = near_to(dag, "i0", limit=100)
        assert {each.specification: each.similarity for each in found.found} == by_hand(dag, given[0], given)
        assert [each.similarity for each in found.found] == sorted((e.similarity for e in found.found), reverse=True)
        assert (found.compared, found.not_compared, found.left_out) == (len(set(given)) - 1, 0, 0)


def test_the_index_finds_what_is_near_and_nothing_else_is_compared(installed: Place) -> None:
    family = [FAMILY.format(word) for word in WORDS]
    others = [f"Parse {word} from a file of {word} records and print {word} twice" for word in WORDS]
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many([item(f"i{at}", text) for at, text in enumerate([*family[:4], *others[:3]])])
        found = near_to(dag, "i0")
        assert {each.specification: each.similarity for each in found.found} == by_hand(dag, family[0], family[:4])
        assert len(found.found) == 3
        assert (found.compared, found.not_compared) == (0, 0)
        assert [each.side for each in found.found] == [dag.side_of(each.specification) for each in found.found]


def test_attempts_are_counted_and_the_first_is_named(installed: Place) -> None:
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many([item("own", FAMILY.format("sum"), group="a"), item("x/1", FAMILY.format("mean"), group="b")])
        dag.append_many([item("x/2", FAMILY.format("mean"), group="b", parent_id="x/1")])
        (found,) = near_to(dag, "own").found
        assert (found.attempts, found.first_id, found.cluster) == (2, "x/1", "b")
        assert found.side in Side


def test_beyond_the_limit_they_are_counted(installed: Place) -> None:
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many([item(f"i{at}", FAMILY.format(word), group=word) for at, word in enumerate(WORDS)])
        found = near_to(dag, "i0", limit=3)
        assert (len(found.found), found.left_out) == (3, len(WORDS) - 4)


def test_a_registered_specification_without_attempts_is_named_too(installed: Place) -> None:
    from guardlearn.types import Specification

    with ArtifactDAG.load(installed.target) as dag:
        dag.register([Specification(id="s", specification=FAMILY.format("mean"), group="b")])
        dag.append(item("own", FAMILY.format("sum"), group="a"))
        (found,) = near_to(dag, "own").found
        assert (found.attempts, found.first_id) == (0, "")


def test_only_so_many_are_compared_one_by_one_the_newest_first(installed: Place, monkeypatch) -> None:
    monkeypatch.setattr("guardlearn.dag.nearby.COMPARED", 2)
    with ArtifactDAG.load(installed.target) as dag:
        dag.append_many([item(f"i{at}", FAMILY.format(word), group=word) for at, word in enumerate(WORDS[:6])])
        found = near_to(dag, "i0")
        assert {each.specification for each in found.found} == {FAMILY.format(word) for word in WORDS[4:6]}
        assert (found.compared, found.not_compared) == (2, 3)
