"""A lease: one process at a time, and gone with its holder, on both databases."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from databases import Place
from guardlearn import ArtifactDAG
from guardlearn.errors import RepositoryError

pytestmark = pytest.mark.usefixtures("warm_starts")

HOLD = """
import sys, time
from guardlearn import ArtifactDAG
with ArtifactDAG.load(sys.argv[1]) as dag, dag.lease("loop"):
    print("held", flush=True)
    time.sleep(60)
"""


def free(place: Place, name: str = "loop") -> bool:
    try:
        with ArtifactDAG.load(place.target) as dag, dag.lease(name):
            return True
    except RepositoryError as error:
        assert "another process holds" in str(error) and name in str(error)
        return False


def test_one_holds_it_at_a_time(installed: Place) -> None:
    with ArtifactDAG.load(installed.target) as dag, dag.lease("loop"):
        assert not free(installed)
        assert free(installed, "loop of another")
        with dag.writing() as connection:  # it does not stand in a writer's way
            assert connection is not None
    assert free(installed)


def test_a_dead_process_holds_nothing(installed: Place) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, installed.target], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        assert not free(installed)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        patience = time.monotonic() + 20
        while not free(installed):  # a server needs a moment to see that its client has gone
            assert time.monotonic() < patience
            time.sleep(0.05)


def test_an_error_inside_gives_it_back(installed: Place) -> None:
    with (
        ArtifactDAG.load(installed.target) as dag,
        pytest.raises(ZeroDivisionError),
        dag.lease("loop"),
    ):
        raise ZeroDivisionError
    assert free(installed)
