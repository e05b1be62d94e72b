"""The ways a command of kerneld ends that are not success: one line on stderr and an exit status of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import IntEnum

import click

from shared.client.errors import KerneldError, KerneldGone, KerneldUnavailable


class Status(IntEnum):
    """Exit statuses, as `kerneld --help` lists them; those of the inspector, where both have one."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3
    DAEMON_GONE = 4
    NO_PROCESS = 5
    NOT_PERMITTED = 6
    CANNOT_START = 7
    CANNOT_RUN = 8


class Failure(click.ClickException):
    """One line for people and the exit status."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def client_failures() -> Iterator[None]:
    """Turn what the client library raises of its own into one line and a status; an OSError goes through."""
    try:
        yield
    except KerneldUnavailable as error:
        # The library says why in words; the errno behind them tells a locked door from an empty house.
        is_locked = isinstance(error.__context__, PermissionError)
        raise Failure(Status.NOT_PERMITTED if is_locked else Status.NO_DAEMON, str(error)) from None
    except KerneldGone as error:
        raise Failure(Status.DAEMON_GONE, str(error)) from None
    except KerneldError as error:
        raise Failure(Status.FAILED, str(error)) from None
