"""What docs/benchmarks.md shows of looking at a repository in the browser; `figures.py` puts it there."""

from __future__ import annotations

import statistics
from typing import Any

from figures_models import NOT_MEASURED

Record = dict[str, Any]

TIMES, PLUS_SECONDS = 3, 0.050
"""A page may take so many times its SQL, and so much more."""
MEMORY_MIB = 200


def summary(entry: Record) -> Record:
    """Return the medians in ms, what each page may take, and whether everything holds."""
    rows = {}
    for name, sides in entry["pages"].items():
        page, sql = (statistics.median(sides[side]) for side in ("page", "sql"))
        limit = TIMES * sql + PLUS_SECONDS
        rows[name] = {
            "page_ms": round(1e3 * page, 1),
            "sql_ms": round(1e3 * sql, 2),
            "limit_ms": round(1e3 * limit, 1),
            "holds": page <= limit,
        }
    memory = entry["peak_mib"] < MEMORY_MIB
    holds = memory and all(row["holds"] for row in rows.values())
    return {"pages": rows, "parts_s": entry["parts"], "peak_mib": entry["peak_mib"], "holds": holds}


def browsing(records: Record) -> str:
    """Return the table of pages beside their SQL, the table of what comes after them, and what was wanted."""
    entries = {int(size): entry for size, entry in records.get("browsing", {}).items()}
    if not entries:
        return NOT_MEASURED
    found = {size: summary(entries[size]) for size in sorted(entries)}
    measured = [_measured(size, entries[size]["measured"]) for size in found]
    return "\n".join([*_pages(found), "", *_after(found), "", _wanted(found), "", *measured]) + "\n"


def _pages(found: dict[int, Record]) -> list[str]:
    rows = {name: [_page(each["pages"][name]) for each in found.values()] for name in _largest(found)["pages"]}
    return _table("ms, median", [f"{size:,}: page | its SQL | may take" for size in found], rows)


def _after(found: dict[int, Record]) -> list[str]:
    rows = {name: [f"{each['parts_s'][name]:.2f}" for each in found.values()] for name in _largest(found)["parts_s"]}
    return _table("counted after a page, seconds, once", [f"{size:,}" for size in found], rows)


def _wanted(found: dict[int, Record]) -> str:
    pages = [row for each in found.values() for row in each["pages"].values()]
    memory = " and ".join(f"{each['peak_mib']:.0f} MiB ({size:,})" for size, each in found.items())
    missed = "" if all(each["peak_mib"] < MEMORY_MIB for each in found.values()) else " **missed**"
    return (
        f"Wanted: a page within {TIMES} times its SQL plus {1000 * PLUS_SECONDS:.0f} ms, the server's memory below "
        f"{MEMORY_MIB} MiB at its peak. Found: {sum(row['holds'] for row in pages)} of {len(pages)} pages; "
        f"{memory}{missed}."
    )


def _largest(found: dict[int, Record]) -> Record:
    return found[max(found)]


def _table(first: str, heads: list[str], rows: dict[str, list[str]]) -> list[str]:
    head = " | ".join([first, *heads])
    return [
        f"| {head} |",
        "|---" * (head.count("|") + 1) + "|",
        *(f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()),
    ]


def _page(row: Record) -> str:
    missed = "" if row["holds"] else " **missed**"
    return f"{row['page_ms']:.1f} | {row['sql_ms']:.2f} | {row['limit_ms']:.0f}{missed}"


def _measured(size: int, on: Record) -> str:
    return (
        f"- {size:,} attempts: {on['date']}, {on['rounds']} rounds, {on['cores']} {on['arch']} cores, "
        f"{on['memory_gib']} GiB, Python {on['python']}, SQLite {on['sqlite']}; load average {on['load_average']}"
    )
