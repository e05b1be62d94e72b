"""How a trace is written: one class a format. A new format is a class with the methods of `Writer`, and a row below."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Protocol, TextIO, cast

from shared.clock import WallClock
from shared.failure import Failure, Status
from shared.trace.record import Comm, Lost, Record
from shared.trace.text import Names, as_json, lost_json, lost_line, text_line


class Writer(Protocol):
    """Takes a trace in the order in which it was written."""

    def name(self, comm: Comm) -> None:
        """A process has this name from here on."""

    def lost(self, lost: Lost) -> None:
        """So many records are missing here."""

    def event(self, record: Record) -> None:
        """Something has happened."""

    def flush(self) -> None:
        """Nothing more has come for now: whoever looks may see what there is."""

    def close(self) -> None:
        """Nothing more comes; the file itself is its opener's to close."""


class LineWriter:
    """What writers of lines share: a line for each record, seen at once."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._names = Names()

    def name(self, comm: Comm) -> None:
        """A process has this name from here on."""
        self._names.note(comm)

    def flush(self) -> None:
        """Nothing more has come for now."""
        self._file.flush()

    def close(self) -> None:
        """Nothing more comes."""
        self._file.flush()


class TextWriter(LineWriter):
    """Lines as of trace_pipe; with a WallClock of the time of day."""

    def __init__(self, file: IO[str], wall: WallClock | None = None) -> None:
        super().__init__(file)
        self._wall = wall

    def lost(self, lost: Lost) -> None:
        """As trace_pipe says it."""
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
    """Raises Failure where the package is missing that has the format's messages, or a person would have to read it."""
    try:
        from kerneld.commands.trace.perfetto.writer import PerfettoWriter  # noqa: PLC0415  (a tenth of a second, for this alone)
    except ImportError:
        raise Failure(
            Status.FAILED, "the format perfetto needs a package more: pip install 'kerneld[perfetto]'"
        ) from None
    if file.isatty():
        raise Failure(Status.USAGE, "a perfetto file is nothing for a terminal: name a file with -o")
    return PerfettoWriter(cast(TextIO, file).buffer)


WRITERS: dict[str, Callable[[IO[str]], Writer]] = {"text": TextWriter, "json": JsonWriter, "perfetto": _perfetto}
EVERYTHING: dict[str, tuple[str, ...]] = {"perfetto": ("*", "machine:*", "kmem:*")}
"""What is traced where nothing is named, of a format for which that is more than `*`: accesses, resident pages."""
