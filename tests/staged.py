"""Job folders of every method, from the made-up traces: what `write_job` leaves, with rows put in by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guardlearn.digests import digest_bytes
from training_samples import sample_job

_OVERFITS = {"max_steps": 24, "learning_rate": 5e-3, "batch_size": 4, "eval_steps": 2}


def staged_job(folder: Path, model: Path, method: str, **settings: Any) -> Path:
    """Write a job of a method; `settings` stand in its job.toml, whatever they are."""
    known = {name: settings.pop(name) for name in ("epochs", "max_steps", "save_steps", "learning_rate", "batch_size")
             if name in settings}  # fmt: skip
    sample_job(folder, model, **known)
    first, *second = method.split("+")
    for side in ("train", "validation"):
        rows = _lines(folder / f"{side}.jsonl")
        _write(folder / f"{side}.jsonl", rows if first == "sft" else rows_of(first, rows))
        for name in second:
            _write(folder / f"{side}.second.jsonl", rows_of(name, rows))
    said = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    text = (folder / "job.toml").read_text(encoding="utf-8").replace('method = "sft"', f'method = "{method}"\n{said}')
    (folder / "job.toml").write_text(text, encoding="utf-8")
    agree(folder)
    return folder


def rows_of(method: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of kto or dpo, made of SFT's: what was accepted, and the same without its docstring."""
    made = []
    for row in rows:
        about = {name: row[name] for name in ("view", "weight", "prompt", "trace_id")}
        worse = row["completion"].replace('    """Return a sum."""\n', "")
        if method == "dpo":
            made.append({"id": f"{row['id']}/pair", **about, "chosen": row["completion"], "rejected": worse})
        else:
            made.append({"id": f"{row['id']}/good", **about, "completion": row["completion"], "label": True})
            made.append({"id": f"{row['id']}/bad", **about, "completion": worse, "label": False})
    return made


def agree(folder: Path) -> None:
    """Make a job's manifest agree with its files, as someone who writes jobs by hand would."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = ("job.toml", *(path.name for path in folder.glob("*.jsonl") if path.name != "metrics.jsonl"))
    manifest["files"] = {name: digest_bytes((folder / name).read_bytes()) for name in files}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    return _lines(folder / "metrics.jsonl")


def result(folder: Path) -> dict[str, Any]:
    """Return result.json."""
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def weights(folder: Path) -> dict[str, Any]:
    """Return the weights of an adapter folder, by name."""
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def farthest(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the greatest difference of two adapters' weights."""
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def overfitting(folder: Path, model: Path, **settings: Any) -> Path:
    """Write a job whose validation loss falls and then rises again: its validation rows are those of another task."""
    job = staged_job(folder, model, "sft", **_OVERFITS, **settings)
    rows = _lines(job / "validation.jsonl")
    _write(job / "validation.jsonl", [row | {"completion": row["completion"][::-1]} for row in rows])
    agree(job)
    return job
