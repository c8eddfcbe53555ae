"""What the browser says an item becomes is what a job made of it holds: the same rows, the same tokens with loss."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from databases import Files
from guardlearn.dag import ArtifactDAG
from guardlearn.errors import RepositoryError, UsageError
from guardlearn.jobs import TrainingConfig, write_job
from guardlearn.report.masks import masked_rows
from guardlearn.traces import extract_traces
from guardlearn.types import ArtifactStatus, RepositoryItem, Side
from guardlearn.ui.shapes import ROWS_SHOWN, VIEWS, Shaped, Shaping, shape_item

REJECTED, ACCEPTED = ArtifactStatus.REJECTED, ArtifactStatus.ACCEPTED
HOSTILE = "<script>alert(1)</script> \x1b[31m <|im_end|>\n"


def chain(dag: ArtifactDAG, name: str, retries: int, **given: Any) -> str:
    """Append a chain that is accepted after so many retries; return the accepted item's id."""
    before = None
    for attempt in range(retries + 1):
        last = attempt == retries
        fields = {
            "id": f"{name}/{attempt}",
            "parent_id": before,
            "specification": f"Write the function `def add(x: int, y: int) -> int:`. {name}",
            "constraints": "Use type hints and a docstring.",
            "artifact": f"def add(x, y):\n    return x + {attempt}\n",
            "feedback": "" if last else f"House style: the body must start with a one-line docstring ({attempt})",
            "status": ACCEPTED if last else REJECTED,
            "group": "g",
        }
        dag.append(RepositoryItem(**fields | given))
        before = f"{name}/{attempt}"
    assert before is not None
    return before


@pytest.fixture
def dag(sqlite_files: Files):
    with sqlite_files.repository() as opened:
        opened.assign_side("g", Side.TRAIN)
        yield opened


@pytest.mark.parametrize(
    ("view", "config"),
    [
        ("first_attempt", {"views": ("first_attempt",)}),
        ("repair", {"views": ("repair",)}),
        ("both", {}),
        ("both", {"retry": "artifact", "layout": "guide"}),
        ("preference", {"method": "dpo"}),
        ("verdict", {"method": "kto"}),
    ],
)
def test_rows_and_masks_are_those_of_the_job(
    dag: ArtifactDAG, tiny_model: Path, tmp_path: Path, view: str, config: dict[str, Any]
) -> None:
    name = chain(dag, "one", retries=2, feedback=HOSTILE)
    settings = TrainingConfig(**config)
    extraction = extract_traces(dag, "all", sides=(Side.TRAIN,), **settings.extraction)
    write_job(tmp_path / "job", extraction, tiny_model, settings)
    job = [json.loads(line) for line in (tmp_path / "job" / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    shaped = shape_item(dag, name, view, Shaping(settings, tiny_model))
    assert (shaped.tokens, shaped.unusable, shaped.rows_left_out) == (True, "", 0)
    expected = {
        (row["id"], label): {**row, "completion": row[field]} for row in job for field, label in answers_of(row).items()
    }
    found = {(row.id, answer.label): answer for row in shaped.rows for answer in row.answers}
    assert found.keys() == expected.keys()
    assert {row.id: row.weight for row in shaped.rows} == {row["id"]: row["weight"] for row in job}
    tokenizer = Shaping(settings, tiny_model).tokenizer
    for key, answer in found.items():
        (masked,) = masked_rows([expected[key]], tokenizer, settings.max_length)
        assert answer.masked == masked
        assert answer.prompt == tuple(expected[key]["prompt"])
        assert answer.completion == expected[key]["completion"]


def answers_of(row: dict[str, Any]) -> dict[str, str]:
    if "chosen" in row:
        return {"chosen": "chosen", "rejected": "rejected"}
    if "label" in row:
        return {"completion": "accepted" if row["label"] else "rejected"}
    return {"completion": "imitated"}


@pytest.mark.slow
def test_without_a_model_rows_are_the_same_messages_and_no_library_is_loaded(
    sqlite_files: Files, tiny_model: Path
) -> None:
    with sqlite_files.installed() as place, ArtifactDAG.load(place.target) as dag:
        name = chain(dag, "one", retries=1)
        for view in VIEWS:
            bare, told = (shape_item(dag, name, view, Shaping(model=model)) for model in (None, tiny_model))
            assert [(row.id, row.weight, [a.completion for a in row.answers]) for row in bare.rows] == [
                (row.id, row.weight, [a.completion for a in row.answers]) for row in told.rows
            ]
            assert all(answer.masked is None for row in bare.rows for answer in row.answers)
            assert (bare.tokens, told.tokens) == (False, True)
        script = (
            "import sys; from guardlearn.dag import ArtifactDAG; from guardlearn.ui.shapes import Shaping, shape_item\n"
            f"with ArtifactDAG.load({place.target!r}, read_only=True) as dag:\n"
            f"    rows = shape_item(dag, {name!r}, 'both', Shaping()).rows\n"
            "print(len(rows), [name for name in ('torch', 'transformers') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "2 []"


def test_what_is_no_row_is_said_with_its_reason(dag: ArtifactDAG) -> None:
    name = chain(dag, "one", retries=0)
    only = shape_item(dag, name, "both", Shaping())
    assert [row.view for row in only.rows] == ["first_attempt"]
    assert only.left_out == [(f"{name}/repair", "no history for the repair view")]
    assert shape_item(dag, name, "repair", Shaping()).rows == []
    assert shape_item(dag, name, "preference", Shaping()).left_out == [
        (name, "no rejected attempt before it to be preferred to")
    ]


def test_a_rejected_attempt_is_a_row_of_the_verdict_view_alone(dag: ArtifactDAG) -> None:
    chain(dag, "one", retries=1)
    for view in VIEWS:
        shaped = shape_item(dag, "one/0", view, Shaping())
        assert bool(shaped.rows) == (view == "verdict")
    assert [answer.label for row in shaped.rows for answer in row.answers] == ["rejected"]
    assert "not accepted" in shape_item(dag, "one/0", "both", Shaping()).unusable


@pytest.mark.parametrize(("event", "reason"), [("exclude", "excluded"), ("redact", "redacted")])
def test_what_an_extraction_would_not_take_says_so(dag: ArtifactDAG, event: str, reason: str) -> None:
    name = chain(dag, "one", retries=1)
    dag.append_event(name, event, actor="ann", reason="private")
    shaped = shape_item(dag, name, "both", Shaping())
    assert shaped.unusable == reason
    assert bool(shaped.rows) == (event == "exclude")


def test_held_out_is_not_trained_on(sqlite_files: Files) -> None:
    with sqlite_files.repository() as dag:
        dag.assign_side("g", Side.HELD_OUT)
        assert shape_item(dag, chain(dag, "one", 1), "both", Shaping()).unusable.startswith("held-out side")


def test_texts_that_no_tokenizer_reads_are_shown_without_tokens(dag: ArtifactDAG, tiny_model: Path) -> None:
    name = chain(dag, "one", retries=1, feedback="a lone \ud800 surrogate")
    shaped = shape_item(dag, name, "both", Shaping(model=tiny_model))
    assert len(shaped.rows) == 2
    assert not shaped.tokens
    assert shaped.unusable == "NUL or lone surrogates in its text"


def test_a_row_that_does_not_fit_is_left_out_as_in_the_job(dag: ArtifactDAG, tiny_model: Path) -> None:
    name = chain(dag, "one", retries=1)
    shaped = shape_item(dag, name, "both", Shaping(TrainingConfig(max_length=16), tiny_model))
    assert shaped.rows == []
    assert [reason for _, reason in shaped.left_out][:1] == ["first_attempt row longer than 16 tokens"]


def test_of_many_rows_some_are_shown_and_all_are_counted(dag: ArtifactDAG) -> None:
    shaped: Shaped = shape_item(dag, chain(dag, "one", retries=ROWS_SHOWN), "preference", Shaping())
    weights = {row.weight for row in shaped.rows}
    whole = 2 * ROWS_SHOWN - 1  # the first attempt has no history for the repair view
    assert (len(shaped.rows), shaped.rows_left_out) == (ROWS_SHOWN, whole - ROWS_SHOWN)
    assert weights == {1 / whole}


def test_an_unknown_view_or_item_is_one_line(dag: ArtifactDAG) -> None:
    with pytest.raises(UsageError, match="view 'verse' is unknown; allowed: first_attempt, repair"):
        shape_item(dag, "one/0", "verse", Shaping())
    with pytest.raises(RepositoryError, match="no item 'nobody'"):
        shape_item(dag, "nobody", "both", Shaping())
