"""The README's program, run as it stands on examples/log.jsonl and the real model: before training the answer breaks
the house style, after it the answer keeps it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run(work):
    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    shutil.copy(ROOT / "examples" / "log.jsonl", work / "log.jsonl")
    (work / "program.py").write_text(program, encoding="utf-8")
    done = subprocess.run([sys.executable, "program.py"], cwd=work, stdout=subprocess.PIPE, text=True, check=True)
    before, after = done.stdout.split("before:\n")[1].split("after:\n")
    return {"stdout": done.stdout}, '"""Return ' in after and '"""Return ' not in before
