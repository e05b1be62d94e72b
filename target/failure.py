"""How the target ends without success: one line on stderr and an exit status of its own; or a signal, as a signal."""

from __future__ import annotations

import os
import signal
from enum import IntEnum
from types import FrameType


class Status(IntEnum):
    """Exit statuses, as `target --help` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3
    DAEMON_GONE = 4
    NOT_PERMITTED = 6


class Failure(Exception):
    """One line for people and the exit status."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class Interrupted(BaseException):
    """A signal asks the program to end: raised wherever it is, so that all is put away on the way out."""

    def __init__(self, signo: int) -> None:
        super().__init__(signal.Signals(signo).name)
        self.signo = signo


def raise_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise Interrupted; a second signal ends the process at once.

    A SIGHUP that is ignored (nohup) stays so.
    """
    owner = os.getpid()

    def interrupt(signo: int, _frame: FrameType | None) -> None:
        signal.signal(signo, signal.SIG_DFL)
        if os.getpid() == owner:
            raise Interrupted(signo)
        # A forked child that has not set its own dispositions yet: nothing of its parent's is its to put away.
        os.kill(os.getpid(), signo)

    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signo is not signal.SIGHUP or signal.getsignal(signo) is not signal.SIG_IGN:
            signal.signal(signo, interrupt)
