"""`kerneld proc`: prints a file of kerneld's /proc, piece by piece."""

from __future__ import annotations

import re

import click

from kerneld.commands.proc.printing import emit
from kerneld.commands.proc.reading import stream_proc
from shared.client.path import default_socket_path
from shared.option_types import ByteCount, socket_option
from shared.real_process import no_process

_OF_A_PROCESS = re.compile(r"(\d{1,10})(/(maps|smaps|smaps_rollup|pagemap|status|stat|statm|comm|cmdline))?", re.ASCII)
"""The files that every process has. If one is missing, the process is."""


@click.command(
    short_help="Print a file of kerneld's /proc.",
    help="""Print a file of kerneld's /proc. PATH is relative to /proc. The command prints LENGTH bytes from OFFSET on,
or up to the end of the file. OFFSET and LENGTH are decimal, with K, M or G for powers of 1024, or hexadecimal with 0x.
A file and a pipe get every byte. A terminal gets bytes that are not printable as octal escapes.

pagemap has a word of 8 bytes for each page of 4K of the address space: 256G in all, and most words are zero. The word
of an address is at the offset address / 512.

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
                                    the words of sixteen pages at 0x1000000000
""",
)
@click.argument("path")
@click.option("--offset", type=ByteCount(), default="0", metavar="OFFSET", help="The first byte. [0]")
@click.option("--length", type=ByteCount(), metavar="LENGTH", help="The number of bytes. [all]")
@socket_option
def proc(path: str, offset: int, length: int | None, socket_path: str | None) -> None:
    """Print a /proc file."""
    name = path.removeprefix("/proc").strip("/")
    emit(stream_proc(socket_path or default_socket_path(), name, offset, length, if_missing=why_missing(name)))


def why_missing(name: str) -> str:
    """Return the line for a file that kerneld's /proc does not have."""
    match = _OF_A_PROCESS.fullmatch(name)
    if match is not None:
        return no_process(int(match[1]))
    return f"kerneld's /proc has no file {name or '/'}: kerneld proc --help lists them"
