"""The waits of the tour before each step: some seconds, or until Enter. A wait also notices the end of kerneld.

Owns standard input with --step. It reads byte by byte, so that later lines stay in the pipe.
"""

from __future__ import annotations

import math
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Protocol

from shared.client import KerneldGone
from shared.failure import output_failures

PROMPT = "[Enter]"
"""The prompt of --step. It is a whole line if the input is no terminal."""


class EndOfInput(Exception):
    """Standard input has ended: no Enter can come."""


class Pace(Protocol):
    """The wait before each step."""

    def wait(self, times: int = 1) -> None:
        """Wait once, or `times` as long."""


class DelayPace:
    """Waits `delay` seconds before each step."""

    def __init__(self, delay: float, connection: int) -> None:
        """Wait `delay` seconds a step, watching the descriptor `connection` for its end."""
        self._delay = delay
        self._connection = connection

    def wait(self, times: int = 1) -> None:
        """Wait `times` delays. Raises KerneldGone when the connection ends before."""
        due = time.monotonic() + self._delay * times
        poll = select.poll()
        poll.register(self._connection, select.POLLIN | select.POLLRDHUP)
        # The time is rounded up: a shorter wait would spin for the last millisecond.
        while (left := due - time.monotonic()) > 0:
            if poll.poll(math.ceil(left * 1000)):
                raise _gone()


class StepPace:
    """Waits for a line of input before each step."""

    def __init__(self, say: Callable[[str], None], connection: int, source: int = 0) -> None:
        """Prompt by `say`, read lines from the descriptor `source`, watch `connection` for its end."""
        self._say = say
        self._connection = connection
        self._source = source

    def wait(self, times: int = 1) -> None:
        """Wait for Enter, however many `times`. Raises EndOfInput, and KerneldGone when the connection ends before."""
        terminal = os.isatty(self._source)
        self._say(f"      {PROMPT} " if terminal else f"      {PROMPT}\n")
        try:
            self._read_line()
        except BaseException:
            # The next text begins on a new line.
            if terminal:
                self._say("\n")
            raise

    def _read_line(self) -> None:
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        poll.register(self._connection, select.POLLIN | select.POLLRDHUP)
        byte = b""
        while byte != b"\n":
            ready = [descriptor for descriptor, _events in poll.poll()]
            if self._connection in ready:
                raise _gone()
            byte = _read_byte(self._source)
            if not byte:
                raise EndOfInput


def say_to_stdout(text: str) -> None:
    """Write `text` to standard output at once: a forked child must not inherit half a line.

    Raises Failure(FAILED) if it cannot be written, and BrokenPipeError if the reader has left.
    """
    with output_failures():
        sys.stdout.write(text)
        sys.stdout.flush()


def _gone() -> KerneldGone:
    # Between calls the kernel sends nothing. So a readable connection has ended.
    return KerneldGone("kerneld went away")


def _read_byte(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1)
    except OSError:
        # A closed standard input counts as ended.
        return b""
