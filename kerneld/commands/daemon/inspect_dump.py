"""`kerneld inspect-dump`: the dump of a panic, for people. Imports no kernel: a dump may be of another version."""

from __future__ import annotations

import json
from typing import Any

import click

from shared.failure import Failure, Status
from shared.terminal import one_line
from shared.uapi.dump import DUMP_FORMAT


@click.command(
    "inspect-dump",
    short_help="Print the dump of a kernel panic.",
    help="""Print the dump of a kernel panic. kerneld writes it beside its socket. PATH is the path of the dump.

\b
Examples:
  kerneld inspect-dump /tmp/kerneld-1000/kerneld.sock.panic.json
""",
)
@click.argument("path", type=click.Path(dir_okay=False))
def inspect_dump(path: str) -> None:
    """Print a dump."""
    try:
        with open(path, encoding="utf-8") as file:
            dump = json.load(file)
    except OSError as error:
        raise Failure(Status.FAILED, f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        dump = None
    if not isinstance(dump, dict) or dump.get("format") != DUMP_FORMAT:
        raise Failure(Status.FAILED, f"{path} is not a dump of a kerneld panic")
    for line in lines_of(dump):
        click.echo(one_line(line))


def lines_of(dump: dict[str, Any]) -> list[str]:
    """Return the lines: the reason first, then the request, the machine, each process, and the traceback."""
    lines = [f"kernel panic at {dump['time']}, kerneld pid {dump['pid']}", f"why: {dump['why']}"]
    request = dump.get("request")
    if request is None:
        lines.append("request: none was being run")
    elif "call" in request:
        args = ", ".join(request["args"])
        lines.append(f"request: {request['call']}({args}), {request['inline_bytes']} inline bytes")
        lines.append(f"         by pid {request['pid']}, tid {request['tid']}")
    else:
        lines.append(f"request: {request}")
    lines.append("frames: " + _in_words(dump.get("frames")))
    lines.append(f"shadow table: {dump.get('shadow_table')}")
    for process in dump.get("processes", []):
        lines += _lines_of_process(process)
    lines.append("traceback:")
    lines += ["  " + line for entry in dump.get("traceback", []) for line in entry.rstrip("\n").split("\n")]
    return lines


def _in_words(facts: Any) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items()) if isinstance(facts, dict) else str(facts)


def _lines_of_process(process: dict[str, Any]) -> list[str]:
    if "pid" not in process:
        return [f"a process: {_in_words(process)}"]
    facts = {key: value for key, value in process.items() if key not in ("pid", "vmas")}
    return [f"process {process['pid']}: {_in_words(facts)}", *("  " + vma for vma in process["vmas"])]
