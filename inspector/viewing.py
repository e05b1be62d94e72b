"""The views of a record: in the browser (`--web`), of a running kerneld or of a file (`--replay`).

Joins the options with the views. A view whose package is not installed says so in one line.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

from inspector import replay
from inspector.address import Span, looks_like_name
from inspector.failure import InspectorStatus
from inspector.player import Player
from inspector.printing import emit
from inspector.source import FileSource, LiveSource
from inspector.spans import parse_span
from shared.client.errors import KerneldGone
from shared.failure import Failure, Status, client_failures
from shared.recording.address_space import AddressSpace
from shared.recording.chunks import NoRecord
from shared.recording.live import LiveRecord
from shared.recording.machine import Machine
from shared.recording.reader import Recording
from shared.stop_signals import stop_signals
from shared.trace.events import PROCESS_FORK, TASK_NEWTASK


class Focus(NamedTuple):
    """What the view shows first: a process, and a range of it."""

    pid: int | None
    span: Span | None

    def as_words(self) -> dict[str, str]:
        """Return it as the part of an address behind the #."""
        words = {} if self.pid is None else {"pid": str(self.pid)}
        if self.span is not None:
            words |= {"start": f"{self.span.start:#x}", "end": f"{self.span.end:#x}"}
        return words


class Moments(NamedTuple):
    """Which moments of a record the text view shows. A moment is the number of the event that comes next."""

    at: int | None = None
    compare: tuple[int, int] | None = None
    frame: int | None = None


def show_replay(path: str, pid: int | None, start: str | None, end: str | None, moments: Moments) -> None:
    """Print a record: what is in it; a process at a moment; what happened to a range or a frame. Raises Failure."""
    recording = open_recording(path)
    if moments.frame is not None:
        emit(replay.frame_lines(recording, moments.frame))
    elif pid is None:
        emit(replay.summary_lines(recording, path))
    elif moments.compare is not None:
        _show_comparison(recording, pid, start, end, moments.compare)
    elif start is None:
        machine, mm = _at(recording, pid, recording.nr_events if moments.at is None else moments.at)
        emit(replay.maps_lines(machine, mm))
    else:
        first = _first_moment(recording, pid) if moments.at is None else moments.at
        machine, mm = _at(recording, pid, first)
        span = _span_of(machine, mm, start, end)
        emit([f"The machine before event {first}:", *replay.table_lines(mm, span)])
        emit(replay.change_lines(recording, mm.number, span, first))


def _first_moment(recording: Recording, pid: int) -> int:
    """Return the first moment at which a process is there; 0 if it never is."""
    if pid in recording.machine(0).tasks:
        return 0
    kinds = {TASK_NEWTASK.number, PROCESS_FORK.number}
    events = recording.records(0, None, kinds)
    born = (number for number, record in events if record.fields.get("pid", record.fields.get("child_pid")) == pid)
    return next(born, -1) + 1


def _at(recording: Recording, pid: int, number: int) -> tuple[Machine, AddressSpace]:
    """Return the machine at a moment, and the address space that a process has there. Raises Failure."""
    machine = recording.machine(number)
    mm = replay.find_mm(machine, pid)
    if mm is None:
        has_ended = pid in machine.tasks
        words = "has exited by then: --at takes an earlier event" if has_ended else "is not there"
        raise Failure(Status.NO_PROCESS, f"before event {min(number, recording.nr_events)} process {pid} {words}")
    return machine, mm


def _span_of(machine: Machine, mm: AddressSpace, start: str, end: str | None) -> Span:
    """Return the range of START and END; START may be the name of a mapping. Raises AddressError, Failure."""
    if not looks_like_name(start):
        return parse_span(start, end)
    names = {vma.start: replay.vma_name(machine, mm, vma) for vma in mm.vmas.values()}
    wanted = [
        vma for vma in mm.vmas.values() if names[vma.start] == start or names[vma.start].rpartition("/")[2] == start
    ]
    if not wanted:
        raise Failure(InspectorStatus.NO_MAPPING, f"there is no mapping called {start} at that moment")
    whole = Span(min(vma.start for vma in wanted), max(vma.end for vma in wanted))
    return whole if end is None else parse_span(f"{whole.start:#x}", end)


def _show_comparison(
    recording: Recording, pid: int, start: str | None, end: str | None, moments: tuple[int, int]
) -> None:
    first, second = (_at(recording, pid, number) for number in moments)
    span = None if start is None else _span_of(*second, start, end)
    emit(replay.compare_lines((first[0], second[0]), (first[1], second[1]), span))


def open_recording(path: str) -> Recording:
    """Return the record of a file. Raises Failure."""
    try:
        return Recording.open(path)
    except NoRecord as error:
        raise Failure(Status.FAILED, f"{path}: {error}") from None
    except OSError as error:
        raise Failure(Status.FAILED, f"cannot read {path}: {error.strerror}") from None


def show_in_browser(focus: Focus, *, port: int, path: str | None, socket_path: str | None) -> None:
    """Serve the page until a signal. Raises Failure."""
    try:
        from inspector.web.run import serve  # noqa: PLC0415
    except ImportError as error:
        raise Failure(
            Status.FAILED, f"the view in the browser needs {error.name}: pip install 'kerneld[web]' has it"
        ) from None
    source: FileSource | LiveSource
    with stop_signals() as signals:
        source = FileSource(open_recording(path)) if path is not None else LiveSource(open_live(socket_path))
        try:
            serve(source, signals, port, focus.as_words(), lambda address: emit([address]))
        finally:
            source.close()


def show_in_terminal(focus: Focus, *, path: str | None, socket_path: str | None) -> None:
    """Show the machine full screen, live or from a record, until a key or a signal ends it. Raises Failure."""
    try:
        from inspector.tui.app import LiveApp  # noqa: PLC0415
    except ImportError as error:
        raise Failure(
            Status.FAILED, f"the view in the terminal needs {error.name}: pip install 'kerneld[tui]' has it"
        ) from None
    if not all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)):
        raise Failure(Status.USAGE, "--live needs a terminal; inspector PID START END prints lines")
    vaddr = 0 if focus.span is None else focus.span.start
    with stop_signals() as signals:
        if path is not None:
            LiveApp(Player(open_recording(path)), pid=focus.pid, vaddr=vaddr, signals=signals).run()
            return
        live = open_live(socket_path)
        source = LiveSource(live)
        try:
            player = Player(Recording.growing(live.head))
            LiveApp(player, source.begin, pid=focus.pid, vaddr=vaddr, signals=signals).run()
        finally:
            source.close()


def open_live(socket_path: str | None) -> LiveRecord:
    """Return a record of the running kerneld. Raises Failure."""
    try:
        with client_failures():
            return LiveRecord(socket_path)
    except (KerneldGone, OSError) as error:
        raise Failure(
            Status.FAILED, f"kerneld refuses the record: {getattr(error, 'strerror', None) or error}"
        ) from None
