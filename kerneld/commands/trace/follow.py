"""The loop that reads a trace until it ends or is enough, and what counts the events: of trace, ftrace and strace."""

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
    stopped: StopSignals,
    functions: tuple[str, ...] = (),
    graph_functions: tuple[str, ...] = (),
    why: Mapping[int, tuple[Status, str]] = WHY,
) -> None:
    """Follow until somebody says stop, it has been enough, all of `pids` have ended, or kerneld ends.

    Raises Failure; `why` has the words for what refuses the trace, by errno.
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
