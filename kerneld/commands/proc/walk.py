"""`kerneld walk`: a translation of an address, level by level. The kernel writes the text: /proc/PID/walk/ADDRESS."""

from __future__ import annotations

from typing import Any

import click

from kerneld.commands.proc.printing import emit
from kerneld.commands.proc.reading import stream_proc
from shared.client.path import default_socket_path
from shared.option_types import Whole, socket_option
from shared.real_process import no_process
from shared.uapi.page import TASK_SIZE


class Address(click.ParamType[int]):
    """A hexadecimal address of user space, with 0x or without."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the address. Anything else is a usage error."""
        digits = str(value).lower().removeprefix("0x")
        if not digits or set(digits) - set("0123456789abcdef") or int(digits, 16) >= TASK_SIZE:
            self.fail(f"'{value}' is no address of user space: hexadecimal, below {TASK_SIZE:#x}", param, ctx)
        return int(digits, 16)


@click.command(
    short_help="Show how an address is translated, level by level.",
    help="""Show the translation of address ADDR of process PID as a tree: the entry of each level, and its bits in
words. The walk changes nothing. Where it stops, the last lines say why, and what an access would do.

Frame numbers are for the superuser alone, as in /proc/PID/pagemap.

\b
Examples:
  kerneld walk 4242 0x1000000000
  kerneld walk 4242 7ffd1c0a2010
""",
)
@click.argument("pid", type=Whole(min=1))
@click.argument("address", metavar="ADDR", type=Address())
@socket_option
def walk(pid: int, address: int, socket_path: str | None) -> None:
    """Print the walk."""
    path = socket_path or default_socket_path()
    emit(stream_proc(path, f"{pid}/walk/{address:x}", if_missing=no_process(pid)))
