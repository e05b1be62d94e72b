"""The group of all commands: it finds a command's module when it is asked for, and turns what goes wrong into a line.

Owns the order in which failures are told apart. Knows no command by name but `start`, which no command means.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from kerneld.commands.failure import Failure, Status
from shared.standard_streams import complain, discard_output, flush_output

OWN_OPTIONS = ("-h", "--help", "--version")
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What only writing raises: where no file is named, it is the output that cannot be written."""


class Commands(click.Group):
    """The group: no command means `start`, and an error is one line, where click would print its usage too."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **kwargs: Any) -> None:
        """`modules` names the module of each command; it is imported when the command is asked for.

        In that module the command has its name, with an underscore for a dash.
        """
        super().__init__(*args, **kwargs)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every command's name, sorted."""
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command, or None."""
        module = self._modules.get(cmd_name)
        if module is None:
            return None
        command: click.Command = getattr(import_module(module), cmd_name.replace("-", "_"))
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `start` in front where no command is named."""
        if not args or (args[0].startswith("-") and args[0] not in OWN_OPTIONS):
            args = ["start", *args]
        return super().parse_args(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command and exit with its status; whatever goes wrong is one line on stderr."""
        kwargs["standalone_mode"] = False
        status: int = Status.OK
        try:
            status = super().main(*args, **kwargs) or Status.OK
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader of our output left (`kerneld ps | head`): nothing to say, and nothing to flush at exit.
            discard_output()
            status = Status.FAILED
        except click.Abort:
            status = say("interrupted", Status.FAILED)
        except click.UsageError as error:
            of_command = error.ctx.command_path if error.ctx else "kerneld"
            status = say(f"{error.format_message()} ({of_command} --help tells more)", Status.USAGE)
        except Failure as error:
            status = say(error.message, error.status)
        except click.ClickException as error:
            status = say(error.format_message(), Status.FAILED)
        except OSError as error:
            status = say(_words_of(error), Status.FAILED)
            discard_output()
        except Exception as error:
            # A bug of ours; the daemon's log has the traceback, people get a line.
            status = say(f"internal error: {type(error).__name__}: {error}", Status.FAILED)
        flush_output()
        sys.exit(status)


def say(message: str, status: int) -> int:
    """Print one line on stderr; returns `status`."""
    complain(f"kerneld: {' '.join(message.split())}")
    return status


def _words_of(error: OSError) -> str:
    if error.filename:
        return f"{error.filename}: {error.strerror or error}"
    return f"cannot write: {error.strerror}" if error.errno in _OF_WRITING else error.strerror or str(error)
