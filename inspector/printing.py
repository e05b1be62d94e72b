"""Prints the table, once or repeatedly, for `--once` and `--interval`; writes lines to stdout.

Owns the entries of the print before, to find the changes. Knows no arguments.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import click

from inspector.interrupts import Woken, wait
from inspector.session import NO_PFNS, Watch, has_process
from inspector.table import Entry, diff
from inspector.view import WIDE_COLUMNS, Print, json_line, text_lines
from shared.client import KerneldGone
from shared.failure import output_failures
from shared.standard_streams import are_colours_welcome
from shared.stop_signals import StopSignals
from shared.uapi.shadowpt import Spte


class Options(NamedTuple):
    """How to print: every page or runs; JSON or text; once or every `interval` seconds; each change as it happens.

    `prints` says whether the table is printed again after the first print.
    """

    every_page: bool
    as_json: bool
    once: bool
    interval: float
    events: bool = False
    prints: bool = True


def has_ended(watch: Watch, entries: list[Entry]) -> bool:
    """Whether the target has ended.

    A table without flags means an empty range or an ended target: only then ask kerneld.
    """
    return not any(entry.flags for entry in entries) and not has_process(watch.machine, watch.pid)


def emit_table(
    watch: Watch,
    entries: list[Entry],
    before: list[Entry] | None,
    options: Options,
    *,
    has_exited: bool,
    cause: str | None = None,
) -> None:
    """Write the entries of a table, with the changes since `before`. `before` is None for the first print."""
    shown = Print(
        time=datetime.now().astimezone(),
        pid=watch.pid,
        start=watch.span.start,
        end=watch.span.end,
        entries=entries,
        changes=diff(before, entries),
        first=before is None,
        exited=has_exited,
        cause=cause,
    )
    emit([json_line(shown)] if options.as_json else text_lines(shown, options.every_page, is_narrow()))


class Printer:
    """Prints an open table, and remembers the print before."""

    def __init__(self, watch: Watch, options: Options) -> None:
        self._watch = watch
        self._options = options
        self._before: list[Entry] | None = None
        self._exited = False

    def print(self) -> None:
        """Print the table as it is now. Print the end of the target once."""
        watch, before = self._watch, self._before
        entries = watch.read()
        if before is None and any(entry.flags & Spte.PTE_MAPPED and not entry.pfn for entry in entries):
            note(NO_PFNS)
        ended = not self._exited and has_ended(watch, entries)
        self._exited = self._exited or ended
        emit_table(watch, entries, before, self._options, has_exited=self._exited)
        if ended and not self._options.events:
            emit([f"Process {watch.pid} has exited; its table stays. Ctrl+C ends."], to_stderr=self._options.as_json)
        self._before = entries


def print_until_stopped(watch: Watch, signals: StopSignals, options: Options) -> None:
    """Print the open table at each interval until a signal comes, or once with --once."""
    printer = Printer(watch, options)
    due = time.monotonic()
    while True:
        printer.print()
        if options.once:
            return
        due = max(due + options.interval, time.monotonic())
        woken = wait(signals, due - time.monotonic(), watch.machine.fileno())
        if woken is Woken.STOP:
            return
        if woken is Woken.HANGUP:
            raise KerneldGone("the connection has ended")


def is_narrow() -> bool:
    """Whether the output is a terminal that is too narrow for the line of a run, and would break it in two."""
    columns = terminal_columns()
    return columns is not None and columns < WIDE_COLUMNS


def terminal_columns() -> int | None:
    """Return the width of the terminal in columns; None if the output is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def emit(lines: Iterable[str], to_stderr: bool = False) -> None:
    """Write lines to stdout at once. They have colours only on a terminal, and without NO_COLOR.

    Raises Failure(FAILED) when the output cannot be written. A BrokenPipeError goes through: click ends quietly.
    """
    with output_failures():
        click.echo("\n".join(lines), err=to_stderr, color=None if are_colours_welcome() else False)


def note(text: str) -> None:
    """Write one line for the person to stderr."""
    click.echo(f"inspector: {text}", err=True)
