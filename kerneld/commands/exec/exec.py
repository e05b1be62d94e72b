"""`kerneld exec`: an unmodified program with its memory in kerneld.

Owns the options and the environment of the program. The stub then takes over this process, with its pid, and becomes
the program (docs/programs.md). In the usual case `kerneld.commands.exec.quick` has done so before.
"""

from __future__ import annotations

import os

import click

from kerneld.commands.compiled import BuildError
from kerneld.commands.exec.build_stub import ensure_stub
from kerneld.commands.exec.launch import check_set_user_id, launch
from kerneld.commands.failure import KerneldStatus
from kerneld.commands.program import ProgramError, find_program
from kerneld.commands.semesters import SEMESTERS
from shared.client.connection import find_daemon
from shared.client.path import default_socket_path
from shared.failure import Failure, client_failures
from shared.option_types import socket_option

HELP = """Run PROGRAM inside the machine: kerneld has each page of its memory.

PROGRAM may be any x86-64 program, without a change. It runs on the real processor. kerneld serves its page faults and
its calls of memory management. The host serves all other system calls. PROGRAM has the pid, the terminal and the files
of this process, and its children are inside the machine too. kerneld must be running, under your own user.
docs/programs.md lists the programs that work and the calls that are refused. The calls of the shadow page table work
too; --abi chooses their numbers, as for `kerneld run`.

\b
Examples:
  kerneld exec -- python3                   then, in another terminal: kerneld maps PID, inspector PID [heap]
  kerneld exec -- ./target
  kerneld exec --env LANG=C -- sort names.txt
  kerneld exec --abi f23 -- ./inspector 4242 0x7f0000000000 0x7f0000010000

\b
Exit status: that of PROGRAM, or
  3  kerneld does not run                   6  not permitted to use it
  8  PROGRAM cannot be run here, or the stub cannot be built
"""


@click.command(
    name="exec",
    short_help="Run a program inside the machine.",
    help=HELP,
    context_settings={"allow_interspersed_args": False},
)
@click.option(
    "--env", "variables", multiple=True, metavar="NAME=VALUE", help="Set a variable of the environment of PROGRAM."
)
@click.option(
    "--abi",
    type=click.Choice(list(SEMESTERS)),
    default="f24",
    show_default=True,
    help="The semester whose calls of the shadow page table PROGRAM makes.",
)
@socket_option
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def exec(
    variables: tuple[str, ...], abi: str, socket_path: str | None, program: str, arguments: tuple[str, ...]
) -> None:
    """Check the program and the daemon, and execute the stub."""
    path = os.path.abspath(socket_path or default_socket_path())
    environment = _environment(variables, path)
    try:
        found = find_program(program)
        check_set_user_id(found)
        stub = ensure_stub()
    except (ProgramError, BuildError) as error:
        raise Failure(KerneldStatus.CANNOT_RUN, str(error)) from None
    with client_failures():
        find_daemon(path)
    try:
        launch(stub, path, SEMESTERS[abi].define, [found, program, *arguments], environment)
    except ProgramError as error:
        raise Failure(KerneldStatus.CANNOT_RUN, str(error)) from None
    except OSError as error:
        raise Failure(KerneldStatus.CANNOT_RUN, f"cannot run {found}: {error.strerror}") from None


def _environment(variables: tuple[str, ...], socket_path: str) -> dict[str, str]:
    """Return the environment of the program. Raises a usage error for an option that is not NAME=VALUE."""
    environment = {**os.environ, "KERNELD_SOCKET": socket_path}
    for variable in variables:
        name, is_set, value = variable.partition("=")
        if not name or not is_set:
            raise click.BadParameter(f"'{variable}' is not NAME=VALUE", param_hint="--env")
        environment[name] = value
    return environment
