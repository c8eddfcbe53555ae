"""The demo as committed: base under 10 %, adapter at least 85 %, lower bound of the difference clustered by group above
70 points, E[attempts] at R_max 4 at most 1.3, on at least 100 held-out specs in at least 37 groups."""

import json
import subprocess
import sys


def run(work, *options):
    command = [sys.executable, "-m", "guardlearn", "demo", "--dir", "demo", "--json", *options]
    done = subprocess.run(command, cwd=work, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    evidence = result["evidence"]
    evidence.pop("per_spec")
    return result, holds(evidence)


def holds(evidence):
    base, candidate, difference = evidence["base"], evidence["candidate"], evidence["difference"]
    return bool(
        evidence["specs"] >= 100
        and evidence["groups"] >= 37
        and base["first_attempt"]["rate"] < 0.10
        and candidate["first_attempt"]["rate"] >= 0.85
        and difference["low"] > 0.70
        and candidate["expected_attempts"] <= 1.3
    )
