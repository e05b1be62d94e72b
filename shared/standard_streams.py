"""Standard input, output and error of a program that is starting, whatever it was started with.

A descriptor 0, 1 or 2 that is closed would become the program's first socket: what is printed would go to kerneld, and
kerneld's answers would be read as somebody's input. Answers to what a C library does for set-user-ID programs.
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
"""What standard error was: it would close the descriptor if nobody had it any more."""


class _Errors(io.RawIOBase):
    """Descriptor 2, written to as well as can be: what cannot be said there can be said to nobody.

    An error while it is written would be met again when the interpreter ends and flushes, and make its status 120.
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
    """Open each of descriptors 0, 1 and 2 that is closed on /dev/null, for this program alone.

    Standard error is one that takes everything from here on. Must be called before anything else is opened.
    """
    for fd, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # The lowest free descriptor is this one: those below it are open by now.
            os.open(os.devnull, flags)
    # The interpreter has noted None for what was closed when it began.
    sys.stdin = sys.stdin or open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    _replaced.append(sys.stderr)
    encoding = sys.stderr.encoding if sys.stderr else "utf-8"
    errors = io.BufferedWriter(_Errors())
    sys.stderr = io.TextIOWrapper(errors, encoding=encoding, errors="backslashreplace", line_buffering=True)


def discard_output() -> None:
    """Send what standard output still holds, and whatever follows, nowhere: it could not be written."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def flush_output() -> OSError | None:
    """Write what standard output still holds; where that fails it is discarded, and the error returned.

    The last thing that a program does: what is left to the interpreter's end makes the status 120 where it fails.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        discard_output()
        return error
    return None


def complain(line: str) -> None:
    """Write one line on standard error; where that is not possible there is nobody to tell."""
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def are_colours_welcome() -> bool:
    """Whether a terminal may be sent colours: one that can show them, to a person who has not said no (NO_COLOR)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
