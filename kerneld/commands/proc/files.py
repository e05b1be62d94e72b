"""`kerneld maps` and `kerneld proc`: files of kerneld's /proc, printed as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

import click

from kerneld.commands.options import json_option, socket_option
from kerneld.commands.proc.reading import read_proc, stream_proc
from shared.client.path import default_socket_path
from shared.option_types import ByteCount, Whole
from shared.proc_maps import parse_maps
from shared.real_process import no_process
from shared.terminal import escaped_pieces


@click.command(
    short_help="List what a process has mapped.",
    help="""List what process PID has mapped, as Linux's /proc/PID/maps does.

\b
Examples:
  kerneld maps 4242
  kerneld maps 4242 --json          an object on one line, for programs: addresses are numbers
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


@click.command(
    short_help="Print a file of kerneld's /proc.",
    help="""Print a file of kerneld's /proc, as it is: PATH is under /proc. It is printed as it is read, from OFFSET on,
LENGTH bytes or up to its end. Both are decimal with K, M or G for powers of 1024, or hexadecimal with 0x. A terminal is
sent what is not for printing as octal escapes; a file and a pipe get every byte.

pagemap has a word of 8 bytes for each page of 4K of the address space, most of it zeros: 256G in all. That of an
address is at the address divided by 512.

\b
Files:
  meminfo, vmstat, buddyinfo, kpagecount, kpageflags
  PID/maps, smaps, smaps_rollup, pagemap, status, stat, statm, comm, cmdline
  kerneld/status, kerneld/tasks

\b
Examples:
  kerneld proc meminfo
  kerneld proc 4242/smaps
  kerneld proc 4242/pagemap --offset $((0x1000000000 / 512)) --length 128 | xxd -e -g8
                                    the words of sixteen pages from 0x1000000000 on
""",
)
@click.argument("path")
@click.option("--offset", type=ByteCount(), default="0", metavar="OFFSET", help="Where to begin, in bytes. [0]")
@click.option("--length", type=ByteCount(), metavar="LENGTH", help="How many bytes. [all]")
@socket_option
def proc(path: str, offset: int, length: int | None, socket_path: str | None) -> None:
    """Print a /proc file."""
    name = path.removeprefix("/proc").strip("/")
    missing = f"kerneld's /proc has no file {name or '/'}: kerneld proc --help lists them"
    emit(stream_proc(socket_path or default_socket_path(), name, offset, length, if_missing=missing))


def emit(pieces: Iterable[bytes]) -> None:
    """Write bytes to stdout, each piece when it has come: as they are, but to a terminal such as cannot steer it."""
    if sys.stdout.isatty():
        pieces = escaped_pieces(pieces)
    for piece in pieces:
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
