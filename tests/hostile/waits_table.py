"""The table of docs/waits.md, from what `make waits` has printed: `python -m tests.hostile.waits_table FILE...`.

A line a call; in it each world with the longest turn of the call and of the end of the process behind it, the larger
one of the two, in ms of the daemon's processor. Of several files that have a case, the last one counts. A file may
also have such a table: its cases count like those of a run.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.hostile.waits import AIM_MS

_LINE = re.compile(
    r"(?P<call>.+) / (?P<world>\S.*?) +(?P<ms>[\d.]+) \( *[\d.]+\) +(?P<end>[\d.]+) \( *[\d.]+\) +[\d.]+s"
    r"(?: +[\d.]+s)? ?(?P<failure>.*)"
)
_TABLE_LINE = re.compile(r"\| (?P<call>.+) \| (?P<cells>\w+.* \**\d.*) \|")
_CELL = re.compile(r"(?P<world>\w+(?:, \d+ at once)?) \**(?P<ms>\d+)\**(?: \((?P<failure>[^)]*)\))?(?:, |$)")
_OVER = "  <-- over"


class Row(NamedTuple):
    """One case."""

    call: str
    world: str
    ms: float
    failure: str
    """What the call said; empty where it was made."""


def read_rows(lines: Iterable[str]) -> list[Row]:
    """Return the cases in the lines of a run, or of a table. Other lines do not count."""
    return [row for line in lines for row in _rows_of(line.rstrip("\n"))]


def _rows_of(line: str) -> list[Row]:
    if row := _TABLE_LINE.fullmatch(line):
        return [
            Row(row["call"], cell["world"], float(cell["ms"]), cell["failure"] or "")
            for cell in _CELL.finditer(row["cells"])
        ]
    one = _LINE.fullmatch(line.removesuffix(_OVER))
    if one is None:
        return []
    return [Row(one["call"], one["world"], max(float(one["ms"]), float(one["end"])), one["failure"].strip())]


def table(rows: Iterable[Row]) -> str:
    """Return the table in Markdown, in the order in which the cases were played."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        figure = f"**{row.ms:.0f}**" if row.ms > AIM_MS else f"{row.ms:.0f}"
        cells.setdefault(row.call, {})[row.world] = f"{figure} ({row.failure})" if row.failure else figure
    lines = [
        f"| {call} | {', '.join(f'{world} {figure}' for world, figure in worlds.items())} |"
        for call, worlds in cells.items()
    ]
    return "\n".join(["| call | world, and the longest turn in ms |", "|---|---|", *lines])


def main() -> None:
    """Print the table, and a line with the worst."""
    lines = [line for name in sys.argv[1:] for line in Path(name).read_text().splitlines()]
    rows = {(row.call, row.world): row for row in read_rows(lines)}
    print(table(rows.values()))
    worst = sorted(rows.values(), key=lambda row: -row.ms)[:10]
    print("\n" + "; ".join(f"{row.call} / {row.world} {row.ms:.0f}" for row in worst), file=sys.stderr)


if __name__ == "__main__":
    main()
