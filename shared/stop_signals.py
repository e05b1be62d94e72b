"""SIGINT, SIGTERM and SIGHUP: the signals that ask a program to end. One rule for all programs.

The first signal asks the program to end. A second signal within GRACE_SECONDS counts as the first one. A later signal
ends the process at once; only the daemon ignores it and finishes its request. A SIGHUP that is ignored when the
program begins stays ignored (nohup). A forked child that has set no dispositions of its own dies of the signal.

A program with a loop waits for the signals (`stop_signals`). A program without a loop gets an exception
(`shared.interrupts`).
Must be used in the main thread. Knows no client and no kernel.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE_SECONDS = 0.3
"""timeout(1) sends one signal to the program and one to its group."""


class Asked:
    """The signals that have come so far."""

    def __init__(self, *, ends_at_second: bool = True) -> None:
        self.received: int | None = None
        """The first signal; None if none has come."""
        self._ends_at_second = ends_at_second
        self._owner = os.getpid()
        self._received_at = 0.0

    def take(self, signo: int) -> bool:
        """Note a signal and return whether it is the first. A signal that ends the process at once ends it here."""
        if os.getpid() == self._owner:
            now = time.monotonic()
            if self.received is None:
                self.received, self._received_at = signo, now
                return True
            if not self._ends_at_second or now - self._received_at < GRACE_SECONDS:
                return False
        signal.signal(signo, signal.SIG_DFL)
        os.kill(os.getpid(), signo)
        return False


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` handle the three signals during a with block. An ignored SIGHUP stays ignored."""
    former = []
    try:
        for signo in STOP_SIGNALS:
            if signo is not signal.SIGHUP or signal.getsignal(signo) is not signal.SIG_IGN:
                former.append((signo, signal.signal(signo, handler)))
        yield
    finally:
        for signo, before in former:
            # None is a handler that Python has not set.
            signal.signal(signo, signal.SIG_DFL if before is None else before)


class StopSignals:
    """The signals as a descriptor to wait on. It becomes readable with the first signal."""

    def __init__(self, asked: Asked, read_fd: int) -> None:
        self._asked = asked
        self._read_fd = read_fd

    @property
    def received(self) -> int | None:
        """The first signal; None if none has come."""
        return self._asked.received

    def fileno(self) -> int:
        """Return the descriptor. It may be readable before `received` says so."""
        return self._read_fd


@contextlib.contextmanager
def stop_signals(*, ends_at_second: bool = True) -> Iterator[StopSignals]:
    """Note the three signals during a with block. They interrupt no system call of the machine."""
    asked = Asked(ends_at_second=ends_at_second)

    def note(signo: int, _frame: FrameType | None) -> None:
        asked.take(signo)

    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    wakeup_before = signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    try:
        with handling(note):
            yield StopSignals(asked, read_fd)
    finally:
        signal.set_wakeup_fd(wakeup_before)
        os.close(read_fd)
        os.close(write_fd)
