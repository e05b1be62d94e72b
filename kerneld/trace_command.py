"""`kerneld trace`: what happens in a running kerneld, as it happens, until Ctrl+C.

Owns the options and the loop that reads; how an event is written is a `Writer`'s. Imports no kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import IO

import click

from kerneld.commands.failure import Failure, Status, client_failures
from kerneld.commands.options import Size, socket_option
from kerneld.trace_writer import EVERYTHING, WRITERS, TextWriter, Writer
from shared.client.errors import KerneldGone
from shared.client.path import default_socket_path
from shared.clock import WallClock
from shared.option_types import Seconds, Whole
from shared.real_process import no_process
from shared.trace.events import EVENTS, NAMED_ONLY, matching
from shared.trace.record import Comm, Entry, Lost, Record

WHY = {
    errno.EPERM: (Status.NOT_PERMITTED, "not permitted to trace a process of another user's"),
    errno.EMFILE: (Status.FAILED, "too many traces are open"),
    errno.ENOSPC: (Status.FAILED, "kerneld allows no buffer of that size"),
    errno.ENOSYS: (Status.FAILED, "this kerneld cannot be traced"),
    errno.ENOMEM: (Status.FAILED, "the host has no memory for the buffer"),
}


output_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write there; - is stdout. [stdout]",
)


@click.command(
    short_help="Follow what happens, and why: calls, faults, entries …",
    help="""Follow what happens in a running kerneld: calls, faults, VMAs, page-table entries, frames, signals, reclaim.

Each line says who, when, what, and why: cause=store/fault@0x7f… is the fault of a store. Ctrl+C ends it, or with --pid
the end of the process; how many of what there were is then said on stderr. What --list names can be chosen by --event,
by system or name, * for any part.

\b
Examples:
  kerneld trace                                   everything, of everybody
  kerneld trace --pid 4242 --event 'pte:*'        the page-table entries of one process
  kerneld trace --event fault --event sched       faults, and processes that come and go
  kerneld trace --format json -o trace.json --duration 5
  kerneld trace --format perfetto -o trace.pftrace  a file for ui.perfetto.dev
  kerneld trace --list                            every event with its fields
""",
)
@socket_option
@click.option("--pid", "pids", type=Whole(min=1), multiple=True, metavar="PID", help="This process, or these.")
@click.option("--event", "globs", multiple=True, metavar="GLOB", help="These events. [all]")
@click.option("--format", "form", type=click.Choice(sorted(WRITERS)), default="text", show_default=True)
@click.option(
    "--clock",
    type=click.Choice(["monotonic", "realtime"]),
    default="monotonic",
    show_default=True,
    help="Of text: seconds as in the log's `monotonic`, or the time of day as inspector --events has it.",
)
@output_option
@click.option("--count", type=Whole(min=1), metavar="N", help="End after so many events.")
@click.option("--duration", type=Seconds(min=0), metavar="SECONDS", help="End after so long.")
@click.option("--buffer", type=Size(), default="4M", metavar="SIZE", help="Room for what is not read yet. [4M]")
@click.option("--list", "listing", is_flag=True, help="List the events, and end.")
def trace(
    socket_path: str | None,
    pids: tuple[int, ...],
    globs: tuple[str, ...],
    form: str,
    clock: str,
    output: str | None,
    count: int | None,
    duration: float | None,
    buffer: int,
    listing: bool,
) -> None:
    """Read a trace and write it."""
    check_globs(globs)
    if listing:
        list_events(globs)
        return
    with opened(output) as out, stop_signals() as stopped:
        is_of_day = form == "text" and clock == "realtime"
        writer = TextWriter(out.file, WallClock()) if is_of_day else WRITERS[form](out.file)
        follow = Follower(writer, count, out.begin)
        wanted = globs or EVERYTHING.get(form, ("*",))
        with ending(follow):
            run(socket_path or default_socket_path(), wanted, pids, buffer, duration, follow, stopped)


def check_globs(globs: tuple[str, ...]) -> None:
    """Raise a usage error for a glob that names no event."""
    for glob in globs:
        if not matching(glob):
            raise click.BadParameter(
                f"there is no event '{glob}': kerneld trace --list has them all", param_hint="--event"
            )


def list_events(globs: tuple[str, ...]) -> None:
    """Print the events with their fields, all where none is named."""
    wanted = {event.number for glob in globs for event in matching(glob)}
    for event in EVENTS:
        if event.number in wanted or not globs:
            only = " Comes only where its system is named." if event.number in NAMED_ONLY else ""
            click.echo(f"{event.name}\n    {event.about}{only}")
            click.echo("    " + " ".join(field.name for field in event.fields))


@contextlib.contextmanager
def opened(output: str | None) -> Iterator[Output]:
    """Yield what is written to: stdout for None and for "-". Raises Failure where the file cannot be.

    A file that is there keeps what it holds until the trace begins; one that is not goes again where none does.
    """
    if output is None or output == "-":
        yield Output(sys.stdout, None)
        return
    with contextlib.ExitStack() as stack:
        try:
            is_new = not os.path.lexists(output)
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
            file = stack.enter_context(open(fd, "w", encoding="utf-8"))
        except OSError as error:
            raise Failure(Status.FAILED, f"cannot write {output}: {error.strerror}") from None
        made = Output(file, fd)
        try:
            yield made
        finally:
            if is_new and not made.has_begun:
                with contextlib.suppress(OSError):
                    os.unlink(output)


class Output:
    """Where a trace goes."""

    def __init__(self, file: IO[str], fd: int | None) -> None:
        self.file = file
        self.has_begun = False
        self._fd = fd

    def begin(self) -> None:
        """The trace is open: what the file held before is gone from here on."""
        self.has_begun = True
        if self._fd is not None and stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.ftruncate(self._fd, 0)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield what tells whether somebody has asked for the end: the one who reads looks between two waits."""
    asked: list[int] = []

    def note(signo: int, _frame: FrameType | None) -> None:
        asked.append(signo)

    former = {signo: signal.signal(signo, note) for signo in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for signo, handler in former.items():
            signal.signal(signo, handler)


class Follower:
    """Takes the records, counts them, and has them written."""

    def __init__(self, writer: Writer, count: int | None, on_open: Callable[[], None]) -> None:
        """`on_open` is called when the trace is open, before anything is written."""
        self._writer = writer
        self._on_open = on_open
        self._left = count
        self._totals: Counter[str] = Counter()
        self.is_open = False
        self.lost = 0

    @property
    def is_full(self) -> bool:
        """Whether there have been as many as were wanted."""
        return self._left == 0

    def begin(self) -> None:
        """The trace is open: whatever happens from now on is in it."""
        self._on_open()
        self.is_open = True

    def take(self, entries: Iterator[Entry]) -> None:
        """Write what has come, as much of it as is wanted."""
        for entry in entries:
            if isinstance(entry, Comm):
                self._writer.name(entry)
            elif isinstance(entry, Lost):
                self._writer.lost(entry)
            elif not self.is_full:
                self._take_one(entry)
        self._writer.flush()

    def _take_one(self, record: Record) -> None:
        self._writer.event(record)
        self._totals[record.event.name] += 1
        if self._left is not None:
            self._left -= 1

    def end(self) -> None:
        """Finish the file and say on stderr what there was."""
        self._writer.close()
        for name, number in self._totals.most_common():
            click.echo(f"{number:>10} {name}", err=True)
        click.echo(f"{self._totals.total():>10} events, {self.lost} lost", err=True)


@contextlib.contextmanager
def ending(follow: Follower) -> Iterator[None]:
    """End what follows a trace, also where kerneld went away in between; not where it never began, or cannot write."""
    try:
        yield
    except Failure:
        if follow.is_open:
            follow.end()
        raise
    follow.end()


def run(
    path: str,
    globs: tuple[str, ...],
    pids: tuple[int, ...],
    buffer: int,
    duration: float | None,
    follow: Follower,
    stopped: Callable[[], bool],
    functions: tuple[str, ...] = (),
    graph_functions: tuple[str, ...] = (),
    why: Mapping[int, tuple[Status, str]] = WHY,
) -> None:
    """Follow until somebody says stop, it has been enough, all of `pids` have ended, or kerneld ends.

    Raises Failure; `why` has the words for what refuses the trace, by errno.
    """
    from kerneld.traced_processes import TracedProcesses  # noqa: PLC0415
    from shared.client import Process  # noqa: PLC0415
    from shared.client.trace import TraceSession  # noqa: PLC0415

    with as_failures({**why, errno.ESRCH: (Status.NO_PROCESS, no_processes(pids))}):
        process = Process.attach(path)
        session = TraceSession(process, globs, pids, buffer, functions, graph_functions)
    reader = session.reader
    traced = TracedProcesses(process, pids)
    follow.begin()
    until = None if duration is None else time.monotonic() + duration
    try:
        while not (follow.is_full or stopped() or reader.is_ended or traced.have_ended()):
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                break
            if reader.wait(left, process.fileno(), wanted_bytes=reader.size_bytes // 8):
                follow.take(reader.read())
            elif is_hung_up(process.fileno()) and not reader.is_ended:
                raise Failure(Status.DAEMON_GONE, "kerneld went away")
        with contextlib.suppress(KerneldGone):
            session.stop()
        follow.take(reader.read())
    finally:
        follow.lost = reader.lost
        traced.close()
        session.close()
        process.close()


def no_processes(pids: tuple[int, ...]) -> str:
    """Return the words for a trace of processes of which one is missing."""
    numbers = ", ".join(map(str, pids))
    return f"kerneld has not all of the processes {numbers}" if len(pids) != 1 else no_process(pids[0])


def is_hung_up(fd: int) -> bool:
    """Tell whether a connection has ended: between calls there is nothing else to read from it."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


@contextlib.contextmanager
def as_failures(reasons: Mapping[int, tuple[Status, str]]) -> Iterator[None]:
    """Turn what opening a trace may raise into one line and a status."""
    try:
        with client_failures():
            yield
    except OSError as error:
        status, why = reasons.get(error.errno or 0, (Status.FAILED, f"cannot trace: {error.strerror}"))
        raise Failure(status, why) from None
