"""How the target ends without success: one line on stderr and an exit status of its own."""

from __future__ import annotations

from enum import IntEnum


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
