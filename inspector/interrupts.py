"""SIGINT, SIGTERM and SIGHUP as something to wait for, so that none of them cuts a system call of the machine in two.

Owns the handlers of the three signals while it is entered. Must be entered in the main thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from enum import Enum
from types import FrameType
from typing import Any

from shared.interrupts import GRACE_SECONDS

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Woken(Enum):
    """Why a wait ended."""

    STOP = "a signal asked to end"
    HANGUP = "the connection has ended"
    TIME = "the time is over"


class Interrupts:
    """Remembers the first signal; a second one ends the process at once, for a daemon that does not answer."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._received_at = 0.0
        self._wake, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._wake, select.POLLIN)

    def handle(self, signo: int, _frame: FrameType | None) -> None:
        """Be the handler of a signal."""
        now = time.monotonic()
        if self.received is None:
            self.received, self._received_at = signo, now
        elif now - self._received_at >= GRACE_SECONDS:
            signal.signal(signo, signal.SIG_DFL)
            os.kill(os.getpid(), signo)

    def wait(self, seconds: float, connection: int) -> Woken:
        """Wait until a signal has come (earlier ones count), `connection` is at its end, or `seconds` are over."""
        self._poll.register(connection, select.POLLIN | select.POLLRDHUP)
        try:
            ready = {fd for fd, _event in self._poll.poll(max(0.0, seconds) * 1000)}
        finally:
            self._poll.unregister(connection)
        # The byte in the pipe may be seen before the handler has run.
        if self.received is not None or self._wake in ready:
            return Woken.STOP
        # Between calls the kernel sends nothing: what can be read is the end.
        return Woken.HANGUP if connection in ready else Woken.TIME

    def close(self) -> None:
        """Close the pipe."""
        os.close(self._wake)
        os.close(self._wake_writer)

    def fileno(self) -> int:
        """Return a descriptor that is readable once a signal has come: for a wait for more than signals."""
        return self._wake

    @property
    def wake_writer(self) -> int:
        """The descriptor that Python writes to when a signal comes."""
        return self._wake_writer


@contextlib.contextmanager
def interrupts() -> Iterator[Interrupts]:
    """Take over the three signals for the time of a with block; a SIGHUP that is ignored (nohup) stays so."""
    taken = Interrupts()
    before: list[tuple[signal.Signals, Callable[[int, FrameType | None], Any] | int | None]] = []
    wake_before = signal.set_wakeup_fd(taken.wake_writer, warn_on_full_buffer=False)
    try:
        for signo in SIGNALS:
            if signo is signal.SIGHUP and signal.getsignal(signo) is signal.SIG_IGN:
                continue
            before.append((signo, signal.signal(signo, taken.handle)))
        yield taken
    finally:
        for signo, handler in before:
            signal.signal(signo, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wake_before)
        taken.close()
