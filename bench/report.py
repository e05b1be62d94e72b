"""The table of ratios, for people and for bench/results."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np

from bench.machine import CPUS
from bench.sample import Row

RESULTS = Path(__file__).parent / "results"
HEADINGS = ("#", "measured", "yardstick", "CPUs", "ours", "yardstick's", "ratio", "quartiles", "mark", "")


def number(value: float) -> str:
    """Return a figure with three digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's cells, as HEADINGS names them."""
    first, third = row.spread
    theirs = f"{number(median(row.theirs))} {row.unit}" if row.theirs else "–"
    reached = {None: "", True: "reached", False: "not reached"}[row.reached]
    mark = "" if row.mark is None else str(row.mark)
    ours = f"{number(median(row.ours))} {row.unit}"
    spread = f"{number(first)} … {number(third)}"
    return (
        str(row.number), row.measured, row.yardstick, row.placement, ours, theirs,
        number(row.ratio), spread, mark, reached,
    )  # fmt: skip


def machine() -> str:
    """Return what the figures were taken on, in a line."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    virtual = ", a virtual machine" if "hypervisor" in Path("/proc/cpuinfo").read_text(encoding="utf-8") else ""
    release = ".".join(platform.release().split("-")[0].split(".")[:2])
    return (
        f"{model}, {len(CPUS)} processors{virtual}; Linux {release}, "
        f"Python {platform.python_version()}, numpy {np.__version__}"
    )


def markdown(rows: Iterable[Row], load: Sequence[float]) -> str:
    """Return the report as a page of Markdown."""
    lines = [
        f"Taken {datetime.now(UTC):%Y-%m-%d %H:%M} UTC on {machine()}.",
        f"Load average before and after: {load[0]:.2f}, {os.getloadavg()[0]:.2f}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
    ]
    lines += ["| " + " | ".join(cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(rows: Sequence[Row], load: Sequence[float]) -> Path:
    """Write the report, and every round as JSON beside it; return the report's path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "latest.md"
    path.write_text(markdown(rows, load), encoding="utf-8")
    rounds = [
        {
            "row": row.number, "measured": row.measured, "yardstick": row.yardstick, "cpus": row.placement,
            "unit": row.unit, "mark": str(row.mark or ""), "ratio": row.ratio, "ours": row.ours, "theirs": row.theirs,
        }
        for row in rows
    ]  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(rounds, indent=1) + "\n", encoding="utf-8")
    return path


def show(row: Row) -> str:
    """Return a row as a line for a terminal."""
    number, measured, yardstick, cpus, ours, theirs, ratio, spread, mark, reached = cells(row)
    figures = f"{ours:>15} {theirs:>15} {ratio:>7}  ({spread})  {mark} {reached}"
    return f"{number:>2}  {measured:<42} {cpus:<9} {figures}  [{yardstick}]"
