"""The command line of the target. It plays the tour, and ends with an exit status or a signal."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import NoReturn

import click

from shared.client import Process
from shared.failure import Failure, Status, client_failures
from shared.interrupts import ending_by_signals
from shared.option_types import Seconds, socket_option
from shared.program import CommandLine, run_program
from shared.version import version_option
from target.pace import DelayPace, EndOfInput, Pace, StepPace, say_to_stdout
from target.scenario import Scenario
from target.scenarios import ALL, TOUR
from target.stage import Stage, Window
from target.tour import Tour
from target.watcher import wait_for_watcher

ANSWER = Path(__file__).resolve().parent / "answers" / "null-write.md"
LOOK_SECONDS = 0.2
"""Between two looks whether somebody watches."""
DEFAULT_DELAY = 3.0
"""Seconds before each step: time to read the next step, and for the inspector to print the last one."""

HELP = """Change the memory of this process step by step. Before each step, a text says what the inspector will show.

The tour prints its pid, the range of addresses to watch, and the command of the inspector. It then plays its scenarios.
Each scenario maps, writes, reads or unmaps memory, and explains the change of the page table. Without options, the tour
plays all scenarios once.

\b
Examples:
  target                                   the whole tour, a step every three seconds
  target --step                            a step at each press of Enter
  target --wait                            print one command that follows the whole tour, and begin when it has begun
  target --delay 0.5 --loop                again and again, two steps a second, until Ctrl+C
  target --list                            the list of scenarios
  target --answers                         the answer to the assignment's last question
  target --scenario heap --scenario fork   these two, in this order
  target --scenario null-write             a write through a null pointer, and SIGSEGV (not part of the tour)

\b
Exit status:
  0  done                                  1  a step failed
  2  wrong usage                           3  kerneld does not run
  4  kerneld went away                     6  not permitted to use it
"""


@click.command("target", cls=CommandLine, help=HELP)
@click.option("--list", "list_only", is_flag=True, help="List the scenarios and end.")
@click.option(
    "--scenario",
    "names",
    multiple=True,
    metavar="NAME",
    type=click.Choice([scenario.name for scenario in ALL]),
    help="Play this scenario. May be given again.",
)
@click.option("--delay", type=Seconds(min=0), metavar="SECONDS", help="Time before each step. [3]")
@click.option("--step", is_flag=True, help="Wait for Enter before each step.")
@click.option("--answers", is_flag=True, help="Print the answer to the assignment's last question, and end.")
@click.option("--wait", is_flag=True, help="Begin when an inspector has opened a table of this process.")
@click.option("--loop", is_flag=True, help="Begin again at the end, until Ctrl+C. The scenario exit is left out.")
@socket_option
@version_option("target")
def cli(
    list_only: bool,
    answers: bool,
    names: tuple[str, ...],
    delay: float | None,
    step: bool,
    wait: bool,
    loop: bool,
    socket_path: str | None,
) -> None:
    if answers:
        click.echo(ANSWER.read_text(encoding="utf-8"), nl=False)
        return
    if list_only:
        for scenario in ALL:
            click.echo(f"{scenario.name:<14}{scenario.title}")
        return
    if step and delay is not None:
        raise click.UsageError("--step and --delay exclude each other")
    scenarios = choose(names, loop)
    # From here on a signal needs a cleanup.
    with ending_by_signals("target"):
        play(scenarios, DEFAULT_DELAY if delay is None else delay, step, wait, loop, socket_path)


def play(
    scenarios: Sequence[Scenario], delay: float, step: bool, wait: bool, loop: bool, socket_path: str | None
) -> None:
    """Attach to kerneld, play `scenarios`, and exit. Raises Failure."""
    process = attach(socket_path)
    connection = process.fileno()
    pace: Pace = StepPace(say_to_stdout, connection) if step else DelayPace(delay, connection)
    try:
        with client_failures(gone="kerneld went away, and this process's memory with it"):
            run(process, scenarios, pace, wait, loop, socket_path)
            end(process, scenarios)
            process.exit(Status.OK)
    finally:
        process.close()


def main() -> NoReturn:
    """Run the target. The process ends with its exit status, or by its signal."""
    run_program(cli)


def choose(names: Sequence[str], loop: bool) -> list[Scenario]:
    """Return the scenarios of `names` in their order, or the tour if `names` is empty. A loop leaves out the exit.

    Raises UsageError if a scenario that ends the process is not the last.
    """
    by_name = {scenario.name: scenario for scenario in ALL}
    chosen = [by_name[name] for name in names] or [s for s in TOUR if not (loop and s.ends_process)]
    early = next((s for s in (chosen if loop else chosen[:-1]) if s.ends_process), None)
    if early is not None:
        raise click.UsageError(f"nothing can follow --scenario {early.name}: it ends the process")
    return chosen


def end(process: Process, scenarios: Sequence[Scenario]) -> None:
    """Run the last action of each scenario. The process may die of it."""
    for scenario in scenarios:
        if scenario.last is not None:
            scenario.last(process)


def attach(socket_path: str | None) -> Process:
    """Return this process as kerneld sees it. Raises Failure."""
    try:
        with client_failures():
            process = Process.attach(socket_path)
    except OSError as error:
        raise Failure(Status.FAILED, f"kerneld refuses this process: {error.strerror or error}") from None
    # The tour itself announces the fatal signal.
    process.says_where = False
    return process


def run(
    process: Process, scenarios: Sequence[Scenario], pace: Pace, wait: bool, loop: bool, socket_path: str | None
) -> None:
    """Play `scenarios`, with `loop` for ever; with `wait` begin when somebody watches. Raises Failure.

    Real files are in the temporary directory.
    """
    try:
        stage = Stage(process, Window(), Path(tempfile.gettempdir()))
        tour = Tour(stage, pace, say_to_stdout, socket_path, is_followed=wait)
        tour.begin(any(scenario.in_window for scenario in scenarios))
        if wait:
            wait_for_watcher(process, DelayPace(LOOK_SECONDS, process.fileno()), say_to_stdout)
        for _round in count():
            tour.play_all(scenarios)
            if not loop:
                return
    except EndOfInput:
        click.echo("The input has ended, and the tour with it.")
    except BrokenPipeError:
        raise
    except (OSError, LookupError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Failure(Status.FAILED, f"a step failed: {reason}") from None
