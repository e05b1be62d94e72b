"""The command line of kerneld: it joins the commands. Each command has a module in a room of kerneld/commands.

Owns the list of commands and the words of `kerneld --help`. Imports no command before it is asked for: numpy and
structlog, which `start` needs, cost more than all of `status` does.
"""

from __future__ import annotations

import click

from kerneld.commands.group import Commands
from shared.program import run_program
from shared.version import version_option

HELP = """A kernel in user space. Its page tables can be watched.

Without a command kerneld starts in the foreground.

\b
Examples:
  kerneld                           start, until Ctrl+C
  kerneld start --detach            start in the background; the command returns when kerneld is ready
  kerneld status                    whether kerneld runs: uptime, memory, swap
  kerneld ps                        the processes of the machine
  kerneld maps 4242                 the mappings of process 4242
  kerneld sysctl vm.swappiness=10   set a setting of the machine
  kerneld walk 4242 0x1000000000    how an address is translated, level by level
  kerneld exec -- python3           an unmodified program with its memory in kerneld
  kerneld run -- ./inspector 4242 0x7f0000000000 0x7f0000010000
                                    a C program with the shadow page table's system calls
  kerneld trace --pid 4242          the events of process 4242 as they happen, each with its cause
  kerneld strace 4242               the system calls of process 4242, as strace prints them
  kerneld record                    a record of everything, to be shown at any moment (inspector --replay)
  kerneld ftrace --graph            the functions of the kernel as they run
  kerneld quiz                      a kernel with one mistake: which one?
  kerneld stop                      end kerneld, and wait for its end
  kerneld referee                   compare kerneld with the kernel of this host
  kerneld conformance --export kit  the checks of the assignment, in C, for a real kernel
  kerneld grade team7               points for the user programs of a submission
  kerneld demo                      a demonstration: kerneld, a target and an inspector together

\b
Exit status:
  0  done
  1  failed (another kerneld runs on that socket)      2  wrong usage
  3  kerneld does not run                              4  kerneld went away
  5  no such process, or no such file under /proc      6  not permitted
  7  kerneld cannot start: the directory or the size is refused
  8  the program of kerneld run or exec cannot be run here
"""


COMMANDS = {
    "conformance": "kerneld.commands.conformance.conformance",
    "demo": "kerneld.commands.demo",
    "exec": "kerneld.commands.exec.exec",
    "ftrace": "kerneld.commands.trace.ftrace",
    "grade": "kerneld.commands.grade.grade",
    "inspect-dump": "kerneld.commands.daemon.inspect_dump",
    "maps": "kerneld.commands.proc.maps",
    "proc": "kerneld.commands.proc.proc",
    "ps": "kerneld.commands.proc.ps",
    "record": "kerneld.commands.record.record",
    "quiz": "kerneld.commands.conformance.quiz",
    "referee": "kerneld.commands.referee",
    "run": "kerneld.commands.run.run",
    "start": "kerneld.commands.daemon.start",
    "status": "kerneld.commands.daemon.status",
    "stop": "kerneld.commands.daemon.stop",
    "strace": "kerneld.commands.trace.strace",
    "sysctl": "kerneld.commands.proc.sysctl",
    "trace": "kerneld.commands.trace.trace",
    "walk": "kerneld.commands.proc.walk",
}
"""The module of each command, imported when the command runs. Its function has underscores for dashes."""


@click.group("kerneld", cls=Commands, modules=COMMANDS, help=HELP)
@version_option("kerneld")
def cli() -> None:
    """Do nothing: the commands do the work."""


def main() -> None:
    """Run kerneld's command line and exit with its status."""
    run_program(cli)
