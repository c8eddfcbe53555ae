"""What the sandbox costs: the same check by a plain subprocess and in the sandbox, side by side.

    python benchmarks/sandbox.py [ROUNDS]

Three checks. `python`: a script that runs a function on its cases and prints what it returns. `cases`: the demo's
guard against `python -c` doing the same. `pytest`: a suite over a module; plain in one process, guarded in two
sandboxes. The two sides take turns, so that a busy machine slows both; printed are medians in milliseconds, their
ratio, and the quartiles of the ratios of single rounds. `none` is the limited process without a sandbox, where it runs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from guardlearn.demo.guard import HouseStyle
from guardlearn.errors import GuardError
from guardlearn.guards import checking, sandbox
from guardlearn.guards.process import Limits
from guardlearn.types import GuardContext, Specification

LIMITS = Limits(wall_seconds=120.0, cpu_seconds=60)
CODE = 'def f(x: int) -> int:\n    """Return x plus 2."""\n    return x + 2\n'
CASES = [[[n], n + 2] for n in range(5)]
SCRIPT = CODE + "import json, sys\nprint(json.dumps([f(n) for n in json.load(sys.stdin)]))\n"
SUITE = "from answer import f\n" + "".join(f"def test_{n}(): assert f({n}) == {n + 2}\n" for n in range(5))
PYTEST = ("-q", "--no-header", "--tb=short", "-p", "no:cacheprovider")
CONTEXT = GuardContext(
    specification=Specification(
        id="s", specification="x plus 2", metadata={"signature": "f(x: int) -> int", "cases": CASES}
    )
)


def plain_python(folder: Path) -> None:
    (folder / "answer.py").write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "answer.py"], input=b"[1, 2]", capture_output=True, cwd=folder, timeout=60, check=True
    )
    assert done.stdout == b"[3, 4]\n"


def sandboxed_python(use: str) -> None:
    done = sandbox.run_sandboxed(
        ["python3", "answer.py"], files={"answer.py": SCRIPT}, stdin=b"[1, 2]", limits=LIMITS, sandbox=use
    )
    assert done.stdout == b"[3, 4]\n", done


def plain_cases(folder: Path) -> None:
    script = CODE + f"import json\nprint(json.dumps([f(*arguments) for arguments, _ in {CASES!r}]))\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, cwd=folder, timeout=60, check=True)
    assert json.loads(done.stdout) == [expected for _, expected in CASES]


def plain_pytest(folder: Path) -> None:
    (folder / "answer.py").write_text(CODE, encoding="utf-8")
    (folder / "test_answer.py").write_text(SUITE, encoding="utf-8")
    command = [sys.executable, "-B", "-m", "pytest", *PYTEST, str(folder)]
    subprocess.run(command, capture_output=True, cwd=folder, timeout=120, check=True)


def sandboxed_pytest(use: str) -> None:
    done = checking.run_tests(CODE, {"test_answer.py": SUITE}, sandbox=use, options=PYTEST)
    assert done.passed, done.output


def seconds(action: Callable[[], None]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def compared(plain: Callable[[Path], None], guarded: Callable[[str], None], rounds: int) -> dict[str, object]:
    """Return medians of both sides and of their ratios; `none` is left out where it cannot run."""
    sides: dict[str, list[float]] = {"plain": [], "bubblewrap": [], "none": []}
    with tempfile.TemporaryDirectory() as folder:
        for use in ("bubblewrap", "none"):  # once to warm up, and to see whether it runs at all
            try:
                guarded(use)
            except GuardError:
                del sides[use]
        for _ in range(rounds):
            sides["plain"].append(seconds(lambda: plain(Path(folder))))
            for use in ("bubblewrap", "none"):
                if use in sides:
                    sides[use].append(seconds(lambda use=use: guarded(use)))
    found: dict[str, object] = {side: round(statistics.median(times) * 1e3, 1) for side, times in sides.items()}
    ratios = [sandboxed / bare for sandboxed, bare in zip(sides["bubblewrap"], sides["plain"], strict=True)]
    found["ratio"] = round(statistics.median(sides["bubblewrap"]) / statistics.median(sides["plain"]), 2)
    found["ratio_quartiles"] = [round(each, 2) for each in statistics.quantiles(ratios)]
    return found


def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    state = sandbox.state()
    if not state.works:
        print(json.dumps({"skipped": state.reason}))
        return 0
    checks = {
        "python": compared(plain_python, sandboxed_python, rounds),
        "cases": compared(plain_cases, lambda use: _judged(HouseStyle(limits=LIMITS, sandbox=use)), rounds),
        "pytest": compared(plain_pytest, sandboxed_pytest, max(5, rounds // 4)),
    }
    print(json.dumps({"rounds": rounds, "milliseconds": checks}))
    return 0


def _judged(guard: HouseStyle) -> None:
    verdict = guard(CODE, CONTEXT)
    assert verdict.passed, verdict.feedback


if __name__ == "__main__":
    sys.exit(main())
