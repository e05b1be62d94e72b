"""The signals that ask a program to end, as an exception where the program is: it puts away what it has on the way out.

The program then ends of the signal, so that its parent sees the true status.
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
    """Have the three signals leave the block, say in a line that they have ended `program`, and end the process so."""
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
    """Return the signal that is behind an error: what goes wrong while things are put away is not worth a word."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error
