"""One program of a submission at a terminal of its own: what it prints and when, Ctrl+C, its end.

Owns the pseudo-terminal and the process. A program that prints to a pipe would keep its lines back: at a terminal it
prints as it does for the student, and Ctrl+C is a key.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from kerneld.commands.grade.cell.room import Room, TooMuch

_READ_BYTES = 1 << 16
_TURN_SECONDS = 0.02
_CHECK_SECONDS = 0.2
_END_SECONDS = 2.0
_MIB = 1 << 20
_CANNOT_EXECUTE = 127
_WINDOW = struct.pack("HHHH", 50, 200, 0, 0)
CTRL_C = b"\x03"


class Chunk(NamedTuple):
    """What was read at once, and when (time.monotonic_ns(), the clock of kerneld's events)."""

    time: int
    text: str


class Program:
    """One process of the submission and its terminal."""

    def __init__(
        self, room: Room, words: Sequence[str], environment: Mapping[str, str], directory: Path, path: str, name: str
    ) -> None:
        """Start the file at `path` with the arguments `words`, in `directory`. `name` is the program's for people."""
        self.room = room
        self.name = name
        self.chunks: list[Chunk] = []
        self.printed_bytes = 0
        self.status: int | None = None
        """The status of waitpid(2), once the program has ended."""
        self._checked = 0.0
        self._terminal, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, _WINDOW)
        _set_plain(slave)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._terminal)
            self._become(slave, path, words, environment, directory)
        os.close(slave)

    def _become(
        self, slave: int, path: str, words: Sequence[str], environment: Mapping[str, str], directory: Path
    ) -> NoReturn:
        try:
            os.setsid()
            fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
            for fd in range(3):
                os.dup2(slave, fd)
            os.closerange(3, 4096)
            for signo in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
                signal.signal(signo, signal.SIG_DFL)
            self.room.become_program()
            # By the rights of the program: what the submission calls user/part4 may be a link to anywhere.
            os.chdir(directory)
            os.execve(path, list(words), dict(environment))
        except BaseException as error:
            os.write(2, f"kerneld grade: cannot execute {path}: {error}\n".encode("utf-8", "replace"))
        finally:
            os._exit(_CANNOT_EXECUTE)

    @property
    def text(self) -> str:
        """All that the program has printed."""
        return "".join(chunk.text for chunk in self.chunks)

    @property
    def is_alive(self) -> bool:
        """Whether the program has not ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._drain()
                self.status = status
        return self.status is None

    def wait(self, seconds: float, is_done: Callable[[], bool] = lambda: False) -> bool:
        """Read until `is_done()`, the program's end, or the time. Return whether it was one of the first two.

        Raises TooMuch when the program exceeds a limit.
        """
        end = time.monotonic() + seconds
        while True:
            self._turn()
            if is_done() or not self.is_alive:
                return True
            if time.monotonic() >= end:
                return False

    def press(self, keys: bytes) -> None:
        """Press keys at the terminal. A program that has ended gets none."""
        with contextlib.suppress(OSError):
            os.write(self._terminal, keys)

    def end(self) -> None:
        """Kill the program and its session if they still run, and close the terminal."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            end = time.monotonic() + _END_SECONDS
            while self.is_alive and time.monotonic() < end:
                time.sleep(_TURN_SECONDS / 4)
        os.close(self._terminal)

    def _turn(self) -> None:
        if select.select([self._terminal], [], [], _TURN_SECONDS)[0]:
            self._read()
            if self.printed_bytes > self.room.limits.output_mib * _MIB:
                raise TooMuch(f"{self.name} printed more than {self.room.limits.output_mib} MiB")
        now = time.monotonic()
        if now - self._checked >= _CHECK_SECONDS:
            self._checked = now
            self.room.check()

    def _read(self) -> bool:
        try:
            data = os.read(self._terminal, _READ_BYTES)
        except OSError:
            # Linux says EIO when nobody has the other side open any more.
            time.sleep(_TURN_SECONDS / 4)
            return False
        self.printed_bytes += len(data)
        self.chunks.append(Chunk(time.monotonic_ns(), data.decode("utf-8", "replace")))
        return bool(data)

    def _drain(self) -> None:
        while (
            select.select([self._terminal], [], [], 0)[0]
            and self.printed_bytes < 2 * _MIB * self.room.limits.output_mib
        ):
            if not self._read():
                return


def _set_plain(slave: int) -> None:
    """No echo, and each newline as it is. Ctrl+C stays a signal."""
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)


def ending_words(status: int | None) -> str:
    """Return how a program ended, for people; `status` is that of waitpid(2), None if it runs."""
    if status is None:
        return "still runs"
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"exited with {os.WEXITSTATUS(status)}"
