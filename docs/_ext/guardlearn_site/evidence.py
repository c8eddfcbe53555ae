"""What was proved, from docs/evidence/*.json as `make prove` leaves them: no figure of it is typed anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from guardlearn_site.links import DOCS, ROOT

__all__ = ["details", "files", "leaves", "noise", "proofs"]

EVIDENCE = DOCS / "evidence"
_SHOWN = 40
"""Figures of a proof that are shown; the file holds all."""


def files() -> dict[str, dict[str, Any]]:
    """Return name → what its proof left, in the order of names."""
    found = sorted(EVIDENCE.glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}


def proofs() -> str:
    """Return a table with a row for each proof; one that has left no evidence yet says so."""
    found = files()
    listed = re.search(r"^PROOFS = \[(.*?)\]", (ROOT / "prove" / "run.py").read_text(encoding="utf-8"), re.S | re.M)
    asked = re.findall(r'"(\w+)"', listed[1]) if listed else []
    rows = ["| proof | holds | date | machine | minutes | commit |", "|---|---|---|---|---|---|"]
    for name, proof in found.items():
        machine = proof["machine"]
        where = f"{machine['cores']} {machine['arch']} cores, {machine['memory_gib']:g} GiB, Python {machine['python']}"
        holds = "yes" if proof["holds"] is True else "**no**"
        minutes = f"{proof['seconds'] / 60:.1f}"
        rows.append(
            f"| [{name}](#{name}) | {holds} | {proof['date']} | {where} | {minutes} | `{proof['commit'][:10]}` |"
        )
    rows += [f"| {name} | not run yet | | | | |" for name in sorted(set(asked) - set(found))]
    return "\n".join(rows) + "\n"


def details() -> str:
    """Return a section for each proof: what it claims, whether that holds, and its figures, folded."""
    return "\n".join(line for name, proof in files().items() for line in _section(name, proof))


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (name, figure) for every number, truth value and short text in a proof's result, outer names first."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name} › {key}" if name else str(key))
    elif isinstance(value, bool):
        yield name, "yes" if value else "no"
    elif isinstance(value, float):
        yield name, f"{value:.4g}"
    elif isinstance(value, int) or (isinstance(value, str) and len(value) < 40 and "\n" not in value):
        yield name, str(value)
    elif isinstance(value, list) and value and all(isinstance(each, int | float) for each in value):
        yield name, ", ".join(f"{each:.4g}" for each in value[:8]) + (" …" if len(value) > 8 else "")


def noise() -> str:
    """Return what the demo's two runs could and could not have told apart."""
    rows = ["| | 95 % interval, points | smallest difference it could show | groups | pairs |", "|---|---|---|---|---|"]
    for name in ("demo", "demo_swapped"):
        proof = files()[name]["result"]["evidence"]
        found = proof["difference"]
        least = f"{100 * found['minimum_detectable']:.1f} points"
        interval = f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"
        rows.append(f"| [{name}](#{name}) | {interval} | {least} | {proof['groups']} | {found['pairs']} |")
    return "\n".join(rows) + "\n"


def _section(name: str, proof: dict[str, Any]) -> Iterator[str]:
    said = "It holds." if proof["holds"] is True else "**It does not hold.**"
    yield from (f"### {name}", "", f"{_plain(proof['claim'])} {said}", "")
    found = list(leaves(proof["result"]))
    rows = [f"| {_plain(key)} | {_plain(figure)} |" for key, figure in found[:_SHOWN]]
    more = f"{len(found) - _SHOWN} more figures are in the file." if len(found) > _SHOWN else ""
    if rows:
        summary = f"<details><summary>Figures of {name}</summary>"
        yield from (summary, "", "| figure | |", "|---|---|", *rows, "", more, "", "</details>", "")
    yield from (f"[evidence/{name}.json](evidence/{name}.json)", "")


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
