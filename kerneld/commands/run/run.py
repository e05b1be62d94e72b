"""`kerneld run`: a C program with the shadow page table's system calls, on a kernel that has none.

It owns the words and the environment of the program; then the program takes this process over, with its pid.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NoReturn

import click

from kerneld.commands.failure import KerneldStatus
from kerneld.commands.run.preload import PreloadError, ensure_library, header_path, library_sources
from kerneld.commands.run.program import ProgramError, check_program, find_program
from kerneld.commands.run.semesters import SEMESTERS
from shared.client.connection import find_daemon
from shared.client.path import default_socket_path
from shared.failure import Failure, Status, client_failures
from shared.option_types import SocketPath

HELP = """Run PROGRAM with the shadow page table's system calls: kerneld answers them, the real kernel all others.

For programs as the assignment has them, compiled with any compiler against <linux/shadowpt.h>, dynamically linked. Any
process of yours may be their target. --abi says which numbers are taken: f24 462-466, f25 467-470, f25-part1 467-468,
f23 451-453. PROGRAM has this process's pid and its exit status. kerneld must be running.

An errno of these calls has many causes. With --explain each call that fails says why in a line on stderr, and so does
one that kerneld never sees: of another semester's number, by a syscall instruction of the program's own, or by a static
program that it starts.

\b
Examples:
  kerneld run --header include              put <linux/shadowpt.h> and <kerneld.h> to the directory include
  cc -I include inspector.c -o inspector
  kerneld run -- ./inspector 4242 0x7f0000000000 0x7f0000010000
  kerneld run --explain -- ./inspector 4242 0x7f0000000001 0x7f0000010000
                                            kerneld: shadowpt_open: EINVAL: start 0x7f0000000001 is not page-aligned
  kerneld run --abi f23 -- ./inspector 4242 0x7f0000000000 0x7f0000010000

\b
Exit status: the program's, or
  3  kerneld does not run                   6  not permitted to use it
  8  the program cannot be run here, or the library that takes the calls cannot be built
"""


@click.command(
    name="run",
    short_help="Run a C program with the shadow page table's system calls.",
    help=HELP,
    context_settings={"allow_interspersed_args": False},
)
@click.option("--abi", type=click.Choice(list(SEMESTERS)), default="f24", show_default=True, help="The semester.")
@click.option(
    "--header",
    "header_directory",
    metavar="DIR",
    help="Put that semester's header to DIR/linux/shadowpt.h, and libkerneld to DIR/kerneld.h and .c.",
)
@click.option("--explain", is_flag=True, help="Say on stderr why a call fails, or does not reach kerneld.")
@click.option(
    "--socket",
    "socket_path",
    type=SocketPath(),
    metavar="PATH",
    help="Where kerneld listens. [$KERNELD_SOCKET or the user's own]",
)
@click.argument("program", required=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    abi: str,
    header_directory: str | None,
    explain: bool,
    socket_path: str | None,
    program: str | None,
    arguments: tuple[str, ...],
) -> None:
    """Install the header, run the program, or both."""
    if header_directory is not None:
        install_header(abi, Path(header_directory))
    if program is None:
        if header_directory is None:
            raise click.UsageError("Missing argument 'PROGRAM'.")
        return
    path = os.path.abspath(socket_path or default_socket_path())
    try:
        found = find_program(program)
        check_program(found)
        library = ensure_library(abi)
    except (ProgramError, PreloadError) as error:
        raise Failure(KerneldStatus.CANNOT_RUN, str(error)) from None
    with client_failures():
        find_daemon(path)
    if explain:
        from kerneld.commands.run.explain import watch_calls  # noqa: PLC0415

        os.environ["KERNELD_EXPLAIN"] = "1"
        watch_calls(abi, library)
    execute(found, [program, *arguments], library, path)


def install_header(abi: str, directory: Path) -> None:
    """Copy the semester's header to linux/shadowpt.h below a directory of headers, libkerneld beside, and say so."""
    copies = {directory / "linux" / "shadowpt.h": header_path(abi)}
    copies |= {directory / source.name: source for source in library_sources()}
    for target, source in copies.items():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        except OSError as error:
            raise Failure(Status.FAILED, f"cannot write {target}: {error.strerror}") from None
    header = next(iter(copies))
    click.echo(f"{header}: <linux/shadowpt.h> of {abi}, for cc -I {directory}", err=True)
    click.echo(f"{directory / 'kerneld.h'}: <kerneld.h> of libkerneld, which is {directory / 'kerneld.c'}", err=True)


def execute(path: str, argv: list[str], library: Path, socket_path: str) -> NoReturn:
    """Become the program. Raises Failure where the real kernel refuses it."""
    environment = {**os.environ, "KERNELD_SOCKET": socket_path}
    earlier = environment.get("LD_PRELOAD", "")
    environment["LD_PRELOAD"] = f"{library}:{earlier}" if earlier else str(library)
    # AddressSanitizer refuses to start behind another preloaded library; this one takes nothing that it needs.
    options = environment.get("ASAN_OPTIONS", "")
    environment["ASAN_OPTIONS"] = ":".join(filter(None, ["verify_asan_link_order=0", options]))
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores them, and an ignored signal stays so across execve.
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execve(path, argv, environment)
    except OSError as error:
        raise Failure(KerneldStatus.CANNOT_RUN, f"cannot run {path}: {error.strerror}") from None
