"""Run the benchmark: `python -m bench`, or some of its rows: `python -m bench 1 3 9`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

from bench import clients, footprint, inside, many_vmas, ranges, report, round_trips, shadow, small_calls, traced
from bench.machine import CPUS, Daemon, Host
from bench.sample import Row
from shared.interrupts import ending_by_signals

ROWS = range(1, 39)
_SMALL = {*range(17, 27), 36, 37, 38}


def measure(wanted: set[int]) -> Iterator[Row]:
    """Yield the rows of the groups that hold a wanted one; a daemon a group."""
    host = Host()
    try:
        if wanted & {1, 2, 3, 4}:
            yield from with_daemon("1G", lambda daemon: round_trips.rows(daemon, host))
        if wanted & {5, 6, 7, 8}:
            yield from with_daemon("3G", lambda daemon: ranges.rows(daemon, host))
        if wanted & {9}:
            yield from with_daemon("1G", many_vmas.rows)
        if wanted & {10, 11, 12}:
            yield from with_daemon("1G", lambda daemon: shadow.rows(daemon, host))
        if wanted & {13}:
            yield from with_daemon("1G", clients.rows)
        if wanted & {14, 15}:
            yield from footprint.rows()
        if wanted & {16}:
            yield from with_daemon("1G", traced.rows)
        if wanted & _SMALL:
            yield from with_daemon("1G", lambda daemon: small_calls.rows(daemon, wanted), "--swap", "64M")
        if wanted & set(range(27, 36)):
            yield from with_daemon("2G", lambda daemon: inside.rows(daemon, wanted))
    finally:
        host.close()


def with_daemon(ram: str, group: Callable[[Daemon], Iterator[Row]], *options: str) -> Iterator[Row]:
    """Yield what `group` measures on a daemon of its own, started with these options."""
    daemon = Daemon(ram, *options)
    try:
        yield from group(daemon)
    finally:
        daemon.close()


def rows_of(arguments: list[str]) -> set[int]:
    """Return the rows that are wanted, all where none is named; ends the program with a line where one is none."""
    wrong = [argument for argument in arguments if argument not in map(str, ROWS)]
    if wrong:
        print(f"bench: rows are {ROWS[0]} to {ROWS[-1]}, not '{wrong[0]}'", file=sys.stderr)
        sys.exit(2)
    return set(map(int, arguments)) or set(ROWS)


def main(arguments: list[str]) -> None:
    """Measure, print each row as it comes, and write the report when all were wanted."""
    wanted = rows_of(arguments)
    load = os.getloadavg()
    if len(CPUS) < 2:
        print("bench: one processor: a client and kerneld take turns, and no figure is that of two", file=sys.stderr)
    rows = []
    for row in measure(wanted):
        rows.append(row)
        print(report.show(row), flush=True)
    if not arguments:
        print(f"written to {report.write(rows, load)}")


if __name__ == "__main__":
    with ending_by_signals("bench"):
        main(sys.argv[1:])
