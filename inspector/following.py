"""Prints the changes of a table as they happen, for `--events`. Knows no arguments."""

from __future__ import annotations

import time

from inspector.events import EventLog
from inspector.interrupts import Woken, wait
from inspector.printing import Options, Printer, emit, has_ended, terminal_columns
from inspector.session import Watch
from inspector.view import lost_line, update_json_line, update_line
from shared.client import KerneldGone
from shared.stop_signals import StopSignals
from shared.trace.record import Lost


def follow_until_stopped(watch: Watch, log: EventLog, signals: StopSignals, options: Options) -> bool:
    """Print each change, and with --interval also the table. Return whether the target has ended.

    Raises KerneldGone when the connection ends.
    """
    printer = Printer(watch, options)
    printer.print()
    due = time.monotonic() + options.interval
    while True:
        happened = log.reader.wait(max(0.0, due - time.monotonic()), signals.fileno(), watch.machine.fileno())
        if happened:
            print_updates(log, watch.pid, options)
        woken = wait(signals, 0, watch.machine.fileno())
        if woken is Woken.HANGUP:
            raise KerneldGone("the connection has ended")
        is_due = time.monotonic() >= due
        if (happened or is_due) and has_ended(watch, watch.read()):
            print_updates(log, watch.pid, options)
            return True
        if woken is Woken.STOP:
            print_updates(log, watch.pid, options)
            return False
        if is_due:
            due = max(due + options.interval, time.monotonic())
            if options.prints:
                printer.print()


def print_updates(log: EventLog, pid: int, options: Options) -> None:
    """Print the changes that have come."""
    lines = []
    for update in log.read():
        if isinstance(update, Lost):
            lines.append(lost_line(update, options.as_json))
        elif options.as_json:
            lines.extend(update_json_line(page, pid) for page in update.unfolded())
        else:
            pages = update.unfolded() if options.every_page else [update]
            lines.extend(update_line(page, pid, terminal_columns()) for page in pages)
    if lines:
        emit(lines)
