"""`kerneld maps`: the mappings of a process, the text of its maps file."""

from __future__ import annotations

import json

import click

from kerneld.commands.options import json_option
from kerneld.commands.proc.printing import emit
from kerneld.commands.proc.reading import read_proc, stream_proc
from shared.client.path import default_socket_path
from shared.option_types import Whole, socket_option
from shared.proc_maps import parse_maps
from shared.real_process import no_process


@click.command(
    short_help="List the mappings of a process.",
    help="""List the mappings of process PID, as Linux's /proc/PID/maps does.

\b
Examples:
  kerneld maps 4242
  kerneld maps 4242 --json          one JSON object on one line, for programs; addresses are numbers
""",
)
@click.argument("pid", type=Whole(min=1))
@json_option
@socket_option
def maps(pid: int, as_json: bool, socket_path: str | None) -> None:
    """Print the maps of a process."""
    path, missing = socket_path or default_socket_path(), no_process(pid)
    if as_json:
        text = read_proc(path, f"{pid}/maps", missing).decode("utf-8", "surrogateescape")
        click.echo(json.dumps({"pid": pid, "maps": [mapping._asdict() for mapping in parse_maps(text)]}))
    else:
        emit(stream_proc(path, f"{pid}/maps", if_missing=missing))
