"""`kerneld record`: everything that happens in the machine, into a file that shows it again at any moment.

Owns the options and the file. `shared.recording.live` makes the chunks. The file is whole after each chunk: what a
killed record has written can be read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import IO

import click

from kerneld.commands.options import Size
from shared.client.path import default_socket_path
from shared.failure import Failure, Status, client_failures
from shared.option_types import Seconds, Whole, socket_option
from shared.page.package import one_file
from shared.real_process import no_process
from shared.recording.chunks import Chunk, pack_head
from shared.recording.live import LiveRecord
from shared.stop_signals import StopSignals, stop_signals
from shared.terminal import escaped

DEFAULT_NAME = "machine.kdrecord"


@click.command(
    short_help="Write everything that happens into a file, to be shown at any moment.",
    help=f"""Record the machine: everything that happens, into a file. `inspector --replay FILE` shows it again.

A record begins with the machine as it is. It has each event with its cause, so that the machine can be shown at any
moment. Ctrl+C ends the record. With --pid, the end of the processes ends it too. A file that exists is replaced.

\b
Examples:
  kerneld record                          everything, into {DEFAULT_NAME}, until Ctrl+C
  kerneld record --pid 4242 -o one.kdrecord
  kerneld record --html lecture.html      one HTML file with everything in it, which a browser opens from the disk
  kerneld record --duration 10
""",
)
@socket_option
@click.option("-o", "--output", metavar="FILE", help=f"The file of the record. [{DEFAULT_NAME}]")
@click.option("--html", metavar="FILE", help="Write one HTML file when the record ends. Then -o need not be given.")
@click.option(
    "--pid", "pids", type=Whole(min=1), multiple=True, metavar="PID", help="Only this process. May be given again."
)
@click.option("--duration", type=Seconds(min=0), metavar="SECONDS", help="End after this time.")
@click.option(
    "--buffer", type=Size(), metavar="SIZE", help="The buffer for events that are not read yet. [64M, or 16M]"
)
def record(
    socket_path: str | None,
    output: str | None,
    html: str | None,
    pids: tuple[int, ...],
    duration: float | None,
    buffer: int | None,
) -> None:
    """Record until a signal, or until there is nothing more to record."""
    if output is None and html is None:
        output = DEFAULT_NAME
    with stop_signals() as stopped, contextlib.ExitStack() as files:
        live = open_live(socket_path or default_socket_path(), pids, buffer or 0)
        files.callback(live.close)
        kept: list[Chunk] = []
        file = None if output is None else files.enter_context(opened(output))
        page = None if html is None else files.enter_context(opened(html))
        if file is not None:
            write(file, pack_head(live.head), output)
        click.echo(escaped(f"Recording into {output or html}. Ctrl+C ends the record."), err=True)
        for chunk in chunks_until_stopped(live, pids, duration, stopped):
            if file is not None:
                write(file, chunk.pack(), output)
            if page is not None:
                kept.append(chunk)
        if page is not None:
            write(page, one_file(live.head, kept), html)
        tell(live, output, html)
        if live.is_gone:
            raise Failure(Status.DAEMON_GONE, "kerneld went away: the record ends there")


def open_live(socket_path: str, pids: tuple[int, ...], buffer: int) -> LiveRecord:
    """Return a record that has begun. Raises Failure."""
    try:
        with client_failures():
            return LiveRecord(socket_path, pids, ring_bytes=buffer)
    except OSError as error:
        if error.errno == errno.ESRCH:
            words = no_process(pids[0]) if len(pids) == 1 else f"kerneld has not all of the processes {pids}"
            raise Failure(Status.NO_PROCESS, words) from None
        if error.errno == errno.EPERM:
            raise Failure(Status.NOT_PERMITTED, "not permitted to record a process of another user's") from None
        raise Failure(Status.FAILED, f"cannot record: {error.strerror}") from None


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Yield a file for a record, emptied. Raises Failure."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise Failure(Status.FAILED, f"cannot write {path}: {error.strerror}") from None
    with open(fd, "wb", buffering=0) as file:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
        yield file


def write(file: IO[bytes], data: bytes, path: str | None) -> None:
    """Write all of the bytes. Raises Failure."""
    try:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
    except OSError as error:
        raise Failure(Status.FAILED, f"cannot write {path}: {error.strerror}") from None


def chunks_until_stopped(
    live: LiveRecord, pids: tuple[int, ...], duration: float | None, stopped: StopSignals
) -> Iterator[Chunk]:
    """Yield the chunks until a signal, the end of all `pids`, the time, or the end of kerneld."""
    until = None if duration is None else time.monotonic() + duration
    while not stopped.received and not live.is_ended and not (pids and live.have_ended(pids)):
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            break
        yield from live.read(left, stopped.fileno(), wanted_bytes=live.ring_bytes // 8)
    yield from live.stop()


def tell(live: LiveRecord, output: str | None, html: str | None) -> None:
    """Say on stderr what has been written."""
    events, gaps = live.recorder.events, live.recorder.gaps
    lost = f"; events are missing in {gaps} places: a larger --buffer keeps them" if gaps else ""
    for path, how in ((output, "inspector --replay"), (html, "open in a browser:")):
        if path is not None:
            click.echo(escaped(f"{events} events in {path}{lost}. To see them: {how} {path}"), err=True)
