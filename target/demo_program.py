"""A program of the demonstration: a real process, its output line by line, its end.

Owns the process and the thread that reads its output. Every wait has a limit: the demonstration fails if a program
prints nothing for too long.
"""

from __future__ import annotations

import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress

from shared.failure import Failure, Status

PATIENCE_SECONDS = 60.0
"""The longest wait for a program, in seconds. On an emulated or a busy processor kerneld takes over 10 s to start."""


class DemoError(Failure):
    """A check has failed: one line for people."""

    def __init__(self, message: str) -> None:
        super().__init__(Status.FAILED, message)


class Program:
    """One running program."""

    def __init__(self, name: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start `words` in a new process group, so that Ctrl+C reaches only the demonstration."""
        self.name = name
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            process_group=0,
        )
        self._last_line = "it has said nothing"
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._process.pid

    def read_line(self) -> str | None:
        """Return the next line without its newline, None at the end. Raises DemoError when no line comes in time."""
        try:
            line = self._lines.get(timeout=PATIENCE_SECONDS)
        except queue.Empty:
            raise DemoError(f"{self.name} has said nothing for {PATIENCE_SECONDS:g} seconds") from None
        if line is None:
            # The end stays in the queue for the next read.
            self._lines.put(None)
        elif line:
            self._last_line = line
        return line

    def read_waiting_lines(self) -> list[str]:
        """Return the lines that have come already."""
        lines: list[str] = []
        with suppress(queue.Empty):
            while (line := self._lines.get_nowait()) is not None:
                lines.append(line)
            self._lines.put(None)
        return lines

    def press_enter(self) -> None:
        """Write an empty line to the program's input. The output shows it if the program has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl+C does."""
        self._process.send_signal(signal.SIGINT)

    def wait(self) -> list[str]:
        """Wait for the end and return the remaining lines. Raises DemoError on an exit status other than 0."""
        lines: list[str] = []
        while (line := self.read_line()) is not None:
            lines.append(line)
        try:
            status = self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{self.name} has not ended after {PATIENCE_SECONDS:g} seconds") from None
        self._close()
        if status:
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"
            raise DemoError(f"{self.name} {how}: {self._last_line}")
        return lines

    def kill(self) -> None:
        """End the program if it still runs, and wait for it."""
        self._process.kill()
        self._process.wait()
        self._close()

    def _close(self) -> None:
        self._reader.join(PATIENCE_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)
