"""Run the benchmarks one after another; each prints one JSON object with ratios or rates of one run."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ["repository.py", "training.py", "generation.py", "sandbox.py"]


def main() -> int:
    failed = 0
    for name in BENCHMARKS:
        print(f"{name}:", flush=True)
        failed |= subprocess.run([sys.executable, str(Path(__file__).with_name(name))], check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
