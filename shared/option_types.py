"""What the command lines of the three programs have in common: numbers that are numbers, and the socket's path."""

from __future__ import annotations

import math
from typing import Any

import click


class Whole(click.IntRange):
    """An integer within bounds, called so where something else is refused."""

    name = "integer"


class Seconds(click.FloatRange):
    """A time that passes: neither endless nor `nan`, which no bound keeps out."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number; a usage error where it is none, or not finite, or out of bounds."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"'{value}' is no time", param, ctx)
        return number


class SocketPath(click.ParamType[str]):
    """Where kerneld listens; not the empty string, which a shell makes of a variable that is not set."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path; a usage error where it is empty."""
        if not value:
            self.fail("the path is empty", param, ctx)
        return str(value)
