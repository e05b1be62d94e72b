"""`kerneld referee`: random programs on kerneld and on the host's kernel, and the report of the comparison.

The kernel, and with it numpy, is imported when the command runs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from kerneld.commands.processor import check_processor
from shared.failure import Failure, Status
from shared.interrupts import ending_by_signals
from shared.option_types import Whole


@click.command(
    short_help="Run random memory programs on kerneld and on this host's kernel.",
    help="""Run random memory programs on kerneld and on this host's kernel, and compare after every call.

The command needs a C compiler. It needs no running kerneld. When the kernels differ, the program is made as short as
possible, both results are printed side by side, and the program is saved to a file. --replay runs such a file again.
The exit status is 1 when the kernels differ.

\b
Examples:
  kerneld referee --programs 1000
  kerneld referee --programs 100 --seed 7 --ops 60
  kerneld referee --mode huge --programs 500
  kerneld referee --replay referee-7-42.json
  kerneld referee --inside --programs 100
  kerneld referee --host-command "ssh other kerneld referee --player"
""",
)
@click.option("--programs", type=Whole(min=1), default=1000, show_default=True, help="The number of programs.")
@click.option("--seed", metavar="SEED", help="A seed makes the same programs again. [random]")
@click.option(
    "--first",
    type=Whole(min=0),
    default=0,
    help="Begin with this program of the seed, from 0: go on with an ended run.",
)
@click.option("--ops", type=Whole(min=1), default=40, show_default=True, help="The number of calls in each program.")
@click.option(
    "--mode",
    type=click.Choice(["plain", "many", "huge", "swap"]),
    default="plain",
    show_default=True,
    help="many: hundreds of mappings. huge: with huge pages. swap: with swap (needs root: the host gets a swap file).",
)
@click.option("--replay", type=click.Path(dir_okay=False), metavar="FILE", help="Run the program in FILE instead.")
@click.option(
    "--host-command",
    metavar="COMMAND",
    help="Compare with another machine's kernel: COMMAND starts 'kerneld referee --player' there.",
)
@click.option(
    "--inside",
    is_flag=True,
    help="Compare with programs inside a kerneld ('kerneld exec') and not with a host's kernel.",
)
@click.option(
    "--whole-machine",
    is_flag=True,
    help="Compare counters of vmstat and meminfo too (needs root, and a host on which nothing else runs).",
)
@click.option("--player", is_flag=True, help="Run programs for a referee on another machine, over stdin and stdout.")
def referee(
    programs: int,
    seed: str | None,
    first: int,
    ops: int,
    mode: str,
    replay: str | None,
    host_command: str | None,
    inside: bool,
    whole_machine: bool,
    player: bool,
) -> None:
    """Let the host's kernel judge."""
    check_processor()
    from kerneld.referee.errors import HostError  # noqa: PLC0415
    from kerneld.server import logs  # noqa: PLC0415

    logs.configure(logs.LogFormat.CONSOLE, "error")
    # A person may end a long run by Ctrl+C: the run's directory is removed then too.
    with ending_by_signals("kerneld"):
        try:
            if player:
                play_for_another()
            elif replay is None:
                choice = {"first": first, "inside": inside, "counts": whole_machine}
                run_programs(programs, seed or os.urandom(4).hex(), ops, mode, host_command, **choice)
            else:
                run_again(Path(replay), mode, host_command, inside, whole_machine)
        except HostError as error:
            raise Failure(Status.FAILED, str(error)) from None


def play_for_another() -> None:
    """Play the programs that standard input asks for. Raises HostError."""
    from kerneld.referee.player import serve  # noqa: PLC0415

    serve()


def run_programs(programs: int, seed: str, ops: int, mode: str, host_command: str | None, **choice: Any) -> None:
    """Run the programs of a seed. `choice`: see `kerneld.referee.run.run`.

    Raises Failure when a program diverges, and HostError.
    """
    from kerneld.referee.mode import Mode  # noqa: PLC0415
    from kerneld.referee.run import run  # noqa: PLC0415

    click.echo(f"seed {seed}: {programs} programs of {ops} calls")
    result = run(programs, seed, ops, Path.cwd(), click.echo, Mode(mode), host_command, **choice)
    if result.saved is not None:
        raise Failure(Status.FAILED, f"kerneld and the host's kernel differ; the program is in {result.saved.name}")
    click.echo(f"{result.programs} programs: no divergence")


def run_again(file: Path, mode: str, host_command: str | None, inside: bool, whole_machine: bool) -> None:
    """Run the program of a file. Raises Failure when it diverges or the file has no program, and HostError."""
    from kerneld.referee.mode import Mode  # noqa: PLC0415
    from kerneld.referee.run import replay  # noqa: PLC0415

    try:
        agree = replay(file, click.echo, Mode(mode), host_command, inside=inside, counts=whole_machine)
    except ValueError:
        raise Failure(Status.FAILED, f"{file} holds no program of the referee's") from None
    if not agree:
        raise Failure(Status.FAILED, "kerneld and the host's kernel differ")
    click.echo("no divergence")
