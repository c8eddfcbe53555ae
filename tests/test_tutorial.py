"""docs/tutorial.md runs as it is written, with the small real model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from guardlearn import ArtifactDAG, Source, predicates
from guardlearn.demo.model import PIP_COMMAND
from guardlearn.guards import sandbox

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.skipif(not sandbox.state().works, reason=f"no sandbox works here: {sandbox.state().reason}")
@pytest.mark.model
def test_the_tutorial_runs_as_written(tmp_path):
    """Its shell blocks, one after the other in one shell, in a folder of their own."""
    script = tmp_path / "tutorial.sh"
    script.write_text("set -eu\n" + "\n".join(BLOCKS))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(script)],
        cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with ArtifactDAG.load(tmp_path / "first" / "runs.db", read_only=True) as dag:
        items = list(dag.extract(order_by="seq"))
        refined = {item.group for item in dag.extract(predicates.refinement())}
        (human,) = dag.extract(predicates.refinement() & predicates.source("human"))
        assert dag.verify().problems == []
    specs = [json.loads(line) for line in (tmp_path / "first" / "specs.jsonl").read_text().splitlines()]
    assert {item.group for item in items} == {spec["group"] for spec in specs}
    assert not any(item.status.value == "pending" for item in items)
    assert all(item.facts.attempt <= 2 for item in items if item.source is Source.GENERATOR)
    assert len(refined) >= 2, "the model refined nothing: the tasks must be within its reach"
    assert human.group == "roman" and [entry.feedback != "" for entry in human.history] == [True] * 2
    rows = [json.loads(line) for line in (tmp_path / "first" / "rows.jsonl").read_text().splitlines()]
    assert any("tens_words" in json.dumps(row) for row in rows)
    assert "nothing wrong found" in done.stderr
    assert (tmp_path / "mine" / "specs.jsonl").read_text() == (tmp_path / "first" / "specs.jsonl").read_text()


def test_what_it_installs_is_what_there_is():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    install = TUTORIAL.split("## Install")[1].split("```")[1]
    assert PIP_COMMAND in install
    (named,) = re.findall(r"guardlearn\[([\w,]+)\]", install)
    assert set(named.split(",")) <= set(extras)


def test_every_command_is_in_a_block_that_runs_or_needs_what_no_test_has():
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", TUTORIAL, re.DOTALL | re.MULTILINE)
    other = [block for kind, block in fenced if not kind]
    assert len(BLOCKS) == 7 and len(other) == 2
    assert all(line.startswith(("pip install", "guardlearn collect")) for block in other for line in block.splitlines())
    assert "--generator openai" in other[1]
