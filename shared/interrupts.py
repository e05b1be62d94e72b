"""Signals that ask a program to end, raised where it is: all is put away on the way out; it ends of the signal then."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from shared.client.signals import die_of
from shared.standard_streams import complain

GRACE_SECONDS = 0.3
"""A second signal that comes so soon is the same wish: timeout(1) sends one to the program and one to its group."""


class Interrupted(BaseException):
    """A signal asks the program to end."""

    def __init__(self, signo: int) -> None:
        super().__init__(signal.Signals(signo).name)
        self.signo = signo


def raise_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise Interrupted; a second signal ends the process at once.

    A SIGHUP that is ignored (nohup) stays so.
    """
    owner = os.getpid()
    asked_at: list[float] = []

    def interrupt(signo: int, _frame: FrameType | None) -> None:
        # A forked child that has not set its own dispositions yet has nothing of its parent's to put away.
        if os.getpid() == owner:
            now = time.monotonic()
            if not asked_at:
                asked_at.append(now)
                raise Interrupted(signo)
            if now - asked_at[0] < GRACE_SECONDS:
                return
        signal.signal(signo, signal.SIG_DFL)
        os.kill(os.getpid(), signo)

    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signo is not signal.SIGHUP or signal.getsignal(signo) is not signal.SIG_IGN:
            signal.signal(signo, interrupt)


@contextlib.contextmanager
def ending_by_signals(program: str) -> Iterator[None]:
    """Have the three signals leave the block, say in a line that they have ended `program`, and end the process so."""
    raise_on_signals()
    try:
        yield
    except BaseException as error:
        interrupted = _find_interrupted(error)
        if interrupted is None:
            raise
        complain(f"{program}: ended by {interrupted}")
        die_of(interrupted.signo)


def _find_interrupted(error: BaseException | None) -> Interrupted | None:
    """Return the signal that is behind an error: what goes wrong while things are put away is not worth a word."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error
