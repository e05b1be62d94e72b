"""`--also`: the same range of two processes, side by side, from the kernel's events. Pure: rows in, lines out.

No table is opened: the kernel has one at a time. Both sides are of one moment.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

import click

from inspector.replay import find_mm
from inspector.table import Change, Entry, Run, count, diff, extend, run_of_one
from inspector.view import coloured, dumps, flag_words, pages_words, pfn_words
from shared.recording.machine import Machine
from shared.recording.shadow import shadow_entries
from shared.uapi.shadowpt import Spte

TWO_COLUMNS = 122
"""The width of a line with both processes."""
_SIDE = 46


class Side(NamedTuple):
    """One process at one moment."""

    pid: int
    entries: list[Entry]
    changes: list[Change]
    exited: bool


class Both(NamedTuple):
    """A print of both: the time, the range, and the two sides."""

    time: datetime
    start: int
    end: int
    sides: tuple[Side, Side]
    first: bool


class Row(NamedTuple):
    """Pages in a row that are alike on both sides; `relation` compares their frames."""

    runs: tuple[Run, Run]
    relation: str


def side_of(machine: Machine, pid: int, start: int, end: int, before: list[Entry] | None) -> Side:
    """Return a process's side. A process that has ended has nothing in the range."""
    task = machine.tasks.get(pid)
    entries = [Entry(*row) for row in shadow_entries(find_mm(machine, pid), start, end)]
    return Side(pid, entries, diff(before, entries), task is None or task.exit_signal is not None)


def relation_of(left: Entry, right: Entry) -> str:
    """Return how the frames of a page compare: `=` the same one, `/` two frames, blank if one has none."""
    if not (left.flags & right.flags & Spte.PTE_MAPPED and left.pfn and right.pfn):
        return " "
    return "=" if left.pfn == right.pfn else "/"


def fold_rows(both: Both, every_page: bool) -> Iterator[Row]:
    """Yield the rows of a print, as few as can be; with `every_page` one for each page."""
    left, right = both.sides
    row: Row | None = None
    for one, other, change, change_there in zip(left.entries, right.entries, left.changes, right.changes, strict=True):
        relation = relation_of(one, other)
        if row is not None and row.relation == relation and not every_page:
            longer = extend(row.runs[0], one, change), extend(row.runs[1], other, change_there)
            if longer[0] is not None and longer[1] is not None:
                row = Row((longer[0], longer[1]), relation)
                continue
        if row is not None:
            yield row
        row = Row((run_of_one(one, change), run_of_one(other, change_there)), relation)
    if row is not None:
        yield row


def both_lines(both: Both, every_page: bool, columns: int | None) -> Iterator[str]:
    """Yield the lines of a print. In a terminal narrower than TWO_COLUMNS, the second process has a line of its own."""
    stacked = columns is not None and columns < TWO_COLUMNS
    pids = " and ".join(f"{side.pid}{' (exited)' if side.exited else ''}" for side in both.sides)
    pages = pages_words(len(both.sides[0].entries))
    when = f"{both.time:%H:%M:%S}.{both.time.microsecond // 1000:03d}"
    yield click.style(f"{when}  pids {pids}  {both.start:#x}-{both.end:#x}  {pages}", bold=True)
    for side in both.sides if stacked else ():
        yield f"  {_counts(side, both.first)}"
    if not stacked:
        left, right = (_counts(side, both.first) for side in both.sides)
        yield f"{'':30}{left:<{_SIDE}}    {right}".rstrip()
    for row in fold_rows(both, every_page):
        yield from _stacked(row, both) if stacked else [_in_columns(row)]


def _counts(side: Side, first: bool) -> str:
    counts = count(side.entries)
    changed = sum(change is not Change.NONE for change in side.changes)
    news = "" if first else f", {changed} changed"
    return f"{side.pid}: {counts.allocated} allocated, {counts.mapped} mapped{news}"


def _where(row: Row) -> str:
    run = row.runs[0]
    return f"{run.first.vaddr:#014x}  {pages_words(run.pages):>10}"


def _half(run: Run, width: int) -> str:
    text = f"{run.change.value} {pfn_words(run):<14}  {flag_words(run.first.flags)}"
    return coloured(run.change, f"{text:<{width}}")


def _in_columns(row: Row) -> str:
    return f"{_where(row)}  {_half(row.runs[0], _SIDE)} {row.relation}  {_half(row.runs[1], 0)}".rstrip()


def _stacked(row: Row, both: Both) -> Iterator[str]:
    left, right = both.sides
    yield f"{_where(row)}  {left.pid:>7} {_half(row.runs[0], 0)}"
    yield f"{row.relation:>26}  {right.pid:>7} {_half(row.runs[1], 0)}"


def both_json_line(both: Both) -> str:
    """Return a print as one JSON object on one line."""
    return dumps(
        {
            "time": both.time.isoformat(timespec="milliseconds"),
            "start": both.start,
            "end": both.end,
            "processes": [_as_json(side) for side in both.sides],
        }
    )


def _as_json(side: Side) -> dict[str, object]:
    changed: Sequence[int] = [at for at, change in enumerate(side.changes) if change is not Change.NONE]
    return {
        "pid": side.pid,
        "entries": [entry._asdict() for entry in side.entries],
        "changed": changed,
        "exited": side.exited,
    }
