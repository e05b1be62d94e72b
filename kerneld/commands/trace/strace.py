"""`kerneld strace`: the system calls of a process, as strace(1) prints them.

Owns the options. `follow` reads the trace, and `calls` makes the lines.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import click

from kerneld.commands.options import Size
from kerneld.commands.trace.calls.arguments import MACHINE, parse_trace
from kerneld.commands.trace.calls.printer import Printer, Style
from kerneld.commands.trace.calls.summary import summary
from kerneld.commands.trace.follow import Follower, run
from kerneld.commands.trace.output import Output, opened, output_option
from kerneld.commands.trace.writers import TextWriter
from shared.client.path import default_socket_path
from shared.failure import Failure, Status
from shared.option_types import Whole, socket_option
from shared.real_process import no_process
from shared.stop_signals import stop_signals
from shared.trace.record import Comm, Entry, Lost

_GLOBS = ("raw_syscalls:*", "signal:*", "sched:*")


@click.command(
    short_help="Print the system calls of a process as strace does.",
    help="""Print the system calls of a process, as strace(1) does: arguments, flags by name, results, errnos, signals.

Ctrl+C ends the command, and the process goes on. The end of the process ends the command too. Loads, stores and touches
are not system calls, but operations of the processor: -e machine prints them. The memory behind a pointer is not
printed.

\b
Examples:
  kerneld strace 4242                            all calls of process 4242
  kerneld strace -f 4242                         the calls of its children too
  kerneld strace -e trace=mmap,munmap 4242       only these calls; -e '!brk': all calls except brk
  kerneld strace -e all,machine 4242             loads, stores and touches too
  kerneld strace -c 4242                         at the end, a table of the calls by time
  kerneld strace -tt -T -o calls.txt 4242        with the time of day, and the duration of each call
""",
)
@click.argument("process", type=Whole(min=1), metavar="PID", nargs=-1)
@click.option(
    "-p", "--attach", "attach", type=Whole(min=1), multiple=True, metavar="PID", help="The same as the argument PID."
)
@click.option("-f", "--follow-forks", "forks", is_flag=True, help="Follow the children of fork.")
@click.option(
    "-e",
    "--trace",
    "chosen",
    multiple=True,
    metavar="LIST",
    help="Only these calls, or classes of calls: memory, process, machine … [all]",
)
@click.option("-c", "--summary-only", "counts", is_flag=True, help="Print only a table, at the end.")
@click.option(
    "-t", "clock", count=True, help="The time of day. -tt: with microseconds. -ttt: in seconds since the epoch."
)
@click.option("-r", "--relative-timestamps", "relative", is_flag=True, help="The time since the line before.")
@click.option("-T", "--syscall-times", "spent", is_flag=True, help="The duration of each call.")
@output_option
@click.option(
    "--buffer", type=Size(), default="4M", metavar="SIZE", help="The buffer for calls that are not read yet. [4M]"
)
@socket_option
def strace(
    process: tuple[int, ...],
    attach: tuple[int, ...],
    forks: bool,
    chosen: tuple[str, ...],
    counts: bool,
    clock: int,
    relative: bool,
    spent: bool,
    output: str | None,
    buffer: int,
    socket_path: str | None,
) -> None:
    """Read calls and print them."""
    pids = (*process, *attach)
    if not pids:
        raise click.UsageError("PID is missing")
    calls = frozenset().union(*(parse_trace(one) for one in chosen or ("all",)))
    offset = time.time_ns() - time.monotonic_ns()
    style = Style(clock, relative, spent, pids=forks and output not in (None, "-"), realtime_offset=offset)
    globs = (*_GLOBS, "machine:*") if calls & MACHINE else _GLOBS
    with opened(output) as out, stop_signals() as stopped:
        follow = CallFollower(Printer(set(pids), calls, forks, style), out, counts=counts)
        path = socket_path or default_socket_path()
        # The first call of a child comes before a trace of the child could be opened: -f traces all processes.
        run(path, globs, () if forks else pids, buffer, None, follow, stopped)
        follow.end()


class CallFollower(Follower):
    """Prints the lines of calls, or counts the calls."""

    def __init__(self, printer: Printer, out: Output, *, counts: bool) -> None:
        super().__init__(TextWriter(out.file), None, out.begin)
        self._printer = printer
        self._file = out.file
        self._counts = counts
        self._unseen = set(printer.pids)
        self._is_new = True

    @property
    def is_full(self) -> bool:
        """Whether all processes that are followed have ended."""
        return not self._printer.pids

    def take(self, entries: Iterator[Entry]) -> None:
        """Print the lines of the entries. Raises Failure for a trace that begins without a process of --attach."""
        for entry in entries:
            if isinstance(entry, Comm):
                self._unseen.discard(entry.pid)
                continue
            self._check_seen()
            if isinstance(entry, Lost):
                self._print(f"strace: {entry.records} events lost")
            else:
                for line in self._printer.lines(entry):
                    self._print(line)
        self._check_seen()
        self._file.flush()

    def _check_seen(self) -> None:
        """Check the names at the start of the trace: it names every process that this user may trace."""
        if self._is_new and self._unseen:
            raise Failure(Status.NO_PROCESS, f"{no_process(min(self._unseen))}: none that you may trace")
        self._is_new = False

    def _print(self, line: str) -> None:
        if not self._counts:
            print(line, file=self._file)

    def end(self) -> None:
        """Print the processes that go on, and the number of lost events; with -c, the table."""
        for pid in sorted(self._printer.pids):
            click.echo(f"strace: Process {pid} detached", err=True)
        if self._counts:
            for line in summary(self._printer.tallies):
                print(line, file=self._file)
        self._file.flush()
        if self.lost:
            click.echo(f"strace: {self.lost} events lost", err=True)
