"""The signals that ask a program to end, as an exception at the place where the program is.

The exception lets the program clean up. The program then dies of the signal, so that its parent sees the true status.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from shared.client.signals import die_of
from shared.standard_streams import complain
from shared.stop_signals import Asked, handling


class Interrupted(BaseException):
    """A signal asks the program to end."""

    def __init__(self, signo: int) -> None:
        super().__init__(signal.Signals(signo).name)
        self.signo = signo


@contextlib.contextmanager
def ending_by_signals(program: str) -> Iterator[None]:
    """Leave the block when one of the three signals comes, print a line with its name, and die of it."""
    asked = Asked()

    def interrupt(signo: int, _frame: FrameType | None) -> None:
        if asked.take(signo):
            raise Interrupted(signo)

    with handling(interrupt):
        try:
            yield
        except BaseException as error:
            interrupted = _find_interrupted(error)
            if interrupted is None:
                raise
            complain(f"{program}: ended by {interrupted}")
            die_of(interrupted.signo)


def _find_interrupted(error: BaseException | None) -> Interrupted | None:
    """Return the signal behind an error. An error of the cleanup is not reported."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error
