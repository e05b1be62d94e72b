"""Types of option values for the command lines of all programs: numbers, sizes, the path of the socket, its option."""

from __future__ import annotations

import math
import re
from typing import Any

import click


class Whole(click.IntRange):
    """An integer within bounds. The message for another value says "integer"."""

    name = "integer"


class Seconds(click.FloatRange):
    """A finite number of seconds. A bound alone would let `nan` in."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Text that is no number, not finite, or out of bounds is a usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"'{value}' is no time", param, ctx)
        return number


UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_BYTES = re.compile(r"(0x[0-9a-f]+|[0-9]+)([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)
_MOST_BYTES = (1 << 63) - 1
"""The largest offset of a file."""


def parse_bytes(text: str) -> int | None:
    """Return the number of bytes in `text`, or None. It is decimal, or hexadecimal after 0x, with K, M, G or T."""
    match = _BYTES.fullmatch(text)
    if match is None:
        return None
    number, unit = match.groups()
    return int(number, 16 if number[:2] in ("0x", "0X") else 10) * UNITS[unit.upper()]


class ByteCount(click.ParamType[int]):
    """A number of bytes up to `most`: decimal with K, M, G or T for powers of 1024, or hexadecimal after 0x."""

    name = "size"

    def __init__(self, most: int = _MOST_BYTES) -> None:
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes. Other text is a usage error."""
        count = value if isinstance(value, int) else parse_bytes(value)
        if count is None:
            self.fail(f"'{value}' is not a size: say 64K, 256M or 1G", param, ctx)
        if count > self._most:
            self.fail(f"'{value}' is too much: {self._most} bytes are the most", param, ctx)
        return count


class SocketPath(click.ParamType[str]):
    """The path of the socket. The empty string is refused: a shell makes it of a variable that is not set."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the path. An empty path is a usage error."""
        if not value:
            self.fail("the path is empty", param, ctx)
        return str(value)


socket_option = click.option(
    "--socket",
    "socket_path",
    type=SocketPath(),
    metavar="PATH",
    help="Where kerneld listens. [$KERNELD_SOCKET, $XDG_RUNTIME_DIR/kerneld/kerneld.sock or "
    "/tmp/kerneld-<uid>/kerneld.sock]",
)
