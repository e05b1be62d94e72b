"""The end of a program without success: one line on stderr and an exit status.

Owns the statuses that all programs have, and the status of each exception of the client library. The numbers from 7 up
are different in kerneld and in the inspector.
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
    """Turn an exception of the client library into a Failure. An OSError of a system call goes through.

    `gone` is the line for people when kerneld goes away; empty for the library's own line.
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
    """Turn an error of writing to standard output into a Failure. A BrokenPipeError goes through."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        # The rest of the buffer would fail again when the interpreter ends.
        discard_output()
        raise Failure(Status.FAILED, f"cannot write: {error.strerror}") from None
