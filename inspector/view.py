"""Formats a print of the table and the maps of a process: text for people, JSON for programs. Pure: returns lines.

The text for people always has colours. click removes them if the output is no terminal.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import click

from inspector.events import Update
from inspector.table import Change, Entry, Frames, Run, count, fold, unfolded
from shared.proc_maps import Mapping
from shared.terminal import escaped
from shared.trace.record import Lost
from shared.uapi.shadowpt import Spte

COLOURS = {Change.GAINED: "green", Change.LOST: "red", Change.ALTERED: "yellow"}
WORDS = {
    Spte.VADDR_ALLOCATED: "allocated",
    Spte.VADDR_ANONYMOUS: "anonymous",
    Spte.PTE_MAPPED: "mapped",
}
NOTHING = "-"
_INDENT = " " * 8
WIDE_COLUMNS = 95
"""The width of the line of a run with all its columns."""


class Print(NamedTuple):
    """The contents of one print: the time, the pid, the entries of [start, end), and their changes since the print
    before.

    `first`: there is no print before. `exited`: the target has ended.
    """

    time: datetime
    pid: int
    start: int
    end: int
    entries: Sequence[Entry]
    changes: Sequence[Change]
    first: bool
    exited: bool
    cause: str | None = None
    """With --follow, what the window has moved for; None if it has not moved."""

    @property
    def changed(self) -> list[int]:
        """The indexes of the entries that changed."""
        return [index for index, change in enumerate(self.changes) if change is not Change.NONE]


def flag_words(flags: int) -> str:
    """Return state_flags in words, `-` for no flags. Bits without a name are a number."""
    words = [word for flag, word in WORDS.items() if flags & flag]
    unknown = flags & ~sum(WORDS)
    if unknown:
        words.append(f"{unknown:#x}")
    return " ".join(words) or NOTHING


def pfn_words(run: Run) -> str:
    """Return the frames of a run: `-`, one frame, `first..last`, or the one frame of all pages."""
    first = run.first.pfn
    if run.frames is Frames.ABSENT:
        return NOTHING
    if run.pages == 1:
        return f"{first:#x}"
    if run.frames is Frames.SAME:
        return f"{first:#x} each"
    return f"{first:#x}..{first + run.pages - 1:#x}"


def pages_words(pages: int) -> str:
    """Return a count of pages in words."""
    return f"{pages} page{'' if pages == 1 else 's'}"


def header_lines(shown: Print, narrow: bool) -> list[str]:
    """Return the head of a print: time, pid, range, counts. With `narrow` the counts have their own line."""
    counts = count(shown.entries)
    changed = "first print" if shown.first else f"{len(shown.changed)} changed"
    exited = click.style(" (exited)", fg="red") if shown.exited else ""
    title = click.style(
        f"{shown.time:%H:%M:%S}.{shown.time.microsecond // 1000:03d}  pid {shown.pid}{exited}  "
        f"{shown.start:#x}-{shown.end:#x}",
        bold=True,
    )
    words = (
        f"{pages_words(counts.pages)}: {counts.allocated} allocated, {counts.anonymous} anonymous, "
        f"{counts.mapped} mapped, {changed}"
    )
    return [title, f"  {words}"] if narrow else [f"{title}  {words}"]


def page_line(run: Run) -> str:
    """Return the line of one page, for `--all`: mark, vaddr, pfn, flags."""
    pfn = f"pfn {pfn_words(run)}"
    return _marked(run.change, f"{run.first.vaddr:#014x}  {pfn:<12}  {flag_words(run.first.flags)}")


def run_line(run: Run, narrow: bool) -> str:
    """Return the line of a run: mark, start-end, pages, frames, flags. With `narrow` the end is left out."""
    pages, pfn = pages_words(run.pages), f"pfn {pfn_words(run)}"
    where = f"{run.first.vaddr:#014x}" if narrow else f"{run.first.vaddr:#014x}-{run.end:#014x}"
    return _marked(run.change, f"{where}  {pages:>10}  {pfn:<20}  {flag_words(run.first.flags)}")


def text_lines(shown: Print, every_page: bool, narrow: bool = False) -> Iterator[str]:
    """Yield the lines of a print: the head, then one line for each page, or for each run of similar pages.

    `narrow` is for a terminal with less than WIDE_COLUMNS columns; the lines then fit into 80.
    """
    yield from header_lines(shown, narrow)
    if every_page:
        yield from map(page_line, unfolded(shown.entries, shown.changes))
    else:
        yield from (run_line(run, narrow) for run in fold(shown.entries, shown.changes))


def json_line(shown: Print) -> str:
    """Return a print as one JSON object on one line; addresses, frames and flags are numbers."""
    moved = {} if shown.cause is None else {"moved": shown.cause}
    return dumps(
        {
            "time": shown.time.isoformat(timespec="milliseconds"),
            "pid": shown.pid,
            **moved,
            "start": shown.start,
            "end": shown.end,
            "entries": [entry._asdict() for entry in shown.entries],
            "changed": shown.changed,
            "exited": shown.exited,
        }
    )


def update_line(update: Update, pid: int, columns: int | None = None) -> str:
    """Return one change as a line: time, mark, pages, frames and flags before and after, the cause.

    For a terminal with `columns` columns the line is folded at the end of a part, never within a word.
    """
    after = update.after
    where = f"{after.first.vaddr:#014x}"
    if after.pages > 1:
        where += f"-{after.end:#014x}  {pages_words(after.pages)}"
    pfns = _arrow(pfn_words(update.before), pfn_words(after))
    words = _arrow(flag_words(update.before.first.flags), flag_words(after.first.flags))
    who = f" by {update.by}" if update.by not in (0, pid) else ""
    when = f"{update.time:%H:%M:%S.%f}"
    mark, why = update.change.value, f"({update.cause or 'nobody'}{who})"
    lines = _folded([f"{when}  {mark} {where}", f"pfn {pfns}", words, why], columns)
    if len(lines) > 1:
        return "\n".join(coloured(update.change, line) for line in lines)
    return f"{when}  {_marked(update.change, f'{where}  pfn {pfns}  {words}')}  {why}"


def _folded(parts: list[str], columns: int | None) -> list[str]:
    """Join parts by two blanks into lines of at most `columns`. A part that is longer than a line is cut at blanks."""
    lines = [parts[0]]
    for part in parts[1:]:
        if columns is None or len(lines[-1]) + 2 + len(part) <= columns:
            lines[-1] += f"  {part}"
        else:
            lines += textwrap.wrap(
                part,
                columns,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
    return lines


def _arrow(before: str, after: str) -> str:
    return before if before == after else f"{before} -> {after}"


def update_json_line(update: Update, pid: int) -> str:
    """Return the change of one page as one JSON object on one line."""
    return dumps(
        {
            "time": update.time.isoformat(timespec="microseconds"),
            "monotonic": update.monotonic / 1e9,
            "pid": pid,
            "vaddr": update.after.first.vaddr,
            "old": {"pfn": update.before.first.pfn, "flags": update.before.first.flags},
            "new": {"pfn": update.after.first.pfn, "flags": update.after.first.flags},
            "cause": update.cause,
            "by": update.by,
        }
    )


def lost_line(lost: Lost, as_json: bool) -> str:
    """Return the line for missing changes."""
    return dumps({"lost": lost.records}) if as_json else f"… {lost.records} changes lost"


def page_json_line(time: datetime, pid: int, entry: Entry, contents: bytes) -> str:
    """Return one page and its contents (in hexadecimal) as one JSON object on one line."""
    return dumps(
        {
            "time": time.isoformat(timespec="milliseconds"),
            "pid": pid,
            "vaddr": entry.vaddr,
            "pfn": entry.pfn,
            "flags": entry.flags,
            "contents": contents.hex(),
        }
    )


def maps_lines(mappings: Sequence[Mapping]) -> Iterator[str]:
    """Yield one line for each mapping. Its two addresses can be pasted as START and END."""
    for mapping in mappings:
        kib = (mapping.end - mapping.start) // 1024
        line = f"{mapping.start:#014x} {mapping.end:#014x}  {mapping.perms}  {kib:>8} KiB"
        yield f"{line}  {escaped(mapping.name)}".rstrip()


def maps_json_line(time: datetime, pid: int, mappings: Sequence[Mapping]) -> str:
    """Return a process's maps as one JSON object on one line."""
    return dumps(
        {
            "time": time.isoformat(timespec="milliseconds"),
            "pid": pid,
            "maps": [mapping._asdict() for mapping in mappings],
        }
    )


def _marked(change: Change, text: str) -> str:
    return coloured(change, f"{change.value} {text}".rstrip())


def coloured(change: Change, line: str) -> str:
    """Return a line in the colour of a change."""
    colour = COLOURS.get(change)
    return click.style(line, fg=colour) if colour else line


def dumps(value: dict[str, Any]) -> str:
    """Return JSON on one line, without blanks."""
    return json.dumps(value, separators=(",", ":"))
