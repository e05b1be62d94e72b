"""The ways the inspector ends that are not success: each is one line on stderr and an exit status of its own."""

from __future__ import annotations

import sys
from enum import IntEnum
from typing import Any

import click

from shared.standard_streams import complain, discard_output, flush_output


class Status(IntEnum):
    """Exit statuses, as `inspector --help` lists them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_DAEMON = 3
    DAEMON_GONE = 4
    NO_PROCESS = 5
    NOT_PERMITTED = 6
    BUSY = 7
    NOT_MAPPED = 8
    NO_MAPPING = 9


class Failure(click.ClickException):
    """One line for people and the exit status."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class OneLineCommand(click.Command):
    """A command whose errors are one line each, where click would print its usage too."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command and exit with its status; a usage error is Status.USAGE."""
        kwargs["standalone_mode"] = False
        try:
            status = super().main(*args, **kwargs)
            sys.stdout.flush()
        except click.ClickException as error:
            hint = " (inspector --help tells more)" if isinstance(error, click.UsageError) else ""
            complain(f"inspector: {' '.join(error.format_message().split())}{hint}")
            status = error.status if isinstance(error, Failure) else error.exit_code
        except click.Abort:
            complain("inspector: interrupted")
            status = Status.FAILED
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                complain(f"inspector: cannot write: {error.strerror}")
            discard_output()
            status = Status.FAILED
        flush_output()
        sys.exit(status or Status.OK)
