"""`kerneld trace`: every event, and why it happened.

Owns the options; what reads is `follow`, how an event is written is a `Writer`'s.
"""

from __future__ import annotations

import click

from kerneld.commands.options import Size, socket_option
from kerneld.commands.trace.follow import Follower, ending, run
from kerneld.commands.trace.output import opened, output_option
from kerneld.commands.trace.writers import EVERYTHING, WRITERS, TextWriter
from shared.client.path import default_socket_path
from shared.clock import WallClock
from shared.option_types import Seconds, Whole
from shared.stop_signals import stop_signals
from shared.trace.events import EVENTS, NAMED_ONLY, matching


@click.command(
    short_help="Follow what happens, and why: calls, faults, entries …",
    help="""Follow what happens in a running kerneld: calls, faults, VMAs, page-table entries, frames, signals, reclaim.

Each line says who, when, what, and why: cause=store/fault@0x7f… is the fault of a store. Ctrl+C ends it, or with --pid
the end of the process; how many of what there were is then said on stderr. What --list names can be chosen by --event,
by system or name, * for any part.

\b
Examples:
  kerneld trace                                   everything, of everybody
  kerneld trace --pid 4242 --event 'pte:*'        the page-table entries of one process
  kerneld trace --event fault --event sched       faults, and processes that come and go
  kerneld trace --format json -o trace.json --duration 5
  kerneld trace --format perfetto -o trace.pftrace  a file for ui.perfetto.dev
  kerneld trace --list                            every event with its fields
""",
)
@socket_option
@click.option("--pid", "pids", type=Whole(min=1), multiple=True, metavar="PID", help="This process, or these.")
@click.option("--event", "globs", multiple=True, metavar="GLOB", help="These events. [all]")
@click.option("--format", "form", type=click.Choice(sorted(WRITERS)), default="text", show_default=True)
@click.option(
    "--clock",
    type=click.Choice(["monotonic", "realtime"]),
    default="monotonic",
    show_default=True,
    help="Of text: seconds as in the log's `monotonic`, or the time of day as inspector --events has it.",
)
@output_option
@click.option("--count", type=Whole(min=1), metavar="N", help="End after so many events.")
@click.option("--duration", type=Seconds(min=0), metavar="SECONDS", help="End after so long.")
@click.option("--buffer", type=Size(), default="4M", metavar="SIZE", help="Room for what is not read yet. [4M]")
@click.option("--list", "listing", is_flag=True, help="List the events, and end.")
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
    """Print the events with their fields, all where none is named."""
    wanted = {event.number for glob in globs for event in matching(glob)}
    for event in EVENTS:
        if event.number in wanted or not globs:
            only = " Comes only where its system is named." if event.number in NAMED_ONLY else ""
            click.echo(f"{event.name}\n    {event.about}{only}")
            click.echo("    " + " ".join(field.name for field in event.fields))
