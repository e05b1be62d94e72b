"""`python -m tests.hostile.measured_daemon BOARD start …`: a kerneld that notes how long its longest turn was.

BOARD is a file of two words, of nanoseconds: the processor's time of the turn of the loop that took most of it, and the
time by the clock of the turn that took longest. Who reads them writes zeros first. A turn is all that lies between two
waits: what a client that asks little may have to wait for.
"""

from __future__ import annotations

import mmap
import os
import sys
import time

BOARD_BYTES = 16


class Board:
    """The two words, shared by the daemon and who reads them."""

    def __init__(self, path: str) -> None:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, BOARD_BYTES)
            self.words = memoryview(mmap.mmap(fd, BOARD_BYTES)).cast("Q")
        finally:
            os.close(fd)

    def clear(self) -> None:
        """What was until now does not count."""
        self.words[0] = self.words[1] = 0

    def read(self) -> tuple[int, int]:
        """Return the longest turn since: of the processor's time, and of the clock's; in ns."""
        return self.words[0], self.words[1]


def main() -> None:
    """Run kerneld's command with a loop that measures."""
    from kerneld import cli  # noqa: PLC0415
    from kerneld.server import daemon  # noqa: PLC0415
    from kerneld.server.loop import Loop  # noqa: PLC0415

    board = Board(sys.argv.pop(1))

    class MeasuredLoop(Loop):
        """The loop, with a look at the clocks around each wait."""

        _begun: tuple[int, int] | None = None

        def _wait(self, timeout_seconds: float | None) -> list[tuple[int, int]]:
            if self._begun is not None:
                busy, passed = time.thread_time_ns() - self._begun[0], time.monotonic_ns() - self._begun[1]
                words = board.words
                words[0] = max(words[0], busy)
                words[1] = max(words[1], passed)
            events = super()._wait(timeout_seconds)
            self._begun = time.thread_time_ns(), time.monotonic_ns()
            return events

    vars(daemon)["Loop"] = MeasuredLoop
    cli.main()


if __name__ == "__main__":
    main()
