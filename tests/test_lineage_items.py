"""Lineage over ℛ, on both databases: what came of an adapter's items, what differs, who learned from what."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from hypothesis import strategies as st

from databases import Files, Place, Server, law
from guardlearn import ArtifactDAG, ArtifactStatus, RepositoryItem, Verdict, lineage
from guardlearn.adapters import adapter_digest
from guardlearn.audit.versions import said_reason
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.lineage.explaining import in_words
from guardlearn.loop import save_training_checkpoint
from registered import GUARD, VERSION, Strict, adapter, chain, evidence, fill, manifest_of, round_of


@pytest.fixture
def dag(installed: Place) -> Iterator[ArtifactDAG]:
    with ArtifactDAG.load(installed.target) as opened:
        yield opened


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# what came of the items


def test_what_happened_to_the_items_since(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(8), rejected=2)
    dag.append_event("a0", "exclude")
    dag.append_event("a0", "include")
    dag.append_event("a7", "stale")  # before the round: it learned from it all the same
    round_of(dag, tmp_path, 1, [*ids, "a99", "a\0"])
    dag.redact("a1", "ann", "a name in it")
    dag.redact("r2.1", "ann", "a name in it")
    dag.append_event("a3", "exclude")
    dag.append_event("a4", "exclude")
    dag.append_event("a4", "include")
    dag.append_event("a5", "status", value="rejected")
    dag.append_event("r6.2", "stale")
    dag.append_event("a0", "review")
    now = lineage.items_now(dag, lineage.find(dag, "1"))
    assert now.since == {
        "redacted": ["a1", "a2"], "excluded": ["a3"], "stale guard": ["a6"], "verdict changed": ["a5"],
    }  # fmt: skip
    assert (now.count, now.gone) == (10, ["a99", "a\0"])
    assert now.by_source == {"generator": 8} and now.by_action_pair == {"pair-0": 4, "pair-1": 4}
    assert now.by_guard == {f"{GUARD}@{VERSION[:12]}": 8} and sum(now.by_side.values()) == 8
    notes = lineage.explain(dag, lineage.find(dag, "1")).notes
    assert [note for note in notes if note.startswith("2 of its 10 items are not in")]


def test_items_judged_by_another_version_than_the_measurement_are_named(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = (
        fill(dag, range(3))
        + fill(dag, range(3, 5), guard_version="0123older56789")
        + fill(dag, [5], guard="", guard_version="")
    )
    round_of(dag, tmp_path, 1, ids, measured={"evidence": evidence(tmp_path / "measured")})
    found = lineage.explain(dag, lineage.find(dag, "1"))
    assert found.items.other_versions == {f"{GUARD}@0123older567": 2}
    assert found.items.by_guard == {f"{GUARD}@{VERSION[:12]}": 3, f"{GUARD}@0123older567": 2, "none named": 1}
    assert any("another version of the guard" in note for note in found.notes)
    assert found.figures["first attempts"] == 1.0 and found.figures["base first attempts"] == 0.125


def test_a_manifest_of_another_repository_is_told_all_the_same(dag: ArtifactDAG, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "own", 1, manifest_of(["x1", "x2"], "of another version("))
    found = lineage.explain(dag, lineage.find(dag, str(folder)))
    assert found.items.gone == ["x1", "x2"] and found.items.by_source == {}
    assert found.selects == "of another version("
    assert found.notes == [f"2 of its 2 items are not in {dag.target}: x1, x2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("refinement()", "accepted and a rejected attempt before it"),
        ("everything()", "everything"),
        (
            'refinement() & source("generator")',
            "accepted and a rejected attempt before it; written by source generator",
        ),
        ('status("accepted") | excluded()', "(accepted) or (excluded from training)"),
        ("~excluded()", "not excluded from training"),
        ("~refinement()", "not (accepted and a rejected attempt before it)"),
        ('~status("pending")', "not no verdict yet"),
        ("nonsense", "nonsense"),
        ("", "not said"),
    ],
)
def test_a_predicate_in_words(text: str, words: str) -> None:
    assert in_words(text) == words


# what an adapter is to others


def test_children_and_parents_are_named(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(4))
    first = round_of(dag, tmp_path, 1, ids[:2])
    named = {"adapter": str(first), "digest": adapter_digest(first)}
    round_of(dag, tmp_path, 2, ids[2:], "refused", plan={"parent": named, "incumbent": named, "mode": "continue"})
    one, two = (lineage.explain(dag, record) for record in lineage.records(dag))
    assert (one.parent, one.incumbent, one.children) == ("", "", ["me/2"])
    assert (two.parent, two.incumbent, two.children) == ("me/1", "me/1", [])
    assert [each.adapter for each in two.live_now] == [str(first)]


def test_what_differs_between_two(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids, found = fill(dag, range(6)), evidence(tmp_path / "measured")
    round_of(dag, tmp_path, 1, ids[:4], measured={"evidence": found})
    plan = {"predicate": "all()", "training": {"views": ["repair"], "epochs": 5.0, "seed": 4}, "seed": 4}
    round_of(dag, tmp_path, 2, ids[2:], "refused", plan=plan)
    one, two = lineage.records(dag)
    told = lineage.difference(one, two)
    assert (told.items_in_both, told.items_in_first, told.items_in_second) == (2, 2, 2)
    assert (told.examples_in_first, told.examples_in_second) == (["a0", "a1"], ["a4", "a5"])
    assert told.predicate == ("refinement()", "all()") and not told.same_weights
    assert told.config == {
        "training.epochs": (3.0, 5.0),
        "training.learning_rate": (2e-4, None),
        "training.seed": (3, 4),
        "training.views": (["first_attempt", "repair"], ["repair"]),
    }
    assert told.evidence["gain"] == (1.0, 0.0)
    assert told.evidence["low"] == (found["difference"]["low"], None)
    assert told.decision == (one.reason, two.reason) and one.reason != two.reason
    same = lineage.difference(one, one)
    assert same.same_weights and same.predicate is None and same.config == {}
    assert (same.items_in_both, same.items_in_first, same.items_in_second) == (4, 0, 0)


# impact

NUMBERS = st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=3)
ASKED = st.sampled_from(
    ["item a0", "item a3", "item r1.1", "item r5.2", "workflow workflow-1", f"guard {GUARD}", f"guard {GUARD}@abcd",
     f"guard {GUARD}@0000", "guard loose", "guard loose@1"]
)  # fmt: skip


@pytest.mark.slow
@law(NUMBERS, ASKED, examples=15)
def test_impact_is_what_a_walk_over_every_chain_finds(
    databases: Files | Server, learned: list[set[int]], asked: str
) -> None:
    import tempfile

    kind, _, name = asked.partition(" ")
    with databases.repository() as dag, tempfile.TemporaryDirectory() as folder:
        dag.append_many(item for number in range(6) for item in _mixed(number))
        for place, numbers in enumerate(learned, 1):
            round_of(dag, Path(folder), place, [f"a{number}" for number in sorted(numbers)], "refused")
        found = lineage.impact(dag, **{kind: name})
        expected = {}
        for place, numbers in enumerate(learned, 1):
            hits = [number for number in sorted(numbers) if any(map(meant(kind, name), dag.provenance(f"a{number}")))]
            if hits:
                expected[f"me/{place}"] = (len(hits), len(numbers), [f"a{number}" for number in hits][:5])
        assert {each.name: (each.items, each.trained, each.examples) for each in found.adapters} == expected
        assert found.items == sum(map(meant(kind, name), dag.extract()))
        for each in found.adapters:
            assert each.share == each.items / each.trained and not each.live
            itself = [meant(kind, name)(dag.get_item(item_id)) for item_id in each.examples]
            assert each.in_history == itself.count(False)


def _mixed(number: int) -> list[RepositoryItem]:
    """Return a chain; some begin under an older version of the guard, one has another guard."""
    given = {"guard": "loose", "guard_version": "1"} if number == 5 else {}
    first, *others = chain(number, rejected=number % 3, **given)
    return [msgspec.structs.replace(first, guard_version="0000old") if number in (1, 4) else first, *others]


def meant(kind: str, name: str) -> Any:
    plain, _, version = name.partition("@")
    if kind == "guard":
        return lambda item: item.guard == plain and item.guard_version.startswith(version)
    return lambda item: name == (item.id if kind == "item" else item.workflow_id)


def test_impact_asks_the_database_as_often_for_many_adapters_as_for_one(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(10))
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        statements.append(statement)

    def asked() -> list[str]:
        statements.clear()
        lineage.impact(dag, guard=GUARD)
        return [each for each in statements if "items" in each]

    round_of(dag, tmp_path, 1, ids, "refused")
    sa.event.listen(sa.engine.Engine, "before_cursor_execute", note)
    try:
        assert len(asked()) == 1
        for number in range(2, 8):
            round_of(dag, tmp_path, number, ids, "refused")
        assert len(asked()) == 1
        assert len(lineage.impact(dag, guard=GUARD).adapters) == 7
    finally:
        sa.event.remove(sa.engine.Engine, "before_cursor_execute", note)


def test_a_verdict_given_again_counts_from_then_on(dag: ArtifactDAG, tmp_path: Path) -> None:
    """As `audit --rejudge` notes it: adapters of before did not learn from the later version's verdict."""
    ids = fill(dag, range(4), rejected=2)
    round_of(dag, tmp_path, 1, ids, "refused")
    judge, verdict = Strict(), Verdict(status=ArtifactStatus.ACCEPTED, cause="style", feedback="so: it is")
    judge.version = "fedcba987654321"
    for item_id in ("a0", "r1.2"):
        status = "accepted" if item_id == "a0" else "rejected"
        dag.append_event(item_id, "status", value=status, reason=said_reason(judge, verdict))
    dag.append_event("a2", "status", value="accepted", actor="ann", reason=f"I like {GUARD} fedcba987654321")
    round_of(dag, tmp_path, 2, ids, "refused", measured={"evidence": evidence(tmp_path / "measured")})
    found = lineage.impact(dag, guard=f"{GUARD}@fedcba")
    assert found.items == 2
    assert [(each.name, each.examples, each.in_history) for each in found.adapters] == [("me/2", ["a0", "a1"], 1)]
    assert [each.items for each in lineage.impact(dag, guard=f"{GUARD}@{VERSION}").adapters] == [4, 4]
    assert [each.items for each in lineage.impact(dag, guard=GUARD).adapters] == [4, 4]
    for name in ("stric", f"{GUARD}@FEDCBA", f"{GUARD}@ABC"):
        with pytest.raises(RepositoryError, match="no guard"):
            lineage.impact(dag, guard=name)
    now = lineage.explain(dag, lineage.find(dag, "2")).items
    assert now.by_guard == {f"{GUARD}@{VERSION[:12]}": 3, f"{GUARD}@fedcba987654": 1}
    assert now.other_versions == {f"{GUARD}@fedcba987654": 1}


def test_an_earlier_attempt_counts_where_the_views_show_it(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(3))
    for number, views in enumerate((["first_attempt"], ["repair"], ["first_attempt", "repair"], []), 1):
        round_of(dag, tmp_path, number, ids, "refused", plan={"training": {"views": views}})
    assert [each.round for each in lineage.impact(dag, item="r1.1").adapters] == [2, 3, 4]
    assert [each.round for each in lineage.impact(dag, item="a1").adapters] == [1, 2, 3, 4]
    assert [each.in_history for each in lineage.impact(dag, workflow="workflow-1").adapters] == [0] * 4


def test_impact_reaches_through_a_parent(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(6))
    parent: dict[str, Any] | None = None
    for number in (1, 2, 3):
        plan = {"parent": parent, "mode": "continue"} if parent else {}
        folder = round_of(dag, tmp_path, number, ids[2 * number - 2 : 2 * number], "refused", plan=plan)
        parent = {"adapter": str(folder), "digest": adapter_digest(folder)}
    found = lineage.impact(dag, item="a0").adapters
    assert [(each.name, each.items, each.through) for each in found] == [
        ("me/1", 1, ""), ("me/2", 0, "me/1"), ("me/3", 0, "me/1"),
    ]  # fmt: skip
    assert [each.name for each in lineage.impact(dag, item="a3").adapters] == ["me/2", "me/3"]


def test_increments_are_known_by_their_checkpoints(dag: ArtifactDAG, tmp_path: Path) -> None:
    """`incremental_training_loop` makes adapters without rounds; a round's own checkpoint is not told twice."""
    ids = fill(dag, range(5))
    made = []
    for number, own in enumerate((ids[:2], ids[2:4]), 1):
        made.append(adapter(tmp_path / f"adapter-{number}", 20 + number, manifest_of(ids[: 2 * number])))
        save_training_checkpoint(dag, own[-1], 2 * number, adapter=made[-1], item_ids=own, learner="steps")
    first = round_of(dag, tmp_path, 1, ids[3:], "refused")
    save_training_checkpoint(dag, ids[-1], 1, adapter=first, learner="me")
    found = lineage.impact(dag, item="a3").adapters
    assert [(each.name, each.items, each.trained) for each in found] == [(str(made[1]), 1, 4), ("me/1", 1, 2)]
    assert [each.name for each in lineage.impact(dag, item="r0.1").adapters] == [str(folder) for folder in made]
    assert [each.name for each in lineage.impact(dag, item="a4").adapters] == ["me/1"]
    named = lineage.find(dag, adapter_digest(made[0])[:8])
    assert (named.item_ids, named.predicate) == (ids[:2], "refinement()")
    shutil.rmtree(made[0])
    named = lineage.find(dag, str(made[0]))
    assert (named.item_ids, named.predicate, named.learner) == (ids[:2], "", "steps")
    assert lineage.explain(dag, named).folder.state == "gone"
    with pytest.raises(UsageError) as error:
        lineage.find(dag, "zzz")
    assert f"{made[1]} (of no round, {adapter_digest(made[1])[:8]})" in one_line(error)


def test_impact_of_what_nobody_learned_from_and_of_what_is_not_there(dag: ArtifactDAG, tmp_path: Path) -> None:
    fill(dag, range(3))
    round_of(dag, tmp_path, 1, ["a0", "a77"], "refused")
    round_of(dag, tmp_path, 2, ["a1"], "extracted")  # has not learned yet
    assert lineage.impact(dag, item="a1").adapters == []
    gone = lineage.impact(dag, item="a77")
    assert (gone.items, [each.name for each in gone.adapters]) == (0, ["me/1"])
    for given, said in (
        ({"item": "a5"}, "no item 'a5' in "),
        ({"item": "a\0"}, "no item "),
        ({"workflow": "nope"}, "there are: workflow-0, workflow-1, workflow-2"),
        ({"workflow": ""}, "no workflow ''"),
        ({"guard": "loose"}, f"there are: {GUARD}@{VERSION}"),
        ({"guard": f"{GUARD}@ffff"}, f"there are: {GUARD}@{VERSION}"),
        ({"guard": f"{GUARD}@a%"}, f"there are: {GUARD}@{VERSION}"),
    ):
        with pytest.raises(RepositoryError) as error:
            lineage.impact(dag, **given)
        assert said in one_line(error)
    for wrong in ({}, {"item": "a1", "guard": GUARD}):
        with pytest.raises(UsageError, match="give one of them"):
            lineage.impact(dag, **wrong)
