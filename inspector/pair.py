"""`--also`: prints a range of two processes side by side until a signal. Knows no arguments."""

from __future__ import annotations

import time
from datetime import datetime

from inspector.address import Span
from inspector.interrupts import Woken
from inspector.live_events import open_live_machine, wait_reading
from inspector.pair_view import Both, both_json_line, both_lines, side_of
from inspector.printing import Options, emit, note, terminal_columns
from inspector.table import Entry
from shared.client import Process
from shared.recording.live_machine import LiveMachine
from shared.stop_signals import StopSignals, stop_signals
from shared.uapi.shadowpt import MAX_SPT_RANGE


def watch_both(process: Process, pids: tuple[int, int], span: Span, options: Options) -> None:
    """Print `span` of both processes until a signal. Raises Failure, and KerneldGone when the connection ends."""
    shown = Span(span.start, min(span.end, span.start + MAX_SPT_RANGE))
    if shown != span:
        note(f"cut to 8 MiB: the range shown ends at {shown.end:#x}")
    live = open_live_machine(process, *pids)
    try:
        with stop_signals() as signals:
            print_both(live, pids, shown, signals, process.fileno(), options)
    finally:
        live.close()


def print_both(
    live: LiveMachine, pids: tuple[int, int], span: Span, signals: StopSignals, connection: int, options: Options
) -> None:
    """Print both at each interval until a signal, or once with --once. Raises KerneldGone when the connection ends."""
    before: tuple[list[Entry], list[Entry]] | None = None
    due, gaps = time.monotonic(), 0
    while True:
        live.read()
        left, right = (
            side_of(live.now, pid, *span, None if before is None else before[at]) for at, pid in enumerate(pids)
        )
        both = Both(datetime.now().astimezone(), *span, (left, right), before is None)
        before = left.entries, right.entries
        emit([both_json_line(both)] if options.as_json else both_lines(both, options.every_page, terminal_columns()))
        if live.gaps != gaps:
            gaps = live.gaps
            note("events were lost; what is shown is whole again")
        if options.once:
            return
        due = max(due + options.interval, time.monotonic())
        if wait_reading(live, lambda _records: None, due, signals, connection) is Woken.STOP:
            return
