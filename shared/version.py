"""The option --version of all three programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def version_option(program: str) -> Callable[[Any], Any]:
    """Return a decorator that gives a command the option --version, which prints a line and ends the program."""

    def print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
        if not wanted:
            return
        from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415  (slow, for this alone)

        try:
            click.echo(f"{program} {version('kerneld')}")
        except PackageNotFoundError:
            click.echo(f"{program} (run from a checkout, not installed)")
        ctx.exit()

    return click.option(
        "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="Print the version."
    )
