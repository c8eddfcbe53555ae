"""What docs/benchmarks.md shows of docs/benchmarks.json; `python benchmarks/figures.py` rewrites it."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import figures_browsing
import figures_models

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
RECORDS = ROOT / "docs" / "benchmarks.json"

Records = list[dict[str, Any]]

RATIOS: dict[str, tuple[str, str, str, str, str, str, float]] = {
    # name: (wanted, over case, over side, under case, under side, key, bound); the ratio is over / under
    "process_of_atomicguard": (
        "at least 10 times AtomicGuard's speed: start, open, extract with full histories, end",
        *("extract_once", "atomicguard", "extract_once", "guardlearn", "process_seconds"),
        10,
    ),
    "ids_of_atomicguard": (
        "at least 30 times in process: ids of `refinement`",
        *("extract_once", "atomicguard", "ids", "guardlearn", "seconds"),
        30,
    ),
    "count_of_atomicguard": (
        "at least 30 times in process: count of `refinement`",
        *("extract_once", "atomicguard", "count", "guardlearn", "seconds"),
        30,
    ),
    "folder_first_of_atomicguard": (
        "at least 1.5 times from its folder directly, the first time",
        *("folder", "atomicguard", "folder_first", "guardlearn", "process_seconds"),
        1.5,
    ),
    "folder_again_of_atomicguard": (
        "at least 10 times from its folder directly, again",
        *("folder", "atomicguard", "folder_again", "guardlearn", "process_seconds"),
        10,
    ),
    "extract_of_bare": (
        "at most 2.5 times the bare loop's time, in process",
        *("extract", "guardlearn", "extract", "bare", "seconds"),
        -2.5,
    ),
    "append_of_plain": (
        "`append_many`: at least 0.35 of the speed of executemany into one plain table",
        *("append", "plain", "append", "guardlearn", "seconds"),
        0.35,
    ),
    "append_of_same_tables": (
        "`append_many`: at least 0.6 of executemany into the same tables, indexes and triggers",
        *("append", "same_tables", "append", "guardlearn", "seconds"),
        0.6,
    ),
}
"""A negative bound is an upper one; against AtomicGuard, what is wanted is wanted of JUDGED_FROM attempts and more."""

JUDGED_FROM = 100_000

GROWTH_MIB = 64
GROWTHS = ("count", "ids", "extract", "folder_first", "import_folder", "import_lines", "append", "fill")
CASES = {
    "count": "count of `refinement`",
    "ids": "ids of `refinement`",
    "extract": "`refinement` with full histories",
}


def summary(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the ratios and memory of one size: medians over the rounds, with the least and the greatest."""
    found: dict[str, Any] = {}
    for name, (_, over, over_side, under, under_side, key, _) in RATIOS.items():
        pairs = list(zip(_records(entry, over, over_side), _records(entry, under, under_side), strict=False))
        if pairs:
            ratios = sorted(a[key] / b[key] for a, b in pairs)
            of_cpu = key.replace("seconds", "cpu_seconds")
            found[name] = {
                "median": _short(statistics.median(ratios)),
                "low": _short(ratios[0]),
                "high": _short(ratios[-1]),
                "cpu": _short(statistics.median(a[of_cpu] / b[of_cpu] for a, b in pairs)),
            }
    for case in GROWTHS:
        if records := _records(entry, case, "guardlearn"):
            found[f"{case}_growth_mib"] = max(record["growth_mib"] for record in records)
    return found


def wanted(records: dict[str, Any]) -> str:
    """Return the table of what is wanted and what was measured."""
    sizes = _sizes(records)
    summaries = {size: summary(records["sizes"][size]) for size in sizes}
    rows = [_heading("wanted", sizes)]
    for name, (words, *_, bound) in RATIOS.items():
        judged = [int(size) >= JUDGED_FROM or not name.endswith("atomicguard") for size in sizes]
        ratios = [summaries[size].get(name) for size in sizes]
        cells = [_judged(ratio, bound if held else 0) for ratio, held in zip(ratios, judged, strict=True)]
        rows.append(f"| {words} | " + " | ".join(cells) + " |")
    growth = [summaries[size].get("extract_growth_mib") for size in sizes]
    cells = ["–" if each is None else f"{each:.0f} MiB{'' if each < GROWTH_MIB else ' **missed**'}" for each in growth]
    rows.append(f"| memory grows by less than {GROWTH_MIB} MiB while `refinement` is extracted | {' | '.join(cells)} |")
    return "\n".join([*rows, "", *_linear(records, sizes)]) + "\n"


def reading(records: dict[str, Any]) -> str:
    """Return the seconds of the reading cases: the first call after opening, and the next one."""
    sizes = _sizes(records)
    rows = [_heading("seconds (processor seconds)", sizes)]
    for case, words in CASES.items():
        for side, said in (("guardlearn", "guardlearn"), ("bare", "bare loop")):
            rows.append(_row(f"{words}, {said}", [_records(records["sizes"][size], case, side) for size in sizes]))
            again = [[r["again"] for r in _records(records["sizes"][size], case, side)] for size in sizes]
            rows.append(_row(f"– the same again, {said}", again))
    processes = {
        "extract_once": "the whole process, guardlearn on the imported repository",
        "folder_first": "the whole process, guardlearn on AtomicGuard's folder, first time",
        "folder_again": "the whole process, guardlearn on AtomicGuard's folder, again",
    }
    for case, words in processes.items():
        found = [_records(records["sizes"][size], case, "guardlearn") for size in sizes]
        rows.append(_row(words, found, "process_seconds", "process_cpu_seconds"))
    found = [_records(records["sizes"][size], "extract_once", "atomicguard") for size in sizes]
    rows.append(_row("the whole process, AtomicGuard on its folder", found, "process_seconds", "process_cpu_seconds"))
    rows.append(_row("AtomicGuard in process, opening and `extract`", found))
    again = [_records(records["sizes"][size], "again", "atomicguard") for size in sizes]
    rows.append(_row("– `extract` again, from its memory", again))
    return "\n".join(rows) + "\n"


def writing(records: dict[str, Any]) -> str:
    """Return how many attempts a second the writing cases take."""
    sizes = _sizes(records)
    rows = [_heading("attempts a second", sizes)]
    cases = (
        ("append", "guardlearn", "`append_many`, 20 000 a transaction"),
        ("fill", "guardlearn", "`append_many`, to make the repository that is read"),
        ("append", "plain", "– executemany into one plain table"),
        ("append", "same_tables", "– executemany into the same tables"),
        ("import_folder", "guardlearn", "import of an AtomicGuard folder"),
        ("import_folder", "bare", "– bare: parse each object, one plain table"),
        ("import_lines", "guardlearn", "import of exported JSON Lines"),
        ("import_lines", "bare", "– bare: parse each line, one plain table"),
        ("export", "guardlearn", "export to JSON Lines"),
    )
    for case, side, words in cases:
        cells = []
        for size in sizes:
            seconds = [record["seconds"] for record in _records(records["sizes"][size], case, side)]
            cells.append(f"{int(size) / statistics.median(seconds):,.0f}" if seconds else "–")
        rows.append(f"| {words} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def memory(records: dict[str, Any]) -> str:
    """Return how much memory each case of ours adds to its process, at most."""
    sizes = _sizes(records)
    summaries = [summary(records["sizes"][size]) for size in sizes]
    words = CASES | {
        "folder_first": "AtomicGuard's folder, first time",
        "import_folder": "import of an AtomicGuard folder",
        "import_lines": "import of exported JSON Lines",
        "append": "`append_many`, 20 000 a transaction",
        "fill": "`append_many`, to make the repository that is read",
    }
    rows = [_heading("MiB", sizes)]
    for case in GROWTHS:
        cells = [f"{each[f'{case}_growth_mib']:.0f}" if f"{case}_growth_mib" in each else "–" for each in summaries]
        rows.append(f"| {words[case]} | " + " | ".join(cells) + " |")
    grown = [_records(records["sizes"][size], "extract_once", "atomicguard") for size in sizes]
    cells = [f"{max(r['growth_mib'] for r in each):.0f}" if each else "–" for each in grown]
    rows.append("| AtomicGuard's `extract` | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def machine(records: dict[str, Any]) -> str:
    """Return what the figures were measured on."""
    lines = []
    for size in _sizes(records):
        on = records["sizes"][size]["measured"]
        other = on["atomicguard"]
        against = f", AtomicGuard {other['version']} on Python {other['python']}" if other else ""
        rounds = _rounds(records["sizes"][size])
        lines.append(
            f"- {int(size):,} attempts: {on['date']}, {rounds}, {on['cores']} {on['arch']} cores, "
            f"{on['memory_gib']} GiB, Python {on['python']}, SQLite {on['sqlite']}{against}; "
            f"load average at the end {on['load_average']}"
        )
    return "\n".join(lines) + "\n"


BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    block.__name__: block
    for block in (
        *(machine, wanted, reading, writing, memory),
        *(figures_models.training, figures_models.ingredients, figures_models.generation),
        figures_browsing.browsing,
    )
}
"""Each stands between two comments of its name."""


def _rounds(entry: dict[str, Any]) -> str:
    """Return how often each case ran; parts may be measured with different numbers of rounds."""
    often = [len(records) for sides in entry["runs"].values() for records in sides.values() if len(sides) > 1]
    if not often or min(often) == max(often):
        return f"{often[0]} rounds" if often and often[0] > 1 else "1 round"
    return f"{min(often)}-{max(often)} rounds"


def _linear(records: dict[str, Any], sizes: list[str]) -> list[str]:
    """Return how the time of an extraction and of an import grows from size to size, beside the bare loops' growth.

    Sizes that were measured in one run ("scaling") are compared within it: the machine's pace differs between runs.
    """
    said = []
    together = records.get("scaling", {})
    for small, large in itertools.pairwise(sizes):
        within = together if {small, large} <= set(together) else records["sizes"]
        grown = [
            f"{words} {_growth(within, small, large, case, side):.1f}"
            for words, case, side in _SCALED
            if _records(within[small], case, side) and _records(within[large], case, side)
        ]
        if grown:
            where = ", in one run" if within is together else ""
            said.append(
                f"From {int(small):,} to {int(large):,} attempts, {int(large) // int(small)} times as many{where}, "
                f"the processor time grows by these factors: {'; '.join(grown)}."
            )
    return said


_SCALED = (
    ("an extraction", "extract", "guardlearn"),
    ("the bare loop's", "extract", "bare"),
    ("an import", "import_folder", "guardlearn"),
    ("the bare loop's", "import_folder", "bare"),
)


def _growth(entries: dict[str, Any], small: str, large: str, case: str, side: str) -> float:
    key = "process_cpu_seconds" if case == "import_folder" else "cpu_seconds"
    times = [
        _median([each.get("again", each) for each in _records(entries[size], case, side)], key)
        for size in (small, large)
    ]
    return times[1] / times[0]


def _records(entry: dict[str, Any], case: str, side: str) -> Records:
    found: Records = entry["runs"].get(case, {}).get(side, [])
    return found


def _sizes(records: dict[str, Any]) -> list[str]:
    return sorted(records["sizes"], key=int)


def _heading(first: str, sizes: list[str]) -> str:
    return f"| {first} | " + " | ".join(f"{int(size):,}" for size in sizes) + " |\n" + "|---" * (len(sizes) + 1) + "|"


def _row(words: str, by_size: list[Records], key: str = "seconds", cpu: str = "cpu_seconds") -> str:
    cells = [
        f"{_short(_median(records, key))} ({_short(_median(records, cpu))})" if records else "–" for records in by_size
    ]
    return f"| {words} | " + " | ".join(cells) + " |"


def _judged(ratio: dict[str, float] | None, bound: float) -> str:
    if ratio is None:
        return "–"
    met = ratio["median"] >= bound if bound >= 0 else ratio["median"] <= -bound
    spread = "" if ratio["low"] == ratio["high"] else f" [{ratio['low']}–{ratio['high']}]"
    return f"{ratio['median']}{spread} ({ratio['cpu']}){'' if met else ' **missed**'}"


def _median(records: Records, key: str) -> float:
    return float(statistics.median(record[key] for record in records))


def _short(value: float) -> float | int:
    """Return three significant digits."""
    short = float(f"{value:.3g}")
    return int(short) if short >= 100 else short


def comments(name: str) -> tuple[str, str]:
    """Return what stands before and after a block."""
    return f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"


def main() -> None:
    """Rewrite the page's tables."""
    text, records = PAGE.read_text(encoding="utf-8"), json.loads(RECORDS.read_text(encoding="utf-8"))
    for name, render in BLOCKS.items():
        begin, end = comments(name)
        before, rest = text.split(begin)
        text = before + begin + render(records) + end + rest.split(end)[1]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
