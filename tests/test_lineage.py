"""Registry of adapters over ℛ, on both databases: records, names, what is live, going back, pruning, lineage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from databases import Files, Place, Server, law
from guardlearn import ArtifactDAG, ArtifactStatus, Renderer, Specification, lineage
from guardlearn.adapters import adapter_digest, config_digest
from guardlearn.collect import collect
from guardlearn.dag import rounds
from guardlearn.dag.rounds import State
from guardlearn.errors import ModelError, RepositoryError, UsageError
from guardlearn.generators.replay import ReplayGenerator
from guardlearn.lineage import folders
from guardlearn.loop.checkpoint import check_restored
from registered import Strict, adapter, evidence, fill, manifest_of, round_of


@pytest.fixture
def dag(installed: Place) -> Iterator[ArtifactDAG]:
    with ArtifactDAG.load(installed.target) as opened:
        yield opened


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# what ℛ says of a round


@pytest.mark.slow
def test_a_record_is_what_its_round_stored(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids, found = fill(dag, range(6)), evidence(tmp_path / "measured")
    seq = dag.last_seq
    folder = round_of(dag, tmp_path, 1, ids, measured={"evidence": found, "hidden": {"other": {"version": "2"}}})
    (record,) = lineage.records(dag)
    assert (record.name, record.state, record.learner, record.round) == ("me/1", "promoted", "me", 1)
    assert (record.folder, record.digest) == (str(folder), adapter_digest(folder))
    assert (record.item_ids, record.new_item_ids, record.seq) == (ids, ids[-1:], seq)
    assert (record.parent, record.incumbent, record.mode, record.base_model) == ("", "", "restart", "demo")
    assert (record.seed, record.rows, record.validation_rows, record.look) == (3, 12, 1, 2)
    assert (record.dropped, record.dropped_rows) == ({"duplicate": 1}, {"too long": 2})
    assert record.views == ["first_attempt", "repair"] and record.template_digest == "t" * 64
    assert record.evidence == found and record.hidden == {"other": {"version": "2"}}
    assert record.live and record.decided and [each.actor for each in record.promotions] == ["the gate"]
    assert record.gain == record.decision["gain"] == 1.0
    assert record.interval == (found["difference"]["low"], found["difference"]["high"])
    assert record.reason.startswith("promoted: 12 groups")
    assert record.planned_at is not None and record.decided_at is not None and record.planned_at <= record.decided_at


@pytest.mark.slow
@pytest.mark.parametrize("end", ["planned", "extracted", "trained", "measured", "refused"])
def test_a_round_is_told_as_far_as_it_came(dag: ArtifactDAG, tmp_path: Path, end: str) -> None:
    round_of(dag, tmp_path, 1, fill(dag, range(3)), end)
    (record,) = lineage.records(dag)
    assert record.state == end and record.decided is (end == "refused") and not record.live
    assert bool(record.digest) is (end not in ("planned", "extracted"))
    assert lineage.presence(record).state == ("there" if record.digest else "not trained")
    assert lineage.explain(dag, record).name == "me/1"
    assert lineage.live_adapter(dag, "me") is None


def test_equal_weights_of_two_rounds_are_two_adapters(dag: ArtifactDAG, tmp_path: Path) -> None:
    """Training again on the same traces gives the same bytes; only the promoted round's folder is live."""
    ids = fill(dag, range(3))
    first = round_of(dag, tmp_path, 1, ids, "refused", seed=5)
    second = round_of(dag, tmp_path, 2, ids, "promoted", seed=5)
    assert adapter_digest(first) == adapter_digest(second)
    assert [record.live for record in lineage.records(dag)] == [False, True]
    live = lineage.live_adapter(dag)
    assert live is not None and (live.folder, live.round, live.base_model) == (second, 2, "demo")
    with pytest.raises(UsageError) as error:
        lineage.find(dag, adapter_digest(first)[:10])
    assert "names 2 adapters: me/1" in one_line(error) and "me/2" in str(error.value)
    assert [each.name for each in lineage.prune(dag, actor="me")] == ["me/1"]


# names


def test_every_name_of_an_adapter_leads_to_it(
    dag: ArtifactDAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(dag, range(3))
    folders = [round_of(dag, tmp_path, 1, ids, "refused"), round_of(dag, tmp_path, 2, ids, "promoted")]
    round_of(dag, tmp_path, 1, ids, "refused", learner="my learner", seed=9)
    for name in ("2", "round 2", "round-2", "me/2", "me/round 2", adapter_digest(folders[1])[:6], "promoted:me"):
        assert lineage.find(dag, name).name == "me/2", name
    assert lineage.find(dag, adapter_digest(folders[0]).upper()).name == "me/1"
    assert lineage.find(dag, "my learner/1").name == "my learner/1"
    assert lineage.find(dag, "1", "my learner").name == "my learner/1"
    assert lineage.find(dag, str(folders[0])).name == "me/1"
    monkeypatch.chdir(folders[0].parent)
    assert lineage.find(dag, "adapter").name == "me/1"
    moved = shutil.copytree(folders[0], tmp_path / "elsewhere")
    assert lineage.find(dag, str(moved)).name == "me/1"
    shutil.rmtree(folders[0])
    assert lineage.find(dag, str(folders[0])).name == "me/1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("1", "'1' names 2 adapters: me/1 (refused, "),
        ("7", "no adapter '7' in "),
        ("me/7", "there are: me/1 (refused, "),
        ("zzzzzz", "no adapter 'zzzzzz'"),
        ("abc", "no adapter 'abc'"),
        ("promoted", "has 2 learners (me, other); name one: promoted:LEARNER"),
        ("promoted:nobody", "no learner 'nobody' in "),
        ("promoted:me", "the bare base is live for 'me', no adapter; there are: me/1"),
        ("", "no adapter ''"),
    ],
)
def test_a_name_that_is_none_says_what_there_is(dag: ArtifactDAG, tmp_path: Path, name: str, said: str) -> None:
    ids = fill(dag, range(2))
    for number, learner in enumerate(("me", "other")):
        round_of(dag, tmp_path, 1, ids, "refused", learner=learner, seed=number)
    with pytest.raises(UsageError) as error:
        lineage.find(dag, name)
    assert said in one_line(error)


def test_an_adapter_that_no_round_made_is_known_by_its_manifest(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(3))
    folder = adapter(tmp_path / "trained", 4, manifest_of(ids, training={"views": ["repair"]}, parent_adapter="f" * 64))
    record = lineage.find(dag, str(folder))
    assert (record.name, record.round, record.item_ids, record.parent) == (str(folder), 0, ids, "f" * 64)
    assert (record.views, record.seed, record.result["steps"]) == (["repair"], 3, 7)
    assert lineage.explain(dag, record).items.by_source == {"generator": 3}
    (folder / "guardlearn.json").unlink()
    with pytest.raises(ModelError, match="nothing says what this adapter learned from"):
        lineage.find(dag, str(folder))


# what is live


def test_nothing_is_live_before_anything_was_promoted(dag: ArtifactDAG) -> None:
    assert lineage.live_adapter(dag) is None and lineage.live_adapter(dag, "new") is None
    assert lineage.records(dag) == [] and lineage.learners(dag) == []
    with pytest.raises(UsageError, match="the bare base is live, no adapter; there are: none"):
        lineage.find(dag, "promoted")


def edit_weights(folder: Path) -> str:
    data = bytearray((folder / "adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "adapter_model.safetensors").write_bytes(data)
    return f"its weights are {adapter_digest(folder)[:12]}"


def edit_config(folder: Path) -> str:
    config = json.loads((folder / "adapter_config.json").read_text()) | {"lora_alpha": 64}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return f"its adapter_config.json is {config_digest(folder)[:12]}"


def edit_manifest(folder: Path) -> str:
    content = json.loads((folder / "guardlearn.json").read_text())
    content["manifest"]["item_ids"] = []
    (folder / "guardlearn.json").write_text(json.dumps(content))
    return "its guardlearn.json is not the one that the round left"


def spoil_manifest(folder: Path) -> str:
    (folder / "guardlearn.json").write_text("{")
    return "not readable as an adapter's manifest"


def remove(folder: Path) -> str:
    shutil.rmtree(folder)
    return f"there is none in {folder}"


@pytest.mark.slow
@pytest.mark.parametrize("harm", [edit_weights, edit_config, edit_manifest, spoil_manifest, remove])
def test_an_adapter_edited_by_hand_is_refused(dag: ArtifactDAG, tmp_path: Path, harm: Any) -> None:
    ids = fill(dag, range(3))
    folder = round_of(dag, tmp_path, 1, ids, "promoted")
    later = round_of(dag, tmp_path, 2, ids, "promoted")
    was = adapter_digest(folder)
    said = harm(folder)
    record = lineage.find(dag, "1")
    assert lineage.presence(record).state == ("gone" if harm is remove else "altered")
    for use in (
        lambda: lineage.promote(dag, record, actor="me", reason="why not"),
        lambda: lineage.roll_back(dag, actor="me", reason=""),
        lambda: lineage.roll_back(dag, to="me/1", actor="me", reason=""),
    ):
        with pytest.raises(ModelError) as error:
            use()
        assert said in one_line(error)
        assert harm is not edit_weights or was[:12] in str(error.value)
    live = lineage.live_adapter(dag)
    assert live is not None and live.folder == later
    assert any(note.startswith("its folder: ") for note in lineage.explain(dag, record).notes)
    said = harm(later)
    with pytest.raises(ModelError) as error:
        lineage.live_adapter(dag)
    assert said in one_line(error)


def test_a_live_adapter_of_no_round_is_checked_too(dag: ArtifactDAG, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "own", 1, manifest_of(fill(dag, range(2))))
    digest = adapter_digest(folder)
    with dag.writing() as connection:
        rounds.promote(
            connection, "me", action="promote", adapter=str(folder), adapter_digest=digest, actor="me", reason=""
        )
    live = lineage.live_adapter(dag)
    assert live is not None and (live.digest, live.round, live.base_model) == (digest, 0, "tiny")
    assert lineage.find(dag, "promoted").live
    edit_weights(folder)
    with pytest.raises(ModelError) as error:
        lineage.live_adapter(dag)
    assert digest[:12] in one_line(error) and adapter_digest(folder)[:12] in str(error.value)


# promoting by hand and going back


def test_promoting_by_hand_says_who_and_why(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(3))
    folder = round_of(dag, tmp_path, 1, ids, "refused")
    round_of(dag, tmp_path, 2, ids, "measured")
    first, second = lineage.records(dag)
    with pytest.raises(UsageError, match="needs a reason"):
        lineage.promote(dag, first, actor="ann", reason="  ")
    with pytest.raises(UsageError, match="round me/2 is still measured"):
        lineage.promote(dag, second, actor="ann", reason="now")
    promotion = lineage.promote(dag, first, actor="ann", reason="a customer needs it")
    assert (promotion.actor, promotion.reason, promotion.round) == ("ann", "a customer needs it", 0)
    assert (promotion.action, promotion.adapter, promotion.adapter_digest) == ("promote", str(folder), first.digest)
    assert lineage.find(dag, "promoted").name == "me/1"
    with pytest.raises(UsageError, match="me/1 is live already"):
        lineage.promote(dag, lineage.find(dag, "1"), actor="ann", reason="again")
    outside = lineage.find(dag, str(adapter(tmp_path / "own", 8, manifest_of(ids))))
    with pytest.raises(UsageError, match="made by no round"):
        lineage.promote(dag, outside, actor="ann", reason="mine")
    assert dag.verify().problems == []


def go_back(dag: ArtifactDAG, to: str | None = None) -> str:
    lineage.roll_back(dag, to=to, actor="me", reason="")
    live = lineage.live_adapter(dag)
    return f"{live.round}" if live else "base"


def test_rollback_goes_to_what_was_live_before(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(3))
    with pytest.raises(UsageError, match="nothing to go back from"):
        go_back(dag)
    for number, end in enumerate(["promoted", "refused", "promoted", "promoted"], 1):
        round_of(dag, tmp_path, number, ids, end)
    assert [go_back(dag) for _ in range(3)] == ["3", "1", "base"]
    with pytest.raises(UsageError, match="the bare base is live for 'me'; there is nothing to go back from"):
        go_back(dag)
    assert go_back(dag, "me/2") == "2"  # a refused one, because somebody says so
    assert go_back(dag, "base") == "base"
    for name in ("base", "nothing"):
        with pytest.raises(UsageError, match=r"is live for 'me' already|no adapter 'nothing'"):
            go_back(dag, name)


@pytest.mark.slow
@law(st.lists(st.sampled_from(["promote 1", "promote 2", "promote 3", "back"]), max_size=8), examples=12)
def test_going_back_undoes_one_promotion_at_a_time(databases: Files | Server, moves: list[str]) -> None:
    """Against a stack: promoting puts on top, going back takes off."""
    import tempfile

    with databases.repository() as dag, tempfile.TemporaryDirectory() as folder:
        ids = fill(dag, range(2))
        for number in (1, 2, 3):
            round_of(dag, Path(folder), number, ids, "refused")
        stack: list[str] = []
        for move in moves:
            name = move.rpartition(" ")[2]
            try:
                if move == "back":
                    lineage.roll_back(dag, "me", actor="me", reason="")
                    stack.pop()
                else:
                    lineage.promote(dag, lineage.find(dag, name), actor="me", reason="so")
                    stack.append(name)
            except UsageError:
                assert not stack if move == "back" else stack[-1:] == [name]
            live = lineage.live_adapter(dag, "me")
            assert (str(live.round) if live else None) == (stack[-1] if stack else None)


# pruning


def test_pruning_takes_refused_folders_and_leaves_the_rows(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(3))
    ends = ["promoted", "refused", "promoted", "refused", "refused", "measured"]
    folders = [round_of(dag, tmp_path, number, ids, end) for number, end in enumerate(ends, 1)]
    before = {folder: sorted(folder.iterdir()) for folder in folders}
    planned = lineage.prune(dag, actor="ann", dry_run=True)
    assert [(each.name, each.removed) for each in planned] == [("me/2", False), ("me/4", False), ("me/5", False)]
    assert {folder: sorted(folder.iterdir()) for folder in folders} == before
    assert [each.name for each in lineage.prune(dag, actor="ann", keep=1, dry_run=True)] == ["me/2", "me/4"]
    assert lineage.prune(dag, actor="ann", keep=7) == [] == lineage.prune(dag, "nobody", actor="ann")
    done = lineage.prune(dag, actor="ann", keep=2)
    size = sum(path.stat().st_size for path in before[folders[3]])
    assert [(each.name, each.removed, each.said) for each in done] == [("me/2", True, "removed")]
    assert abs(done[0].size_bytes - size) < 100 and not folders[1].exists()
    found = lineage.presence(lineage.find(dag, "2"))
    assert found.state == "pruned" and "by ann at 20" in found.said
    assert len(lineage.records(dag)) == 6 and lineage.find(dag, "2").item_ids == ids
    with pytest.raises(ModelError, match="pruned by ann"):
        lineage.promote(dag, lineage.find(dag, "2"), actor="ann", reason="after all")
    assert {folder for folder in folders if folder.exists()} == {*folders} - {folders[1]}


def test_pruning_never_takes_what_is_or_may_be_needed(dag: ArtifactDAG, tmp_path: Path) -> None:
    ids = fill(dag, range(3))
    live = round_of(dag, tmp_path, 1, ids, "promoted")
    old = round_of(dag, tmp_path, 2, ids, "promoted")
    edited = round_of(dag, tmp_path, 3, ids, "refused")
    needed = round_of(dag, tmp_path, 4, ids, "refused")
    parent = {"adapter": str(needed), "digest": adapter_digest(needed)}
    under_way = round_of(dag, tmp_path, 5, ids, "trained", plan={"parent": parent, "mode": "continue"})
    lineage.roll_back(dag, actor="me", reason="")
    edit_weights(edited)
    found = lineage.prune(dag, actor="me", promoted_too=True)
    assert [(each.name, each.removed) for each in found] == [("me/2", True), ("me/3", False)]
    assert "edited by hand" in found[1].said
    assert [folder.exists() for folder in (live, old, edited, needed, under_way)] == [True, False, True, True, True]
    assert lineage.live_adapter(dag, "me") is not None


def test_what_is_promoted_while_pruning_stays(
    dag: ArtifactDAG, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = round_of(dag, tmp_path, 1, fill(dag, range(2)), "refused")
    look = folders.presence

    def meanwhile(record: lineage.AdapterRecord) -> lineage.Presence:
        found = look(record)
        with dag.writing() as connection:  # by a learner that continues another's adapter
            rounds.promote(
                connection, "other", action="promote", adapter=record.folder, adapter_digest=record.digest,
                actor="ann", reason="",
            )  # fmt: skip
        return found

    monkeypatch.setattr(folders, "presence", meanwhile)
    assert [each.said for each in lineage.prune(dag, actor="me")] == ["left alone, it has just been promoted"]
    assert folder.is_dir() and lineage.prune(dag, actor="me") == []  # from now on it is known to be live


def test_a_prune_that_was_killed_is_finished_by_the_next(dag: ArtifactDAG, tmp_path: Path) -> None:
    folder = round_of(dag, tmp_path, 1, fill(dag, range(2)), "refused")
    lineage.prune(dag, actor="me")
    left = adapter(folder.with_name(".adapter.pruned"))  # the move was made, the removal was not
    lineage.prune(dag, actor="me", dry_run=True)
    assert left.exists()
    lineage.prune(dag, actor="me")
    assert not left.exists() and lineage.presence(lineage.find(dag, "1")).state == "pruned"


# an ℛ restored from a backup


def test_a_repository_behind_its_rounds_is_refused(databases: Files | Server, tmp_path: Path) -> None:
    with databases.installed() as place, ArtifactDAG.load(place.target) as dag:
        ids = fill(dag, range(3))
        round_of(dag, tmp_path, 1, ids)
        dag.close()
        with databases.copy(place) as backup:
            fill(dag, range(3, 6))
            loop = tmp_path / "me"
            check_restored(dag, loop, "me")
            check_restored(dag, tmp_path / "nothing", "me")
            round_of(dag, tmp_path, 2, ids, "refused")
            check_restored(dag, loop, "me")
            with ArtifactDAG.load(backup.target) as old, pytest.raises(RepositoryError) as error:
                check_restored(old, loop, "me")
            assert "knows no round 2 of 'me' (its last is 1)" in one_line(error)
            assert str(loop / "002") in str(error.value)
            shutil.rmtree(loop / "002")
            (loop / "001" / "adapter" / "guardlearn.json").write_text(
                json.dumps({"manifest": manifest_of(ids, checkpoint={"seq": dag.last_seq, "item_id": "a5"})})
            )
            check_restored(dag, loop, "me")
            with ArtifactDAG.load(backup.target) as old, pytest.raises(RepositoryError) as error:
                check_restored(old, loop, "me")
            assert f"ends at seq {dag.last_seq - 6}, before the {dag.last_seq}" in one_line(error)


def test_a_job_that_has_no_adapter_yet_is_seen_too(dag: ArtifactDAG, tmp_path: Path) -> None:
    job = tmp_path / "004" / "job"
    job.mkdir(parents=True)
    check_restored(dag, tmp_path, "me")
    (job / "manifest.json").write_text(json.dumps(manifest_of([])))
    with pytest.raises(RepositoryError, match=r"004 comes from a later state .* \(its last is none\)"):
        check_restored(dag, tmp_path, "me")


# items say which adapter made them


def test_what_is_live_signs_what_it_collects(dag: ArtifactDAG, tmp_path: Path) -> None:
    """A collection with the promoted adapter, then one after going back: ℛ tells them apart, attempt by attempt."""
    folder = round_of(dag, tmp_path, 1, fill(dag, range(2)))
    digest = adapter_digest(folder)
    for turn, rate in (("first", {digest: 1.0}), ("second", {digest: 1.0, "": 0.0})):
        live = lineage.live_adapter(dag)
        specs = [Specification(id=f"{turn} {n}", specification=f"{turn} task {n}") for n in range(3)]
        texts = [spec.specification for spec in specs]
        generator = ReplayGenerator({text: ["bad", "good"] for text in texts}, {text: ["good"] for text in texts})
        generator.use_adapter(live.folder if live else None)
        signed = live.digest if live else ""
        collect(dag, specs, generator, Strict(), renderer=Renderer(), adapter=signed, r_max=2)
        firsts: dict[str, list[bool]] = {}
        for item in dag.extract():
            if item.metadata.get("spec_id") and item.facts is not None and item.facts.attempt == 1:
                firsts.setdefault(item.adapter, []).append(item.status is ArtifactStatus.ACCEPTED)
        assert {name: sum(passed) / len(passed) for name, passed in firsts.items()} == rate
        if live:
            lineage.roll_back(dag, actor="me", reason="")
    assert State("promoted") in [step.state for step in _steps(dag)]


def _steps(dag: ArtifactDAG) -> list[rounds.RoundStep]:
    with dag.reading() as connection:
        return rounds.read(connection)
