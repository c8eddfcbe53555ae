"""Training throughput: ours, the guide's section 5 and TRL's defaults on the same rows, and each ingredient of ours.

    python benchmarks/training.py [--job FOLDER] [--rows 64] [--parts arms,ingredients] [--json FILE]

The rows are those of the demo: its specifications and its guard, collected, extracted and written as a job, with
answers made from the specifications (--job takes the rows of any job). Each arm is a process of its own
(`training_arms.py`); the processes of a comparison take turns, a few steps each, so that a busy machine slows them
alike and a ratio is taken between neighbours. Then each arm's adapter is measured on the validation rows in the same
way. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from figures_models import training_summary
from machine import keep, measured, note
from training_arms import ARMS, INGREDIENTS, ROWS_A_STEP

HERE = Path(__file__).parent
PARTS = ("arms", "ingredients")
TURN = 2
"""Steps of a turn."""
SIDE_BY_SIDE = 3
"""Ingredients measured beside one `ours`: each holds a model in memory."""

Record = dict[str, Any]


class Refused(Exception):
    """One line for the user."""


class Arm:
    """One process that trains, and what it has reported."""

    def __init__(self, name: str, job: Path, model: Path, folder: Path, rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.turns = name, []  # type: tuple[str, list[Record]]
        command = [sys.executable, str(HERE / "training_arms.py"), name, str(job), str(model), str(folder)]
        self.errors = (folder / "stderr").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            [*command, "--rows", str(rows), "--turn", str(TURN)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(name),
        )

    def read(self) -> Record:
        """Return the next thing it says."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            said: Record = json.loads(line)
            return said
        self.errors.seek(0)
        lines = self.errors.read().strip().splitlines() or ["it said nothing"]
        raise Refused(f"the arm {self.name} failed: {lines[-1]}")

    def go(self) -> Record:
        """Let it go on for a turn, or to its end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead: `read` says why
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        return self.read()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def environment(arm: str) -> dict[str, str]:
    """Return an arm's environment: a job's training process gets settings for its allocator and its threads."""
    from guardlearn.jobs import running

    plain = {name: value for name, value in os.environ.items() if name not in running._ENVIRONMENT}
    return plain if arm in {"guide", "trl", "environment"} else plain | running._ENVIRONMENT


def side_by_side(names: Sequence[str], job: Path, model: Path, work: Path, rows: int) -> dict[str, Record]:
    """Train the arms in turns; return each one's record: what it said last, with its turns."""
    arms: list[Arm] = []
    try:
        for name in names:
            note(f"loading {name}")
            arms.append(Arm(name, job, model, work / name, rows))
            arms[-1].read()
        for turn in range(rows // ROWS_A_STEP // TURN):
            for arm in arms if turn % 2 == 0 else arms[::-1]:  # nobody always comes first
                note(f"{arm.name}, turn {turn + 1} of {rows // ROWS_A_STEP // TURN}")
                arm.turns.append(arm.go())
        return {arm.name: arm.go() | {"turns": arm.turns} for arm in arms}
    finally:
        for arm in arms:
            arm.end()


def measure(options: argparse.Namespace, work: Path) -> Iterator[Record]:
    """Yield the records so far after each part."""
    from guardlearn.demo.model import demo_model
    from guardlearn.training import backends

    model, job = options.model or demo_model(), options.job or work / "job"
    if options.job is None:
        note("collecting the demo's rows")
        write_job(job, model)
    for name in ("train.jsonl", "validation.jsonl"):
        if not (job / name).is_file():
            raise Refused(f"{job} holds no {name}; a job folder is what `guardlearn train` writes and trains")
    found = sum(1 for _ in (job / "train.jsonl").open(encoding="utf-8"))
    whole = ROWS_A_STEP * TURN
    rows = min(options.rows, found) // whole * whole
    if rows < whole:
        raise Refused(f"{job} has {found} rows; {whole} are the fewest that can be compared")
    on = measured(model)
    entry: Record = {}
    if "arms" in options.parts:
        entry["measured"] = on
        names = [*ARMS] + ([] if backends.lacks() else ["unsloth"])
        entry["arms"] = side_by_side(names, job, model, work / "arms", rows)
        note("validation losses")
        adapters = [str(work / "arms" / name / name) for name in names]
        command = [sys.executable, str(HERE / "training_arms.py"), "losses", str(job), str(model), *adapters]
        entry["validation_loss"] = json.loads(_run(command, environment("losses")))
        entry["validation_rows"] = sum(1 for _ in (job / "validation.jsonl").open(encoding="utf-8"))
        yield entry
    if "ingredients" in options.parts:
        entry |= {"ingredients": {}, "ingredients_measured": on}
        for first in range(0, len(INGREDIENTS), SIDE_BY_SIDE):
            names = [*INGREDIENTS][first : first + SIDE_BY_SIDE]
            records = side_by_side(["ours", *names], job, model, work / f"without-{first}", min(rows, 2 * whole))
            entry["ingredients"] |= {name: {"ours": records["ours"], "without": records[name]} for name in names}
            yield entry
    on["load_average"].append(round(os.getloadavg()[0], 1))
    yield entry


def write_job(folder: Path, model: Path) -> None:
    """Collect the demo's training specifications with its guard, and write the job that the demo would train.

    The answers are written from the specifications, as the demo's model writes them: first without a docstring, which
    the guard rejects, then with one. So the rows are the same on every machine, and there in seconds.
    """
    from guardlearn.collect import collect
    from guardlearn.dag import ArtifactDAG
    from guardlearn.demo.guard import house_style
    from guardlearn.demo.run import DEMO_TRAINING, R_MAX, place_sides
    from guardlearn.generators.replay import ReplayGenerator
    from guardlearn.jobs import write_job
    from guardlearn.prompts import Renderer
    from guardlearn.traces import extract_traces
    from guardlearn.types import Side

    folder.parent.mkdir(parents=True, exist_ok=True)
    with ArtifactDAG.create(str(folder.with_name("runs.db"))) as dag:
        sides = place_sides(dag)
        specs = sides[Side.TRAIN] + sides[Side.VALIDATION]
        generator = ReplayGenerator({spec.id: answers(spec.specification) for spec in specs})
        collect(dag, specs, generator, house_style, renderer=Renderer(), r_max=R_MAX)
        write_job(folder, extract_traces(dag, "refinement"), model, DEMO_TRAINING)


def answers(specification: str) -> list[str]:
    """Return two answers to one of the demo's specifications."""
    parts = re.fullmatch(r"Write the function `(.*)`\. It returns (.*): `(.*)`", specification)
    assert parts is not None, specification
    header, words, body = parts.groups()
    docstring = f'    """Return {words}."""'
    return [f"```python\n{header}\n{inside}    {body}\n```\n" for inside in ("", f"{docstring}\n")]


def _run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise Refused(f"{' '.join(command)} failed: {reason}")
    return done.stdout


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; refused ones end the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", type=Path, help="a job folder with rows; None: collect the demo's")
    parser.add_argument("--model", type=Path, help="model folder that the job was written for; None: the demo's")
    parser.add_argument("--rows", type=int, default=64, help="rows that the arms train on, once each")
    parser.add_argument("--parts", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--work", default=tempfile.gettempdir(), help="folder for what the arms leave")
    parser.add_argument("--json", type=Path, help="file to put the records in; other benchmarks' in it stay")
    return parser.parse_args(arguments)


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := set(parts) - set(PARTS):
        raise argparse.ArgumentTypeError(f"unknown parts {', '.join(sorted(unknown))}; allowed are {', '.join(PARTS)}")
    return parts


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the ratios as one JSON object; returns the exit code."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends as Ctrl-C does: with what it made removed
    entry: Record = {}
    try:
        with tempfile.TemporaryDirectory(prefix="guardlearn-bench-", dir=options.work) as work:
            for entry in measure(options, Path(work)):
                if options.json:
                    keep(options.json, "training", entry)
    except Refused as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; what it made is removed", file=sys.stderr)
        return 130
    print(json.dumps(training_summary(entry)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
