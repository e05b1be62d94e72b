"""The common frame of all programs: the start, and the end as an exit status and one line on stderr.

Owns the order in which failures are told apart. Knows no command.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn

import click

from shared.failure import Failure, Status
from shared.process_name import set_process_name
from shared.standard_streams import complain, flush_output, open_standard_streams
from shared.terminal import escaped

_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errnos that only writing raises. An error without a file name is then an error of standard output."""


class CommandLine(click.Command):
    """The command line of a program. Its end is an exit status and at most one line; click prints its usage too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 120})
        super().__init__(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command line and end the process with its status."""
        kwargs["standalone_mode"] = False
        status, line = _outcome(self.name or "", functools.partial(super().main, *args, **kwargs))
        if line:
            # The line may quote the name of a file that a pattern of the shell has found: any bytes.
            complain(escaped(f"{self.name}: {' '.join(line.split())}"))
        flush_output()
        sys.exit(status)


def run_program(program: CommandLine) -> NoReturn:
    """Be the program, under its name."""
    assert program.name is not None
    # Before any other file is opened: a closed standard stream would become that file.
    open_standard_streams()
    set_process_name(program.name)
    # Until a command handles signals itself it has nothing to clean up: Ctrl+C ends the process at once.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program.main(prog_name=program.name)


def _outcome(name: str, run: Callable[[], Any]) -> tuple[int, str]:
    """Return the status of a run, and the line for people."""
    try:
        status = run()
        sys.stdout.flush()
        return status or Status.OK, ""
    except BrokenPipeError:
        # The reader of our output has left (`kerneld ps | head`): no line. What is left is discarded by the last flush.
        return Status.FAILED, ""
    except click.UsageError as error:
        of_command = error.ctx.command_path if error.ctx else name
        return Status.USAGE, f"{error.format_message()} ({of_command} --help tells more)"
    except Failure as failure:
        return failure.status, failure.message
    except click.ClickException as error:
        return Status.FAILED, error.format_message()
    except OSError as error:
        return Status.FAILED, _words_of(error)
    except Exception as error:
        return Status.FAILED, f"internal error: {type(error).__name__}: {error}{_place(error.__traceback__)}"


def _words_of(error: OSError) -> str:
    if error.filename:
        return f"{error.filename}: {error.strerror or error}"
    return f"cannot write: {error.strerror}" if error.errno in _OF_WRITING else error.strerror or str(error)


def _place(trace: TracebackType | None) -> str:
    """Return the file and line of a bug, for a report."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"
