"""The loop of trace, ftrace and strace: reads a trace up to its end, and counts the events."""

from __future__ import annotations

import contextlib
import errno
import select
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import click

from kerneld.commands.trace.writers import Writer
from shared.client.errors import KerneldGone
from shared.failure import Failure, Status, client_failures
from shared.real_process import no_process
from shared.stop_signals import StopSignals
from shared.trace.record import Comm, Entry, Lost, Record

WHY = {
    errno.EPERM: (Status.NOT_PERMITTED, "not permitted to trace a process of another user's"),
    errno.EMFILE: (Status.FAILED, "too many traces are open"),
    errno.ENOSPC: (Status.FAILED, "kerneld allows no buffer of that size"),
    errno.ENOSYS: (Status.FAILED, "this kerneld cannot be traced"),
    errno.ENOMEM: (Status.FAILED, "the host has no memory for the buffer"),
}


class Follower:
    """Counts the records, and gives them to a writer."""

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
        """Whether --count events have come."""
        return self._left == 0

    def begin(self) -> None:
        """Note that the trace is open: it has every event from now on."""
        self._on_open()
        self.is_open = True

    def take(self, entries: Iterator[Entry]) -> None:
        """Write the entries, up to --count events."""
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
        """Finish the file, and print the number of events of each kind on stderr."""
        self._writer.close()
        for name, number in self._totals.most_common():
            click.echo(f"{number:>10} {name}", err=True)
        click.echo(f"{self._totals.total():>10} events, {self.lost} lost", err=True)


@contextlib.contextmanager
def ending(follow: Follower) -> Iterator[None]:
    """Finish a trace that has begun, also when kerneld went away. An output that cannot be written is not finished."""
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
    stopped: StopSignals,
    functions: tuple[str, ...] = (),
    graph_functions: tuple[str, ...] = (),
    why: Mapping[int, tuple[Status, str]] = WHY,
) -> None:
    """Read a trace until a signal, --count, --duration, the end of all `pids`, or the end of kerneld.

    `why` has the status and the words for each errno of a refused trace. Raises Failure.
    """
    from kerneld.commands.trace.processes import TracedProcesses  # noqa: PLC0415
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
        while not (follow.is_full or stopped.received or reader.is_ended or traced.have_ended()):
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                break
            if reader.wait(left, process.fileno(), stopped.fileno(), wanted_bytes=reader.size_bytes // 8):
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
    """Return the words for a trace with a missing process among `pids`."""
    numbers = ", ".join(map(str, pids))
    return f"kerneld has not all of the processes {numbers}" if len(pids) != 1 else no_process(pids[0])


def is_hung_up(fd: int) -> bool:
    """Return whether a connection has ended. Between calls kerneld sends nothing, so the end alone is readable."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


@contextlib.contextmanager
def as_failures(reasons: Mapping[int, tuple[Status, str]]) -> Iterator[None]:
    """Turn an exception of opening a trace into a Failure."""
    try:
        with client_failures():
            yield
    except OSError as error:
        status, why = reasons.get(error.errno or 0, (Status.FAILED, f"cannot trace: {error.strerror}"))
        raise Failure(status, why) from None
