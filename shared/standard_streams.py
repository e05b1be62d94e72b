"""Standard input, output and error of a starting program: they are open, also if the parent has closed them.

If a descriptor 0, 1 or 2 is closed, the program's first socket would get that number. The program would then print to
kerneld, and read kerneld's answers as its input. Answers to what a C library does for set-user-ID programs.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDERR_FD = 2
_replaced: list[TextIO | None] = []
"""The earlier standard error. The reference keeps it alive, because its end would close the descriptor."""


class _Errors(io.RawIOBase):
    """Descriptor 2, without errors: text that cannot be written is dropped.

    The interpreter flushes at its end. A write error would come again there, and make the exit status 120.
    """

    def write(self, data: ReadableBuffer, /) -> int:
        whole = memoryview(data).cast("B")
        with contextlib.suppress(OSError):
            return os.write(STDERR_FD, whole)
        return len(whole)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return STDERR_FD

    def isatty(self) -> bool:
        return os.isatty(STDERR_FD)


def open_standard_streams() -> None:
    """Open the closed ones of the descriptors 0, 1 and 2 on /dev/null, only for this program.

    From then on standard error raises no write error. Must be called before anything else is opened.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # This descriptor is the lowest free one: the lower ones are open by now.
            os.open(os.devnull, flags)
    # The interpreter has set the streams of closed descriptors to None.
    sys.stdin = sys.stdin or open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    _replaced.append(sys.stderr)
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    errors = io.BufferedWriter(_Errors())
    sys.stderr = io.TextIOWrapper(errors, encoding=encoding, errors="backslashreplace", line_buffering=True)


def discard_output() -> None:
    """Drop the buffered text of standard output, and all later text, because it cannot be written."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def flush_output() -> OSError | None:
    """Write the buffered text of standard output. On failure drop the text and return the error.

    A program calls this last. A write error at the interpreter's own end would make the exit status 120.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        discard_output()
        return error
    return None


def complain(line: str) -> None:
    """Write one line to standard error. A line that cannot be written is dropped."""
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def are_colours_welcome() -> bool:
    """Whether the output may have colours: the terminal can show them, and NO_COLOR is not set."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
