"""A command that has something to put away when a signal asks it to end: it does so, and ends of that signal then."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from shared.client.signals import die_of
from shared.standard_streams import complain


class _Asked(BaseException):
    """A signal asks the program to end: raised wherever it is, so that all is put away on the way out."""


@contextlib.contextmanager
def ending_by_signals(program: str = "kerneld") -> Iterator[None]:
    """Have SIGINT, SIGTERM and SIGHUP leave the block, say so in a line, and end the process; a second one at once.

    `program` is whose line that is. A SIGHUP that is ignored (nohup) stays so.
    """
    owner = os.getpid()
    asked: list[int] = []

    def ask(signo: int, _frame: FrameType | None) -> None:
        signal.signal(signo, signal.SIG_DFL)
        if os.getpid() == owner:
            asked.append(signo)
            raise _Asked
        # A forked child: nothing of its parent's is its to put away.
        os.kill(os.getpid(), signo)

    for signo in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signo is not signal.SIGHUP or signal.getsignal(signo) is not signal.SIG_IGN:
            signal.signal(signo, ask)
    try:
        yield
    except BaseException:
        # What goes wrong while things are put away is not worth a word: others that are ended too have gone.
        if not asked:
            raise
        complain(f"{program}: ended by {signal.Signals(asked[0]).name}")
        die_of(asked[0])
