"""The file of a trace, or standard output. A file that exists keeps its text until the trace begins."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import IO

import click

from shared.failure import Failure, Status

output_option = click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Write to FILE. A - is stdout. [stdout]",
)


@contextlib.contextmanager
def opened(output: str | None) -> Iterator[Output]:
    """Yield the output: stdout for None and for "-". Raises Failure for a file that cannot be written.

    A file that exists keeps its text until the trace begins. A new file is removed when no trace begins.
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
    """The output of a trace."""

    def __init__(self, file: IO[str], fd: int | None) -> None:
        self.file = file
        self.has_begun = False
        self._fd = fd

    def begin(self) -> None:
        """Note that the trace is open, and remove the earlier text of the file."""
        self.has_begun = True
        if self._fd is not None and stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.ftruncate(self._fd, 0)
