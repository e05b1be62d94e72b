"""The command line of kerneld: `start` is the daemon, the other commands are clients of it like any program.

It owns words for people and exit statuses. What a command does not need is imported by those that do: numpy and
structlog cost more than all of `status` does.
"""

from __future__ import annotations

import signal

import click

from kerneld.commands.failure import Failure, Status
from kerneld.commands.group import Commands
from kerneld.commands.options import socket_option
from kerneld.daemon_at import get_daemon
from kerneld.start import start
from shared.client.path import default_socket_path
from shared.option_types import Seconds
from shared.process_name import set_process_name
from shared.standard_streams import open_standard_streams
from shared.version import version_option

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


HELP = """A kernel in user space whose page tables can be watched.

Without a command kerneld starts, in the foreground.

\b
Examples:
  kerneld                           start, until Ctrl+C
  kerneld start --detach            start in the background: returns once it is ready
  kerneld status                    is it running, and how is it doing
  kerneld ps                        the processes it serves
  kerneld maps 4242                 what process 4242 has mapped
  kerneld run -- ./inspector 4242 0x7f0000000000 0x7f0000010000
                                    a C program with the shadow page table's system calls
  kerneld trace --pid 4242          what it does, and why, as it happens
  kerneld strace 4242               its calls, as strace prints them
  kerneld ftrace --graph            the kernel's functions as they run
  kerneld stop                      end it, and wait until it has ended
  kerneld referee                   compare it with this host's kernel
  kerneld demo                      see it work: kerneld, a target and an inspector together

\b
Exit status:
  0  done
  1  failed (another kerneld runs on that socket)      2  wrong usage
  3  kerneld does not run                              4  kerneld went away
  5  no such process, or no such file of one           6  not permitted
  7  kerneld cannot start there, or not so big
  8  the program of kerneld run cannot be run here
"""


ELSEWHERE = {
    "demo": "kerneld.demo_command",
    "ftrace": "kerneld.ftrace_command",
    "inspect-dump": "kerneld.inspect_dump",
    "maps": "kerneld.proc_command",
    "proc": "kerneld.proc_command",
    "ps": "kerneld.status_command",
    "referee": "kerneld.referee_command",
    "run": "kerneld.run",
    "status": "kerneld.status_command",
    "strace": "kerneld.strace.command",
    "trace": "kerneld.trace_command",
}
"""The commands with a module of their own, which is imported when they are asked for."""


@click.group(cls=Commands, elsewhere=ELSEWHERE, help=HELP, context_settings=CONTEXT)
@version_option("kerneld")
def cli() -> None:
    """Nothing of its own to do: the commands do it."""


def main() -> None:
    """Run kerneld's command line and exit with its status."""
    open_standard_streams()
    set_process_name("kerneld")
    # Until the daemon notes signals for itself there is nothing to undo: Ctrl+C is the plain end of a program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    cli(prog_name="kerneld")


cli.add_command(start)


@cli.command(
    short_help="End kerneld, and wait until it has ended.",
    help="""End the kerneld that listens on the socket, and wait until it has ended.

\b
Examples:
  kerneld stop
  kerneld stop --socket ~/machine/kerneld.sock
""",
)
@socket_option
@click.option("--timeout", type=Seconds(min=0), default=30.0, metavar="SECONDS", help="Longest time to wait. [30]")
def stop(socket_path: str | None, timeout: float) -> None:
    """Signal the daemon that answers on the socket."""
    from kerneld.server.peer import stop_daemon  # noqa: PLC0415

    pid = get_daemon(socket_path or default_socket_path())
    try:
        ended = stop_daemon(pid, timeout)
    except PermissionError:
        raise Failure(
            Status.NOT_PERMITTED, f"not permitted to stop kerneld (pid {pid}): it is another user's"
        ) from None
    if not ended:
        raise Failure(Status.FAILED, f"kerneld (pid {pid}) has not ended after {timeout:g} seconds")
    click.echo(f"kerneld has ended (pid {pid})")
