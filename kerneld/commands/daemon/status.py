"""`kerneld status`: whether the daemon runs, its uptime, its memory and its swap. Imports no kernel."""

from __future__ import annotations

import json
import re

import click

from kerneld.commands.options import json_option
from kerneld.commands.proc.reading import read_proc
from shared.client.connection import find_daemon
from shared.client.path import default_socket_path
from shared.failure import client_failures
from shared.option_types import socket_option
from shared.terminal import one_line

_UNITS = {"kB": "kb", "s": "seconds"}


@click.command(
    short_help="Print whether kerneld runs, its uptime and its memory.",
    help="""Print whether kerneld runs, its uptime, its memory and its swap. The exit status is 0 when kerneld runs, and
3 when it does not.

\b
Examples:
  kerneld status
  kerneld status --json             one JSON object on one line, for programs: mem_free_kb, tasks …
  kerneld status > /dev/null || kerneld start --detach
""",
)
@json_option
@socket_option
def status(as_json: bool, socket_path: str | None) -> None:
    """Print kerneld/status, a file of kerneld's /proc, with the pid and the socket in front."""
    path = socket_path or default_socket_path()
    with client_failures():
        pid = find_daemon(path)
    rows = [("Status", "running"), ("Pid", str(pid)), ("Socket", path)]
    for line in read_proc(path, "kerneld/status").decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() != "pid":
            rows.append((key.strip(), value.strip()))
    if as_json:
        click.echo(json.dumps(dict(_json_pair(key, value) for key, value in rows)))
        return
    width = max(len(key) for key, _ in rows) + 2
    for key, value in rows:
        click.echo(f"{key + ':':<{width}}{one_line(value)}")


def _json_pair(key: str, value: str) -> tuple[str, object]:
    """Return a row as a name with the unit, and a value: `MemFree: 12 kB` is mem_free_kb, 12."""
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?: (kB|s))?", value)
    if match is None or key == "Socket":
        return name, value
    number, unit = match.groups()
    return f"{name}_{_UNITS[unit]}" if unit else name, float(number) if "." in number else int(number)
