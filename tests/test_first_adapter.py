"""docs/first-adapter.md leads from a pytest suite to an adapter that is promoted or refused, as it is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from guardlearn import ArtifactDAG, Side, Specification, predicates
from guardlearn.guards import sandbox
from guardlearn.loop.planning import rounds_of
from shown import ROOT, blocks

PAGE = ROOT / "docs" / "first-adapter.md"
BLOCKS = [block.text for block in blocks(PAGE)]


def typed(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "page.sh").write_text("set -eu\n" + script, encoding="utf-8")
    environment = os.environ | {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    environment.pop("OMP_NUM_THREADS", None)  # a real model trains here: it takes every core
    return subprocess.run(["bash", "page.sh"], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_its_suite_can_show_something(tmp_path):
    """Without a model: the tasks are what the page says, and enough groups of them are kept for measuring."""
    done = typed(BLOCKS[0], tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "steps" / "specs.jsonl").read_text(encoding="utf-8").splitlines()
    specs = [msgspec.convert(json.loads(line), Specification) for line in lines]
    assert len(specs) == 78 == len({spec.group for spec in specs}) and "78 tasks" in PAGE.read_text(encoding="utf-8")
    with ArtifactDAG.create(tmp_path / "sides.db") as dag:
        dag.register(specs)
        assert dag.sides()[Side.HELD_OUT] >= 6


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.skipif(not sandbox.state().works, reason=f"no sandbox works here: {sandbox.state().reason}")
def test_the_page_leads_to_a_decision(tmp_path):
    done = typed("".join(BLOCKS), tmp_path)
    assert done.returncode == 0, done.stderr
    with ArtifactDAG.load(tmp_path / "steps" / "runs.db", read_only=True) as dag:
        assert dag.verify().problems == []
        steps = [(step.round, step.state.value) for each in rounds_of(dag) for step in each]
        learned = dag.count(predicates.refinement() & predicates.side("train"))
    assert steps[:-1] == [(1, state) for state in ("planned", "extracted", "trained", "measured")]
    assert steps[-1] in ((1, "promoted"), (1, "refused")) and learned >= 10
    measured = json.loads((tmp_path / "steps" / "rounds" / "001" / "evidence.json").read_text(encoding="utf-8"))
    assert measured["groups"] >= 6 and measured["difference"]["minimum_detectable"] > 0
    assert "superiority" in done.stdout
    assert (tmp_path / "steps" / "rounds" / "001" / "report.html").is_file()
