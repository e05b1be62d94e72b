"""The group of all commands. It imports the module of a command when somebody runs that command.

Knows only one command by name, `start`: it runs when no command is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from shared.program import CommandLine

OWN_OPTIONS = ("-h", "--help", "--version")


class Commands(CommandLine, click.Group):
    """The group: no command means `start`."""

    def __init__(self, *args: Any, modules: Mapping[str, str], **kwargs: Any) -> None:
        """`modules` has the module of each command.

        The function has the command's name, with underscores for dashes.
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
