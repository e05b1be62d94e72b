"""`kerneld trace`: the events of the kernel, each with its cause.

Owns the options. `follow` reads the trace, and a `Writer` writes the events.
"""

from __future__ import annotations

import click

from kerneld.commands.options import Size
from kerneld.commands.trace.follow import Follower, ending, run
from kerneld.commands.trace.output import opened, output_option
from kerneld.commands.trace.writers import EVERYTHING, WRITERS, TextWriter
from shared.client.path import default_socket_path
from shared.clock import WallClock
from shared.option_types import Seconds, Whole, socket_option
from shared.stop_signals import stop_signals
from shared.trace.events import EVENTS, NAMED_ONLY, matching


@click.command(
    short_help="Print the events of the kernel, each with its cause.",
    help="""Print the events of a running kerneld: calls, faults, VMAs, page-table entries, frames, signals, reclaim.

A line has the process, the time, the event with its fields, and the cause: cause=store/fault@0x7f… means the fault of a
store. Ctrl+C ends the trace. With --pid, the end of the process ends it too. The command then prints the number of
events of each kind on stderr. --event chooses events by a part of their name, with * for any text; --list prints the
names.

\b
Examples:
  kerneld trace                                   all events of all processes
  kerneld trace --pid 4242 --event 'pte:*'        the page-table entries of one process
  kerneld trace --event fault --event sched       faults; processes that begin and end
  kerneld trace --format json -o trace.json --duration 5
  kerneld trace --format perfetto -o trace.pftrace  a file for ui.perfetto.dev
  kerneld trace --list                            the events with their fields
""",
)
@socket_option
@click.option(
    "--pid", "pids", type=Whole(min=1), multiple=True, metavar="PID", help="Only this process. May be given again."
)
@click.option("--event", "globs", multiple=True, metavar="GLOB", help="Only these events. May be given again. [all]")
@click.option("--format", "form", type=click.Choice(sorted(WRITERS)), default="text", show_default=True)
@click.option(
    "--clock",
    type=click.Choice(["monotonic", "realtime"]),
    default="monotonic",
    show_default=True,
    help="The times of the text format: seconds, as `monotonic` in the log, or the time of day, as inspector --events.",
)
@output_option
@click.option("--count", type=Whole(min=1), metavar="N", help="End after N events.")
@click.option("--duration", type=Seconds(min=0), metavar="SECONDS", help="End after this time.")
@click.option(
    "--buffer", type=Size(), default="4M", metavar="SIZE", help="The buffer for events that are not read yet. [4M]"
)
@click.option("--list", "listing", is_flag=True, help="Print the names of the events, and end.")
def trace(
    socket_path: str | None,
    pids: tuple[int, ...],
    globs: tuple[str, ...],
    form: str,
    clock: str,
    output: str | None,
    count: int | None,
    duration: float | None,
    buffer: int,
    listing: bool,
) -> None:
    """Read a trace and write it."""
    check_globs(globs)
    if listing:
        list_events(globs)
        return
    with opened(output) as out, stop_signals() as stopped:
        is_of_day = form == "text" and clock == "realtime"
        writer = TextWriter(out.file, WallClock()) if is_of_day else WRITERS[form](out.file)
        follow = Follower(writer, count, out.begin)
        wanted = globs or EVERYTHING.get(form, ("*",))
        with ending(follow):
            run(socket_path or default_socket_path(), wanted, pids, buffer, duration, follow, stopped)


def check_globs(globs: tuple[str, ...]) -> None:
    """Raise a usage error for a glob that names no event."""
    for glob in globs:
        if not matching(glob):
            raise click.BadParameter(
                f"there is no event '{glob}': kerneld trace --list has them all", param_hint="--event"
            )


def list_events(globs: tuple[str, ...]) -> None:
    """Print the events with their fields: those of the globs, or all without globs."""
    wanted = {event.number for glob in globs for event in matching(glob)}
    for event in EVENTS:
        if event.number in wanted or not globs:
            only = " Comes only when --event names its system." if event.number in NAMED_ONLY else ""
            click.echo(f"{event.name}\n    {event.about}{only}")
            click.echo("    " + " ".join(field.name for field in event.fields))
