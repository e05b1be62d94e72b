"""`kerneld run`: a C program with the system calls of the shadow page table, on a kernel that has no such calls.

Owns the options and the environment of the program. The program then takes over this process, with its pid.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import click

from kerneld.commands.compiled import BuildError
from kerneld.commands.failure import KerneldStatus
from kerneld.commands.program import ProgramError, find_program
from kerneld.commands.run.preload import ensure_library, header_path, library_sources
from kerneld.commands.run.program import check_program
from kerneld.commands.semesters import SEMESTERS
from shared.client.connection import find_daemon
from shared.client.path import default_socket_path
from shared.failure import Failure, Status, client_failures
from shared.option_types import socket_option

HELP = """Run PROGRAM with the system calls of the shadow page table. kerneld answers these calls, the real kernel all
others.

PROGRAM is a program of the assignment: compiled against <linux/shadowpt.h>, with any compiler, and dynamically linked.
Its target may be a process of kerneld's, or a real process that you may ptrace. --abi chooses the numbers of the calls:
f24 462-466, f25 467-470, f25-part1 467-468, f23 451-453. PROGRAM has the pid of this process. kerneld must be running.

An errno of these calls has many causes. With --explain, a line on stderr names the cause of each failure. --explain
also names calls that do not reach kerneld: a number of another semester, a syscall instruction in the program itself, a
call of a static program.

\b
Examples:
  kerneld run --header include              write <linux/shadowpt.h> and <kerneld.h> into the directory include
  cc -I include inspector.c -o inspector
  kerneld run -- ./inspector 4242 0x7f0000000000 0x7f0000010000
  kerneld run --explain -- ./inspector 4242 0x7f0000000001 0x7f0000010000
                                            kerneld: shadowpt_open: EINVAL: start 0x7f0000000001 is not page-aligned
  kerneld run --abi f23 -- ./inspector 4242 0x7f0000000000 0x7f0000010000

\b
Exit status: that of PROGRAM, or
  3  kerneld does not run                   6  not permitted to use it
  8  PROGRAM cannot be run here, or the library for it cannot be built
"""


@click.command(
    name="run",
    short_help="Run a C program with the system calls of the shadow page table.",
    help=HELP,
    context_settings={"allow_interspersed_args": False},
)
@click.option("--abi", type=click.Choice(list(SEMESTERS)), default="f24", show_default=True, help="The semester.")
@click.option(
    "--header",
    "header_directory",
    metavar="DIR",
    help="Write the header of the semester to DIR/linux/shadowpt.h, and libkerneld to DIR/kerneld.h and DIR/kerneld.c.",
)
@click.option("--explain", is_flag=True, help="Print on stderr why a call fails, or does not reach kerneld.")
@socket_option
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
    except (ProgramError, BuildError) as error:
        raise Failure(KerneldStatus.CANNOT_RUN, str(error)) from None
    with client_failures():
        find_daemon(path)
    if explain:
        from kerneld.commands.run.explain import watch_calls  # noqa: PLC0415

        os.environ["KERNELD_EXPLAIN"] = "1"
        watch_calls(abi, library)
    execute(found, [program, *arguments], library, path)


def install_header(abi: str, directory: Path) -> None:
    """Copy the header of the semester and libkerneld into a directory of headers, and print where they are."""
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
    """Execute the program in this process. Raises Failure when the real kernel refuses."""
    environment = preload_environment(os.environ, library, socket_path)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores these signals, and an ignored signal stays ignored across execve.
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execve(path, argv, environment)
    except OSError as error:
        raise Failure(KerneldStatus.CANNOT_RUN, f"cannot run {path}: {error.strerror}") from None


def preload_environment(environ: Mapping[str, str], library: Path, socket_path: str) -> dict[str, str]:
    """Return an environment in which the library takes the calls of a program."""
    environment = {**environ, "KERNELD_SOCKET": socket_path}
    earlier = environment.get("LD_PRELOAD", "")
    environment["LD_PRELOAD"] = f"{library}:{earlier}" if earlier else str(library)
    # AddressSanitizer refuses to start behind another preloaded library; this one takes nothing that it needs.
    options = environment.get("ASAN_OPTIONS", "")
    environment["ASAN_OPTIONS"] = ":".join(filter(None, ["verify_asan_link_order=0", options]))
    return environment
