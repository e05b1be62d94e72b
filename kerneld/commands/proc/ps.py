"""`kerneld ps`: the processes of the machine."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import click

from kerneld.commands.options import json_option
from kerneld.commands.proc.reading import read_proc
from shared.client.path import default_socket_path
from shared.option_types import socket_option
from shared.terminal import one_line


class _Task(NamedTuple):
    """A line of kerneld/tasks. The names of the columns are the heads of the table."""

    pid: str
    uid: str
    threads: str
    vsz: str
    rss: str
    state: str
    command: str

    def as_json(self) -> dict[str, object]:
        """Return the line as an object: numbers are numbers, and the names of sizes have the unit."""
        numbers = {name: int(getattr(self, name)) for name in ("pid", "uid", "threads")}
        sizes = {"vsz_kb": int(self.vsz), "rss_kb": int(self.rss)}
        command = re.sub(r"\\([\\n])", lambda match: "\n" if match[1] == "n" else "\\", self.command)
        return {**numbers, **sizes, "state": self.state, "command": command}


@click.command(
    short_help="List the processes of the machine.",
    help="""List the processes of the machine. This command is a process of the machine too. VSZ and RSS are in KiB.

\b
Examples:
  kerneld ps
  kerneld ps --json                 one JSON object on one line, for programs
  kerneld ps --socket ~/machine/kerneld.sock
""",
)
@json_option
@socket_option
def ps(as_json: bool, socket_path: str | None) -> None:
    """Print a table as ps(1) does: numbers to the right, the command last."""
    tasks = read_proc(socket_path or default_socket_path(), "kerneld/tasks").decode("utf-8", "surrogateescape")
    nr_columns = len(_Task._fields)
    rows = [_Task(*line.split("\t", nr_columns - 1)) for line in tasks.removesuffix("\n").split("\n")]
    if as_json:
        click.echo(json.dumps({"processes": [row.as_json() for row in rows]}))
        return
    heads = _Task(*(name.upper() for name in _Task._fields))
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(nr_columns - 1)]
    for row in (heads, *rows):
        cells = [f"{cell:>{width}}" for cell, width in zip(row, widths, strict=False)]
        click.echo(" ".join([*cells, one_line(row.command)]))
