"""`guardlearn collect` with the demo's guard and its small model behind a real OpenAI-compatible server (`transformers
serve`): once directly, and once through a proxy that injects every fault (429, 5xx, half a body, nothing, silence, …)
and is asked by a collection that is killed with SIGKILL in the middle and run again. Both times every chain comes to
its end, nothing that was answered is lost, no attempt is there twice, `verify` is clean, and the key is in no file and
no output. That the two runs hold equal answers (a request's seed follows from its key) is stated, not promised."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from faulty_server import FAULTS, OK, FaultyServer, serving
from guardlearn.dag import ArtifactDAG
from guardlearn.demo import demo_model, specifications

SPECS = 8
R_MAX = 3
TOKENS = 96
KEY = "sk-proof-1618033988749894"


def run(work):
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    model = sampling(demo_model(), work / "model")
    with serve(work) as url:
        direct = collect(work / "direct", url, model)
        faulty = FaultyServer(lambda request: forwarded(url, request), schedule, retry_after="0.5")
        with serving(faulty):
            through = killed_once(work / "through", faulty, model)
    texts = direct.pop("texts"), through.pop("texts")
    result = {
        "server": "transformers serve, the demo's model",
        "specs": SPECS,
        "r_max": R_MAX,
        "direct": direct,
        "through_faults": through,
        "equal_answers": sum(texts[0][name] == text for name, text in texts[1].items() if name in texts[0]),
    }
    sound = all(
        not found["unfinished_chains"] and not found["twice"] and not found["problems"] and not found["key_found"]
        for found in (direct, through)
    )
    extra = through["answered"] - through["attempts"]
    return result, sound and set(through["faults"]) == set(FAULTS) and 0 <= extra <= through["in_flight_at_most"]


def sampling(model, folder):
    """Return the model's folder with sampling switched on: else `transformers serve` takes the likeliest token."""
    folder.mkdir()
    for file in model.iterdir():
        if file.name != "generation_config.json":
            (folder / file.name).symlink_to(file)
    settings = json.loads((model / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(settings | {"do_sample": True}))
    return folder.resolve()


def schedule(number, messages):
    """A prompt's first try, and every second prompt's second, meets a fault."""
    kind = schedule.kinds.setdefault(messages[-1]["content"], len(schedule.kinds))
    return FAULTS[(2 * kind + number) % len(FAULTS)] if number <= 1 + kind % 2 else OK


schedule.kinds = {}


def forwarded(url, request):
    body = json.dumps({name: value for name, value in request.items() if name != "headers"}).encode()
    asked = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=600) as answer:
        return json.load(answer)


class serve:
    """`transformers serve` on a free port of loopback, without the hub."""

    def __init__(self, work):
        self.log = work / "serve.log"

    def __enter__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = str(Path(sys.executable).with_name("transformers"))
        command = [
            program,
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--device",
            "cpu",
            "--dtype",
            "float32",
        ]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log)
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                return f"http://127.0.0.1:{port}/v1"
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.25)
        self.process.kill()
        raise SystemExit(f"transformers serve did not start: {self.log.read_text()[-2000:]}")

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


def prepare(folder, url):
    folder.mkdir()
    lines = [json.dumps(line) for line in map(plain, specifications("train")[:: len(specifications("train")) // SPECS])]
    (folder / "specs.jsonl").write_text("\n".join(lines[:SPECS]) + "\n")
    (folder / "guardlearn.toml").write_text(f'[openai]\nbase_url = "{url}"\nconcurrency = 2\nread_seconds = 900.0\n')


def plain(specification):
    import msgspec

    return msgspec.to_builtins(specification)


def start(folder, model):
    command = [
        sys.executable, "-m", "guardlearn", "collect", "specs.jsonl", "--db", "runs.db", "--generator", "openai",
        "--model", str(model), "--guard", "guardlearn.demo:house_style", "--rmax", str(R_MAX), "--temperature", "0.5",
        "--max-new-tokens", str(TOKENS), "--stop", "\n```\n", "--seed", "1", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def collect(folder, url, model):
    prepare(folder, url)
    return looked_at(folder, start(folder, model))


def killed_once(folder, faulty, model):
    prepare(folder, faulty.url)
    process = start(folder, model)
    while faulty.faults[OK] < SPECS and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = faulty.faults[OK]
    found = looked_at(folder, start(folder, model))
    return found | {
        "killed_after_answers": before,
        "answered": faulty.faults[OK],
        "in_flight_at_most": 8,  # chains under way: twice the lanes and the guards at work
        "faults": {name: count for name, count in sorted(faulty.faults.items()) if name != OK},
    }


def looked_at(folder, process):
    out, err = process.communicate()
    if process.returncode not in (0, 1):
        raise SystemExit(f"collect ended with {process.returncode}: {err[-2000:]}")
    with ArtifactDAG.load(folder / "runs.db") as dag:
        problems = len(dag.verify().problems)
        items = list(dag.extract(order_by="seq"))
    names = Counter(f"{item.metadata['spec_id']}/{item.facts.attempt}" for item in items)
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return {
        "attempts": len(items),
        "accepted": sum(item.status.value == "accepted" for item in items),
        "unfinished_chains": len(json.loads(out)["unfinished_chains"]),
        "twice": sum(count - 1 for count in names.values()),
        "problems": problems,
        "key_found": sum(KEY.encode() in content for content in [*files, out.encode(), err.encode()]),
        "completion_tokens": sum(item.metadata["completion_tokens"] for item in items),
        "texts": {f"{item.metadata['spec_id']}/{item.facts.attempt}": item.artifact for item in items},
    }
