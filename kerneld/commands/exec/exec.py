"""`kerneld exec`: an unmodified program whose memory is kerneld's.

It owns the words; then the stub takes this process over, with its pid, and becomes the program (docs/programs.md).
"""

from __future__ import annotations

import os
import resource
import signal

import click

from kerneld.commands.compiled import BuildError
from kerneld.commands.exec.build_stub import ensure_stub
from kerneld.commands.failure import KerneldStatus
from kerneld.commands.program import ProgramError, find_program
from shared.client.connection import find_daemon
from shared.client.path import default_socket_path
from shared.failure import Failure, client_failures
from shared.option_types import SocketPath

HELP = """Run PROGRAM inside the machine: each page of its memory is kerneld's.

Any x86-64 program, as it is. It runs on the real processor; its page faults and memory calls are kerneld's, all other
system calls the host's. PROGRAM has this process's pid, terminal, files and exit status, and its children are inside
too. kerneld must be running, and be your own. docs/programs.md says what works, and what is refused.

\b
Examples:
  kerneld exec -- python3                   then, from elsewhere: kerneld maps PID, inspector PID [heap]
  kerneld exec -- ./target
  kerneld exec --env LANG=C -- sort names.txt

\b
Exit status: the program's, or
  3  kerneld does not run                   6  not permitted to use it
  8  the program cannot be run here, or the stub cannot be built
"""
_HIDDEN_FDS = 64
"""So many descriptors below the limit are the stub's."""
_MOST_FDS = 1024
"""A process whose descriptors reach higher has a larger table of them, which each fork copies."""


@click.command(
    name="exec",
    short_help="Run a program inside: its memory is kerneld's.",
    help=HELP,
    context_settings={"allow_interspersed_args": False},
)
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="Set a variable of its environment.")
@click.option(
    "--socket",
    "socket_path",
    type=SocketPath(),
    metavar="PATH",
    help="Where kerneld listens. [$KERNELD_SOCKET or the user's own]",
)
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def exec(variables: tuple[str, ...], socket_path: str | None, program: str, arguments: tuple[str, ...]) -> None:
    """Check what can be checked before, and become the stub."""
    path = os.path.abspath(socket_path or default_socket_path())
    environment = _environment(variables, path)
    try:
        found = find_program(program)
        stub = ensure_stub()
    except (ProgramError, BuildError) as error:
        raise Failure(KerneldStatus.CANNOT_RUN, str(error)) from None
    with client_failures():
        find_daemon(path)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        # Python ignores them, and an ignored signal stays so across execve.
        signal.signal(ignored, signal.SIG_DFL)
    hidden = str(_first_hidden_fd())
    try:
        os.execve(stub, ["kerneld-exec", "-", path, hidden, "-", found, program, program, *arguments], environment)
    except OSError as error:
        raise Failure(KerneldStatus.CANNOT_RUN, f"cannot run {found}: {error.strerror}") from None


def _environment(variables: tuple[str, ...], socket_path: str) -> dict[str, str]:
    """Return the program's environment. Raises a usage error for what is no NAME=VALUE."""
    environment = {**os.environ, "KERNELD_SOCKET": socket_path}
    for variable in variables:
        name, is_set, value = variable.partition("=")
        if not name or not is_set:
            raise click.BadParameter(f"'{variable}' is not NAME=VALUE", param_hint="--env")
        environment[name] = value
    return environment


def _first_hidden_fd() -> int:
    """Return from which number on descriptors are the stub's. Raises Failure where the limit leaves no room."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    hidden = min(soft, _MOST_FDS) - _HIDDEN_FDS
    if hidden < _HIDDEN_FDS:
        raise Failure(KerneldStatus.CANNOT_RUN, f"the limit of {soft} open files is too small (ulimit -n)")
    return hidden
