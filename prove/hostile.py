"""Every hostile artifact, with forty good ones mixed between them, goes through the demo's guard and through a pytest
suite that runs apart from it, in bubblewrap, started by root and by a user. None is accepted, every good one is, each
verdict comes within its limits, and afterwards the host is as it was: files, listeners, processes."""

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import attacked
import hostile
from guardlearn.guards import sandbox
from users import run_as_user

TESTS = Path(attacked.__file__).parent
PIECE = 20  # attacks of one process, so that a proof that is interrupted goes on


def run(work):
    state = sandbox.state()
    assert state.works, state.reason
    log = work / "hostile.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    names = list(hostile.hostile())
    pieces = [
        {"user": user, "guard": guard, "names": names[start : start + PIECE], "goods": 40 if start == 0 else 4}
        for user in (False, True)
        for guard in ("house_style", "tests")
        for start in range(0, len(names), PIECE)
    ]
    with log.open("a") as file:
        for piece in pieces[len(done) :]:
            asked = {key: piece[key] for key in ("guard", "names", "goods")}
            found = _as_user(asked) if piece["user"] else attacked.judge(Path(tempfile.mkdtemp()), **asked)
            done.append({**piece, **found, "asked_of": "user" if found["user"] else "root"})
            file.write(json.dumps(done[-1]) + "\n")
            file.flush()
    verdicts = [{**verdict, "guard": each["guard"]} for each in done for verdict in each["verdicts"]]
    attacks = [verdict for verdict in verdicts if verdict["name"] != "good"]
    goods = [verdict for verdict in verdicts if verdict["name"] == "good"]
    result = {
        "attacks": len(names),
        "bubblewrap": state.bwrap.origin,
        "verdicts": len(verdicts),
        "started_by": Counter(each["asked_of"] for each in done),
        "attacks_by_status": Counter(verdict["status"] for verdict in attacks),
        "good_by_status": Counter(verdict["status"] for verdict in goods),
        "causes": Counter(f"{verdict['guard']}: {verdict['cause']}" for verdict in attacks),
        "longest_seconds": round(max(verdict["seconds"] for verdict in verdicts), 1),
        "secrets_told": sum(hostile.SECRET in verdict["feedback"] for verdict in verdicts),
        "changes": [change for each in done for change in each["changes"]],
        "left_running": [each for piece in done for each in piece["leftovers"]],
        "not_right": [
            verdict
            for verdict in verdicts
            if verdict["status"] != ("accepted" if verdict["name"] == "good" else "rejected")
        ],
    }
    expected_users = {"root", "user"} if os.geteuid() == 0 else {"user"}
    holds = (
        not (result["not_right"] or result["changes"] or result["left_running"] or result["secrets_told"])
        and set(result["started_by"]) == expected_users
        and result["longest_seconds"] < attacked.TEST_LIMITS.wall_seconds + 10
    )
    return result, holds


def _as_user(asked):
    done = run_as_user(
        f"import os, sys; sys.path[:0] = {[str(TESTS), str(TESTS.parent / 'src')]!r}; os.chdir('/tmp')\n"
        "import json, tempfile, attacked; from pathlib import Path\n"
        "print(json.dumps(attacked.judge(Path(tempfile.mkdtemp()), **json.loads(sys.argv[1]))))",
        json.dumps(asked),
        timeout=7200,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
