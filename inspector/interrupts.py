"""The inspector's wait: for a signal that asks to end, for the end of the connection, or for the time of a print."""

from __future__ import annotations

import select
from enum import Enum

from shared.stop_signals import StopSignals


class Woken(Enum):
    """Why a wait ended."""

    STOP = "a signal asked to end"
    HANGUP = "the connection has ended"
    TIME = "the time is over"


def wait(signals: StopSignals, seconds: float, connection: int) -> Woken:
    """Wait until a signal has come (earlier ones count), `connection` is at its end, or `seconds` are over."""
    poll = select.poll()
    poll.register(signals.fileno(), select.POLLIN)
    poll.register(connection, select.POLLIN | select.POLLRDHUP)
    ready = {fd for fd, _event in poll.poll(max(0.0, seconds) * 1000)}
    if signals.fileno() in ready:
        return Woken.STOP
    # Between calls the kernel sends nothing. So a readable connection has ended.
    return Woken.HANGUP if connection in ready else Woken.TIME
