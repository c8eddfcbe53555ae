"""`guardlearn adapters`, `why`, `impact` and the model name `promoted`, as they are typed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from databases import Place
from guardlearn import ArtifactDAG, Side, lineage, write_job
from guardlearn.adapters import adapter_digest
from guardlearn.cli import main
from guardlearn.traces import extract_traces
from registered import GUARD, VERSION, evidence, fill, round_of

MODULE = "from registered import Strict\n\nguard = Strict()\n"


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of an expected error."""
        assert self.code != 0 and "Traceback" not in self.err, self.err
        (line,) = [each for each in self.err.splitlines() if each.startswith("guardlearn: ")]
        return line


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Said]:
    """Return what runs a command in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GUARDLEARN_ACTOR", "ann")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: Any) -> Said:
        monkeypatch.setattr(sys, "argv", ["guardlearn", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        found = capsys.readouterr()
        return Said(code, found.out, found.err)

    return run


@pytest.fixture
def db(installed: Place, tmp_path: Path) -> str:
    """ℛ with three rounds of one learner: promoted with evidence, refused, promoted."""
    with ArtifactDAG.load(installed.target) as dag:
        ids = fill(dag, range(6))
        round_of(dag, tmp_path, 1, ids[:3], measured={"evidence": evidence(tmp_path / "measured")})
        round_of(dag, tmp_path, 2, ids, "refused")
        round_of(dag, tmp_path, 3, ids)
    return installed.target


def folder_of(tmp_path: Path, number: int) -> Path:
    return tmp_path / "me" / f"{number:03}" / "adapter"


# the registry


@pytest.mark.slow
def test_the_list_says_what_was_decided_and_what_is_live(typed: Callable[..., Said], db: str, tmp_path: Path) -> None:
    found = typed("adapters", db, "list", "--json").json
    assert [(row["name"], row["state"], row["live"]) for row in found["adapters"]] == [
        ("me/1", "promoted", False), ("me/2", "refused", False), ("me/3", "promoted", True),
    ]  # fmt: skip
    first = found["adapters"][0]
    assert (first["items"], first["gain"], first["folder_state"]) == (3, 1.0, "there")
    assert first["low"] < 0.875 < first["high"] and found["adapters"][1]["low"] is None
    assert [(each["learner"], each["round"]) for each in found["live"]] == [("me", 3)]
    for shortened in (
        ("adapters", db, "--json"),
        ("adapters", "--json", db),
        ("adapters", db, "list", "--learner", "me", "--json"),
        ("adapters", db, "--learner", "me", "--json"),
    ):
        assert typed(*shortened).json == found
    shown = typed("adapters", db)
    assert shown.code == 0 and "live for me: " in shown.err and "+100.0" in shown.out and "refused by" in shown.out
    assert "no learner 'you'" in typed("adapters", db, "list", "--learner", "you").error


def test_an_empty_registry_says_so(typed: Callable[..., Said], installed: Place) -> None:
    assert typed("adapters", installed.target, "--json").json == {"adapters": [], "live": []}
    assert "no round yet" in typed("adapters", installed.target).err


@pytest.mark.slow
def test_show_gives_the_whole_record(typed: Callable[..., Said], db: str, tmp_path: Path) -> None:
    found = typed("adapters", db, "show", "round 2", "--json").json
    assert (found["name"], found["state"], found["item_ids"]) == ("me/2", "refused", [f"a{n}" for n in range(6)])
    assert found["folder_state"]["state"] == "there" and found["digest"] == adapter_digest(folder_of(tmp_path, 2))
    shown = typed("adapters", db, "show", "2").out
    assert "refinement()" in shown and "6, 1 new" in shown and "training epochs" in shown
    assert "there are: me/1 (promoted, " in typed("adapters", db, "show", "9").error
    assert typed("adapters", db, "show", "9").code == 2


def test_diff_shows_only_what_differs(typed: Callable[..., Said], db: str) -> None:
    found = typed("adapters", db, "diff", "1", "me/2", "--json").json
    assert (found["items_in_both"], found["items_in_first"], found["examples_in_second"]) == (3, 0, ["a3", "a4", "a5"])
    assert found["config"] == {"weighting.counts.traces": [3, 6]}
    shown = typed("adapters", db, "diff", "1", "2").out
    assert "a3, a4, a5" in shown and "predicate" not in shown and "weighting.counts.traces" in shown


@pytest.mark.slow
def test_promote_and_rollback_by_hand(typed: Callable[..., Said], db: str, tmp_path: Path) -> None:
    assert typed("adapters", db, "promote", "2").code == 2  # without a reason
    done = typed("adapters", db, "promote", "2", "--reason", "a customer needs it", "--json").json
    assert (done["actor"], done["reason"], done["adapter"]) == (
        "ann",
        "a customer needs it",
        str(folder_of(tmp_path, 2)),
    )
    back = typed("adapters", db, "rollback", "--reason", "it did not help")
    assert f"live for me now: {folder_of(tmp_path, 3)}" in back.err
    assert typed("adapters", db, "rollback", "--to", "base", "--json").json["adapter"] == ""
    assert "live for me: the bare base (by ann" in typed("adapters", db).err
    (folder_of(tmp_path, 1) / "adapter_model.safetensors").write_bytes(b"other")
    altered = typed("adapters", db, "promote", "1", "--reason", "so").error
    assert "edited by hand" in altered and typed("adapters", db, "rollback", "--to", "base").code == 2


@pytest.mark.slow
def test_prune_frees_what_nobody_needs(typed: Callable[..., Said], db: str, tmp_path: Path) -> None:
    assert typed("adapters", db, "prune", "--dry-run", "--json").json["removed"] == 0
    assert folder_of(tmp_path, 2).exists()
    assert typed("adapters", db, "prune", "--keep", "1", "--json").json["adapters"] == []
    found = typed("adapters", db, "prune", "--json").json
    assert (found["removed"], found["adapters"][0]["name"]) == (1, "me/2") and found["freed_bytes"] > 100
    assert not folder_of(tmp_path, 2).exists() and folder_of(tmp_path, 1).exists()
    assert "pruned by ann" in typed("adapters", db, "show", "2").out
    assert "removed: 0" in typed("adapters", db, "prune").err
    assert typed("adapters", db, "prune", "--promoted-too", "--json").json["adapters"][0]["name"] == "me/1"
    assert folder_of(tmp_path, 3).exists()


@pytest.mark.slow
def test_rebuild_writes_the_job_again(
    typed: Callable[..., Said], installed: Place, tmp_path: Path, tiny_model: Path
) -> None:
    with ArtifactDAG.load(installed.target) as dag:
        for group in range(4):
            dag.assign_side(f"group-{group}", Side.TRAIN if group else Side.VALIDATION)
        ids = fill(dag, range(8))
        write_job(tmp_path / "job", extract_traces(dag, "refinement"), tiny_model)
        fill(dag, [8, 9])  # later items are none of its business
        round_of(dag, tmp_path, 1, ids, plan={"base_model": str(tiny_model)}, job=tmp_path / "job")
    again = typed("adapters", installed.target, "rebuild", "promoted", "-o", "again", "--json")
    assert again.code == 0 and again.json["rows"] == 12, again.err
    names = ("job.toml", "train.jsonl", "validation.jsonl", "manifest.json")
    assert {path.name for path in (tmp_path / "again").iterdir()} == set(names)
    assert [(tmp_path / "again" / name).read_bytes() for name in names] == [
        (tmp_path / "job" / name).read_bytes() for name in names
    ]
    with ArtifactDAG.load(installed.target) as dag:
        dag.redact("a3", "ann", "a name")
    assert "'a3'" in typed("adapters", installed.target, "rebuild", "1", "-o", "third").error
    assert "no model folder" in typed("adapters", installed.target, "rebuild", "1", "-o", "x", "--model", "nope").error
    assert not (tmp_path / "third").exists() and not (tmp_path / "x").exists()


# why and impact


@pytest.mark.slow
def test_why_tells_one_adapter_on_one_page(typed: Callable[..., Said], db: str, tmp_path: Path) -> None:
    with ArtifactDAG.load(db) as dag:
        dag.append_event("a1", "exclude")
        dag.redact("a2", "ann", "a name")
    page = typed("why", "1", "--db", db).out
    for part in (
        "round 1 of me, promoted",
        "3 items, 1 of them new",
        "accepted and a rejected attempt before it",
        "refinement(), up to seq 12",
        "by source: generator 3",
        f"judged by: {GUARD}@{VERSION[:12]} 3",
        "on demo (bbbbbbbbbbbb), from the bare base (restart), seed 3",
        "steps 7",
        "first attempts that pass: 12.5% before, 100.0% with it",
        "look 2",
        "holds  superiority: 12 groups",
        "by the gate",
        f"live now      me/3, {adapter_digest(folder_of(tmp_path, 3))[:12]}: {folder_of(tmp_path, 3)}",
        "redacted: 1 item (",
        "excluded: 1 item (they were excluded from training): a1",
    ):
        assert part in page, part
    assert len(page.splitlines()) < 60 and max(map(len, page.splitlines())) < 400
    refused = typed("why", "2", "--db", db).out
    assert "refused by superiority" in refused and "FAILS  superiority" in refused and "needed: p <= " in refused
    whole = typed("why", "1", "--db", db, "--json").json
    assert whole["items"]["since"] == {
        "redacted": ["a2"], "excluded": ["a1"], "stale guard": [], "verdict changed": [],
    }  # fmt: skip
    assert whole["record"]["item_ids"] == ["a0", "a1", "a2"] and whole["folder"]["state"] == "there"
    assert "this one" in typed("why", "promoted", "--db", db).out


@pytest.mark.slow
def test_why_of_an_altered_or_missing_folder_is_told(typed: Callable[..., Said], db: str, tmp_path: Path) -> None:
    weights = folder_of(tmp_path, 1) / "adapter_model.safetensors"
    was = adapter_digest(folder_of(tmp_path, 1))
    weights.write_bytes(b"other")
    page = typed("why", "1", "--db", db)
    assert page.code == 0 and was[:12] in page.out and adapter_digest(folder_of(tmp_path, 1))[:12] in page.out
    weights.unlink()
    assert "note          its folder: there is none in " in typed("why", "1", "--db", db).out
    assert "no adapter 'x1'" in typed("why", "x1", "--db", db).error


@pytest.mark.slow
def test_impact_lists_who_learned_from_it(typed: Callable[..., Said], db: str) -> None:
    with ArtifactDAG.load(db) as dag:
        fill(dag, [7], workflow_id="unused")
    found = typed("impact", db, "--item", "r4.1", "--json").json
    assert [(each["name"], each["items"], each["in_history"]) for each in found["adapters"]] == [
        ("me/2", 1, 1), ("me/3", 1, 1),
    ]  # fmt: skip
    shown = typed("impact", db, "--guard", f"{GUARD}@{VERSION[:6]}")
    assert shown.code == 0 and "100.0%" in shown.out and "live" in shown.out
    assert [each["name"] for each in typed("impact", db, "--workflow", "workflow-2", "--json").json["adapters"]] == [
        "me/1", "me/2", "me/3",
    ]  # fmt: skip
    nobody = typed("impact", db, "--workflow", "unused")
    assert nobody.code == 0 and "no adapter learned from workflow unused (2 items)" in nobody.err
    for given in (("--item", "a99"), ("--guard", "none"), ("--workflow", "none")):
        failed = typed("impact", db, *given)
        assert failed.code == 1 and "in " in failed.error
    assert typed("impact", db).code == 2


def test_every_command_has_help_and_json(typed: Callable[..., Said]) -> None:
    for words in (("why",), ("impact",), ("adapters",), *(("adapters", "any.db", name) for name in (
        "list", "show", "diff", "promote", "rollback", "prune", "rebuild",
    ))):  # fmt: skip
        shown = typed(*words, "--help")
        assert shown.code == 0 and "--json" in shown.out, words


def test_a_registry_that_is_none_is_one_line(typed: Callable[..., Said], tmp_path: Path) -> None:
    for words in (
        ("adapters", "no.db"),
        ("adapters", "no.db", "prune"),
        ("why", "1", "--db", "no.db"),
        ("impact", "no.db", "--item", "a"),
    ):
        assert "no.db" in typed(*words).error


# the model name


@pytest.fixture
def collected(typed: Callable[..., Said], db: str, tmp_path: Path) -> Callable[..., Said]:
    """Return what collects three new tasks with answers that are good at once with an adapter, else at last."""
    (tmp_path / "strictly.py").write_text(MODULE)

    def run(*more: Any, target: str = db, name: str = "t") -> Said:
        specs = [{"id": f"{name}{n}", "specification": f"Task {name} {n}."} for n in range(3)]
        (tmp_path / "specs.jsonl").write_text("".join(json.dumps(spec) + "\n" for spec in specs))
        lines = [
            {"specification": spec["specification"], "answers": ["bad", "good"], "adapter_answers": ["good"]}
            for spec in specs
        ]
        (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return typed(
            "collect", "specs.jsonl", "--db", target, "--guard", "strictly:guard", "--generator", "replay",
            "--model", "answers.jsonl", "--rmax", 2, "--json", *more,
        )  # fmt: skip

    return run


def signed(db: str, name: str) -> dict[str, int]:
    """Return how many items of these tasks each adapter made."""
    with ArtifactDAG.load(db) as dag:
        made = [item.adapter for item in dag.extract() if str(item.metadata.get("spec_id", "")).startswith(name)]
    return {digest: made.count(digest) for digest in made}


@pytest.mark.slow
def test_promoted_is_a_model_name(
    typed: Callable[..., Said], collected: Callable[..., Said], db: str, tmp_path: Path
) -> None:
    """Items carry the digest of what was live, so E[attempts] per adapter comes from ℛ."""
    live = adapter_digest(folder_of(tmp_path, 3))
    done = collected("--adapter", "promoted")
    assert done.code == 0 and f"promoted: {folder_of(tmp_path, 3)} for me, weights {live[:12]}" in done.err
    assert signed(db, "t") == {live: 3}
    typed("adapters", db, "rollback", "--to", "1")
    assert collected("--adapter", "promoted:me", name="u").code == 0
    assert signed(db, "u") == {adapter_digest(folder_of(tmp_path, 1)): 3}
    typed("adapters", db, "rollback", "--to", "base")
    bare = collected("--adapter", "promoted", name="v")
    assert "promoted: no adapter is live for me, so the bare base answers.jsonl answers" in bare.err
    assert signed(db, "v") == {"": 6} and bare.json["accepted_by_position"] == [0, 3]


def test_promoted_of_a_new_repository_is_the_bare_base(collected: Callable[..., Said], tmp_path: Path) -> None:
    done = collected("--adapter", "promoted", target="new.db")
    assert done.code == 0 and "promoted: no adapter is live, so the bare base" in done.err
    assert signed("new.db", "t") == {"": 6}


@pytest.mark.slow
def test_promoted_that_cannot_be_used_is_one_line(
    typed: Callable[..., Said], collected: Callable[..., Said], db: str, tmp_path: Path
) -> None:
    with ArtifactDAG.load(db) as dag:
        before = dag.last_seq
    assert "no learner 'you' in " in collected("--adapter", "promoted:you").error
    assert "names its adapter, too" in collected("--adapter", "x", "--model", "promoted").error
    (folder_of(tmp_path, 3) / "adapter_model.safetensors").write_bytes(b"other")
    assert "edited by hand" in collected("--adapter", "promoted").error
    (tmp_path / "promoted").mkdir()
    assert "give the folder's absolute path" in collected("--adapter", "promoted").error
    (tmp_path / "promoted").rmdir()
    evaluated = typed(
        "evaluate", "specs.jsonl", "--guard", "strictly:guard", "-o", "out", "--generator", "replay",
        "--adapter", "promoted",
    )  # fmt: skip
    assert "name it with --db" in evaluated.error and evaluated.code == 2
    with ArtifactDAG.load(db) as dag:
        assert dag.last_seq == before


@pytest.mark.slow
def test_of_several_learners_one_is_named(collected: Callable[..., Said], db: str, tmp_path: Path) -> None:
    with ArtifactDAG.load(db) as dag:
        folder = round_of(dag, tmp_path, 1, ["a0"], learner="other", seed=77)
    assert "has 2 learners (me, other); name one: promoted:LEARNER" in collected("--adapter", "promoted").error
    assert collected("--adapter", "promoted:other").code == 0
    assert signed(db, "t") == {adapter_digest(folder): 3}


@pytest.mark.slow
def test_the_promoted_model_brings_its_base(
    typed: Callable[..., Said], collected: Callable[..., Said], db: str, tmp_path: Path
) -> None:
    collected("--adapter", "promoted")  # writes the files
    with ArtifactDAG.load(db) as dag:
        round_of(dag, tmp_path, 4, ["a0"], plan={"base_model": str(tmp_path / "answers.jsonl")})
    found = typed(
        "evaluate", "specs.jsonl", "--guard", "strictly:guard", "-o", "out", "--generator", "replay",
        "--model", "promoted", "--db", db, "--rmax", 2, "--json",
    )  # fmt: skip
    assert found.code == 0, found.err
    said = found.json
    assert (said["model"], said["adapter"]) == ("answers.jsonl", str(folder_of(tmp_path, 4)))
    assert (said["base"]["first_attempt"]["rate"], said["candidate"]["first_attempt"]["rate"]) == (0.0, 1.0)
    with ArtifactDAG.load(db) as dag:
        assert dag.readings()[-1].adapter == adapter_digest(folder_of(tmp_path, 4))
        assert lineage.live_adapter(dag, "me") is not None


def test_a_server_is_asked_for_promoted_by_its_name_there(db: str, tmp_path: Path) -> None:
    from guardlearn.cli.options import answering, chosen_weights

    live = folder_of(tmp_path, 3)
    for asked, served in (("promoted", "promoted"), ("promoted:me", "promoted"), ("lora-7=promoted", "lora-7")):
        chosen = chosen_weights("openai", "served-base", Path(asked), db)
        assert (chosen.model, str(chosen.adapter)) == ("served-base", f"{served}={live}")
        known = answering("openai", *chosen)
        assert known.digest == adapter_digest(live) and known.folder == live
    assert chosen_weights("openai", "served-base", Path("lora-7"), None).adapter == Path("lora-7")
    assert chosen_weights("transformers", None, None, None) == ("demo", None)
