"""Standard input, output and error of a program that is starting, whatever it was started with.

A descriptor 0, 1 or 2 that is closed would become the program's first socket: what is printed would go to kerneld, and
kerneld's answers would be read as somebody's input. Answers to what a C library does for set-user-ID programs.
"""

from __future__ import annotations

import contextlib
import os
import sys


def open_standard_streams() -> None:
    """Open each of descriptors 0, 1 and 2 that is closed on /dev/null, for this program alone.

    Must be called before anything else is opened.
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
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


def discard_output() -> None:
    """Send what standard output still holds, and whatever follows, nowhere: it could not be written."""
    with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def complain(line: str) -> None:
    """Write one line on standard error; where that is not possible there is nobody to tell."""
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def are_colours_welcome() -> bool:
    """Whether a terminal may be sent colours: one that can show them, to a person who has not said no (NO_COLOR)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
