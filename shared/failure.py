"""How a program of the three ends without success: one line on stderr and an exit status.

Owns the statuses that mean the same in all three, and what the client library's exceptions come to. A number from 7 up
is a program's own: kerneld's and the inspector's differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import IntEnum

import click

from shared.client.errors import KerneldError, KerneldGone, KerneldLocked, KerneldUnavailable
from shared.standard_streams import discard_output


class Status(IntEnum):
    """Exit statuses, as `--help` of each program lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3
    DAEMON_GONE = 4
    NO_PROCESS = 5
    NOT_PERMITTED = 6


class Failure(click.ClickException):
    """One line for people and the exit status: a Status, or one of the program's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@contextlib.contextmanager
def client_failures(gone: str = "") -> Iterator[None]:
    """Turn what the client library raises of its own into one line and a status; an OSError goes through.

    `gone` is what people are told where kerneld goes away; the library's own words where it is empty.
    """
    try:
        yield
    except KerneldLocked as error:
        raise Failure(Status.NOT_PERMITTED, str(error)) from None
    except KerneldUnavailable as error:
        raise Failure(Status.NO_DAEMON, str(error)) from None
    except KerneldGone as error:
        raise Failure(Status.DAEMON_GONE, gone or str(error)) from None
    except KerneldError as error:
        raise Failure(Status.FAILED, str(error)) from None


@contextlib.contextmanager
def output_failures() -> Iterator[None]:
    """Turn what writing to standard output raises into one line and a status; a reader that has left goes through."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        # What is left in the buffer would fail again when the interpreter ends.
        discard_output()
        raise Failure(Status.FAILED, f"cannot write: {error.strerror}") from None
