"""A command that has something to put away when a signal asks it to end: it does so, and ends of that signal then."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from shared.client.signals import die_of
from shared.standard_streams import complain


class _Asked(BaseException):
    """A signal asks the program to end: raised wherever it is, so that all is put away on the way out."""

    def __init__(self, signo: int) -> None:
        super().__init__(signo)
        self.signo = signo


@contextlib.contextmanager
def ending_by_signals() -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP leave the block, say so in a line, and end the process; a second one at once.

    A SIGHUP that is ignored (nohup) stays so.
    """

    def ask(signo: int, _frame: FrameType | None) -> None:
        signal.signal(signo, signal.SIG_DFL)
        raise _Asked(signo)

    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signo is not signal.SIGHUP or signal.getsignal(signo) is not signal.SIG_IGN:
            signal.signal(signo, ask)
    try:
        yield
    except _Asked as asked:
        complain(f"kerneld: ended by {signal.Signals(asked.signo).name}")
        die_of(asked.signo)
