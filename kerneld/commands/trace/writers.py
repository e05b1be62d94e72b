"""The formats of a trace: one class for each. A new format is a class with the methods of `Writer`, and a row below."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Protocol, TextIO, cast

from shared.clock import WallClock
from shared.failure import Failure, Status
from shared.trace.record import Comm, Lost, Record
from shared.trace.text import Names, as_json, lost_json, lost_line, text_line


class Writer(Protocol):
    """Takes the entries of a trace in their order."""

    def name(self, comm: Comm) -> None:
        """Note the name that a process has from here on."""

    def lost(self, lost: Lost) -> None:
        """Say how many records are missing here."""

    def event(self, record: Record) -> None:
        """Write an event."""

    def flush(self) -> None:
        """Write out: no more entries have come for now, and a person may look at the file."""

    def close(self) -> None:
        """Finish. The caller closes the file."""


class LineWriter:
    """The common part of formats with a line for each record."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._names = Names()

    def name(self, comm: Comm) -> None:
        """Note the name that a process has from here on."""
        self._names.note(comm)

    def flush(self) -> None:
        """Write out."""
        self._file.flush()

    def close(self) -> None:
        """Finish."""
        self._file.flush()


class TextWriter(LineWriter):
    """Lines as in trace_pipe. With a WallClock they have the time of day."""

    def __init__(self, file: IO[str], wall: WallClock | None = None) -> None:
        super().__init__(file)
        self._wall = wall

    def lost(self, lost: Lost) -> None:
        """Say how many records are missing here, as trace_pipe does."""
        print(lost_line(lost), file=self._file)

    def event(self, record: Record) -> None:
        """One line."""
        print(text_line(record, self._names, self._wall), file=self._file)


class JsonWriter(LineWriter):
    """One object a line."""

    def __init__(self, file: IO[str]) -> None:
        super().__init__(file)
        self._wall = WallClock()

    def lost(self, lost: Lost) -> None:
        """An object with `lost` alone."""
        print(lost_json(lost), file=self._file)

    def event(self, record: Record) -> None:
        """One object."""
        print(as_json(record, self._names, self._wall), file=self._file)


def _perfetto(file: IO[str]) -> Writer:
    """Return the writer. Raises Failure when the package perfetto is missing, or when the output is a terminal."""
    try:
        from kerneld.commands.trace.perfetto.writer import PerfettoWriter  # noqa: PLC0415  (a tenth of a second, for this alone)
    except ImportError:
        raise Failure(
            Status.FAILED, "the format perfetto needs one more package: pip install 'kerneld[perfetto]'"
        ) from None
    if file.isatty():
        raise Failure(Status.USAGE, "a perfetto file cannot be read on a terminal: name a file with -o")
    return PerfettoWriter(cast(TextIO, file).buffer)


WRITERS: dict[str, Callable[[IO[str]], Writer]] = {"text": TextWriter, "json": JsonWriter, "perfetto": _perfetto}
EVERYTHING: dict[str, tuple[str, ...]] = {"perfetto": ("*", "machine:*", "kmem:*")}
"""The events of a format without --event, where they are more than `*`: accesses, resident pages."""
