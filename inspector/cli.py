"""The command line of the inspector: arguments in, prints and exit statuses out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

import click

from inspector.address import (
    AddressError,
    Span,
    looks_like_name,
    parse_address,
    parse_page,
)
from inspector.events import EventLog, open_session
from inspector.failure import InspectorStatus
from inspector.following import follow_until_stopped
from inspector.hexdump import hexdump
from inspector.maps import find_named
from inspector.moving import follow_process
from inspector.pair import watch_both
from inspector.printing import Options, emit, note, print_until_stopped
from inspector.session import Machine, Watch, read_maps
from inspector.spans import parse_span
from inspector.view import maps_json_line, maps_lines, page_json_line
from inspector.viewing import Focus, Moments, show_in_browser, show_in_terminal, show_replay
from shared.client import Process
from shared.failure import Failure, Status, client_failures
from shared.option_types import Seconds, Whole, socket_option
from shared.program import CommandLine, run_program
from shared.stop_signals import stop_signals
from shared.uapi.page import PAGE_MASK, PAGE_SIZE
from shared.version import version_option

HELP = """Watch a range of the page table of another process, live.

PID is a process of kerneld's, or a real process that you may ptrace. kerneld looks at a real process each millisecond.
START and END are addresses: hexadecimal, with or without 0x. START-END may be one word, as in maps. END may be +SIZE,
a decimal number of bytes (+65536, +64K, +8M) or +0x4000. The name of a mapping may stand in place of START: [heap],
[stack], the path or the base name of a file. END may then be left out. With PID alone, the inspector lists the mappings
of the process. A range is rounded outward to whole pages, and cut after 8 MiB (2048 pages).

The inspector prints the table each second until Ctrl+C, which closes the table. The first column marks the changes
since the print before: + gained flags, - lost flags, * another frame or other flags.

With --follow, the window moves to where the process changes: heap, stack, mappings, the image after execve. Children of
fork are followed too. START and END say where it begins. With --also, the inspector prints the range of two processes
side by side, from the kernel's events. Between them, = means the same frame, and / two frames.

With --events, the inspector prints the table once, and then each change of an entry as it happens: the old and the new
frame and flags, and the cause. The end of the process ends the inspector too. With --interval, it prints the table as
well.

\b
Examples:
  inspector 4242                                    list the mappings of process 4242
  inspector 4242 0x7f0000000000 0x7f0000010000      watch sixteen pages
  inspector 4242 0x7f0000000000 +64K                the same
  inspector 4242 7f0000000000-7f0000010000          the same, as kerneld maps prints a range
  inspector 4242 [heap] --interval 0.2              watch the heap, five times a second
  inspector 4242 libc.so.6 --once --all             one print, one line for each page
  inspector 4242 [stack] --json                     one JSON object a print, for programs
  inspector 4242 --contents 0x7f0000001000          the contents of that page
  inspector 4242 [heap] --events                    each change of an entry of the heap, with its cause
  inspector --follow 4242                           process 4242 wherever it changes, over fork and exec
  inspector 4242 [heap] --also 4300                 the heap of 4242, and the same range of 4300, its child
  inspector --web                                   the whole machine in the browser, live
  inspector --live                                  the same, full screen in the terminal
  inspector --replay FILE                           what is in a record of kerneld record
  inspector --replay FILE 4242 [heap]               what happened to the heap of process 4242, with causes
  inspector --replay FILE 4242 --compare 100 200    what came, went, changed, moved between two events
  inspector --replay FILE --web                     the record in the browser

\b
Exit status:
  0  done (after Ctrl+C, SIGTERM or SIGHUP: the table is closed)
  1  kerneld refuses for another reason      2  wrong usage
  3  kerneld does not run                    4  kerneld went away
  5  no such process                         6  not permitted
  7  busy: a table is open already           8  the page has no frame (--contents)
  9  no mapping of that name
"""


@click.command("inspector", cls=CommandLine, help=HELP)
@click.argument("pid", type=Whole(min=1), required=False)
@click.argument("start", required=False)
@click.argument("end", required=False)
@click.option(
    "--interval",
    type=Seconds(min=0.01),
    default=1.0,
    metavar="SECONDS",
    show_default=True,
    help="Time between prints.",
)
@click.option("--once", is_flag=True, help="Print once and end.")
@click.option("--all", "every_page", is_flag=True, help="One line for each page. Runs of equal pages are not folded.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a print, on one line.")
@click.option("--contents", metavar="VADDR", help="Dump the page at VADDR, and end. START and END may be left out.")
@click.option("--events", is_flag=True, help="Print each change of an entry as it happens, with its cause.")
@click.option("--follow", is_flag=True, help="Move the window to where the process, or a child of it, changes.")
@click.option("--also", type=Whole(min=1), metavar="PID2", help="Show the range of another process beside it.")
@click.option("--web", is_flag=True, help="Show the whole machine in the browser, live, with its past.")
@click.option("--live", is_flag=True, help="Show the whole machine full screen in the terminal, live, with its past.")
@click.option("--port", type=Whole(min=0, max=65535), default=0, help="The port of --web. [a free one]")
@click.option("--replay", metavar="FILE", help="Show a record that kerneld record has written.")
@click.option("--at", type=Whole(min=0), metavar="EVENT", help="With --replay: the machine before this event.")
@click.option(
    "--compare",
    type=(Whole(min=0), Whole(min=0)),
    metavar="EVENT EVENT",
    help="With --replay: what came, went, changed and moved between two events.",
)
@click.option("--frame", metavar="PFN", help="With --replay: every event that names this frame.")
@socket_option
@version_option("inspector")
def cli(
    pid: int | None,
    start: str | None,
    end: str | None,
    interval: float,
    once: bool,
    every_page: bool,
    as_json: bool,
    contents: str | None,
    events: bool,
    follow: bool,
    also: int | None,
    web: bool,
    live: bool,
    port: int,
    replay: str | None,
    at: int | None,
    compare: tuple[int, int] | None,
    frame: str | None,
    socket_path: str | None,
) -> None:
    """List the mappings, dump a page, or watch or follow a range. An exception of the client library is a Failure."""
    source = click.get_current_context().get_parameter_source("interval")
    prints = not events or source is click.core.ParameterSource.COMMANDLINE
    options = Options(every_page, as_json, once, interval, events, prints)
    wanted = Wanted(pid, start, end, contents, follow, also)
    with cli_failures():
        if web or live:
            focus = Focus(pid, None if start is None else parse_span(start, end))
            if web:
                show_in_browser(focus, port=port, path=replay, socket_path=socket_path)
            else:
                show_in_terminal(focus, path=replay, socket_path=socket_path)
        elif replay is not None:
            show_replay(replay, pid, start, end, Moments(at, compare, None if frame is None else parse_address(frame)))
        else:
            look(wanted, options, socket_path)


def main() -> None:
    """Run the inspector and exit with its status."""
    run_program(cli)


class Wanted(NamedTuple):
    """Which process is looked at, and where: the arguments and options as they were given."""

    pid: int | None
    start: str | None
    end: str | None
    contents: str | None
    follow: bool
    also: int | None


@contextlib.contextmanager
def cli_failures() -> Iterator[None]:
    """Turn what the parts raise into what a person reads: wrong usage, or a Failure."""
    try:
        yield
    except AddressError as error:
        raise click.UsageError(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Failure(Status.FAILED, f"kerneld refuses: {error.strerror}") from None


def check_usage(wanted: Wanted, options: Options) -> int:
    """Return the pid. Raises UsageError without one, and AddressError for options that exclude one another."""
    if wanted.pid is None:
        raise click.UsageError("Missing argument 'PID'.")
    follow, both, dumps = wanted.follow, wanted.also is not None, wanted.contents is not None
    if options.events and (options.once or dumps or wanted.start is None):
        raise AddressError("--events goes with a range, and not with --once or --contents")
    if (follow or both) and (options.events or dumps or (follow and both)):
        raise AddressError("--follow, --also, --events and --contents exclude one another")
    if both and wanted.start is None:
        raise AddressError("--also goes with a range")
    return wanted.pid


def look(wanted: Wanted, options: Options, socket_path: str | None) -> None:
    """Look at a process of a running kerneld. An error that needs no look at it is reported without kerneld."""
    pid, start, end = check_usage(wanted, options), wanted.start, wanted.end
    page = None if wanted.contents is None else parse_page(wanted.contents)
    span = None if start is None or looks_like_name(start) else parse_span(start, end)
    with client_failures():
        process = Process.attach(socket_path)
    with contextlib.closing(process), client_failures(gone="kerneld went away, and the table with it"):
        if span is None and start is not None:
            span = find_span(process, pid, start, end)
        if wanted.follow:
            follow_process(process, pid, span, options)
        elif wanted.also is not None and span is not None:
            watch_both(process, (pid, wanted.also), span, options)
        else:
            run(process, pid, span, page, options)


def run(machine: Process, pid: int, span: Span | None, page: int | None, options: Options) -> None:
    """Do what the arguments ask: list the maps, dump a page, or watch a range."""
    if page is not None:
        dump_page(machine, pid, span or Span(page & PAGE_MASK, (page & PAGE_MASK) + PAGE_SIZE), page, options)
    elif span is None:
        list_maps(machine, pid, options)
    elif options.events:
        follow_range(machine, pid, span, options)
    else:
        watch_range(machine, pid, span, options)


def find_span(machine: Machine, pid: int, name: str, end: str | None) -> Span:
    """Return the range of the mapping called `name` in process `pid`, up to END if it is given.

    Raises AddressError, Failure(NO_MAPPING), and the exceptions of read_maps().
    """
    run = find_named(read_maps(machine, pid), name)
    if run is None:
        raise Failure(InspectorStatus.NO_MAPPING, f"process {pid} has no mapping called {name}: see inspector {pid}")
    if run.elsewhere:
        note(f"{name} is mapped elsewhere too: {run.start:#x} {run.end:#x} is shown")
    if end is None:
        return Span(run.start, run.end)
    return parse_span(f"{run.start:#x}", end)


def list_maps(machine: Machine, pid: int, options: Options) -> None:
    """Print the maps of process `pid`."""
    mappings = read_maps(machine, pid)
    emit([maps_json_line(datetime.now().astimezone(), pid, mappings)] if options.as_json else maps_lines(mappings))


def dump_page(machine: Machine, pid: int, span: Span, vaddr: int, options: Options) -> None:
    """Print the contents of the page that holds `vaddr`, found through the table of `span`."""
    with stop_signals(), Watch(machine, pid, span) as watch:
        if not watch.span.start <= vaddr < watch.span.end:
            raise AddressError(f"{vaddr:#x} is not within the range {watch.span.start:#x} {watch.span.end:#x}")
        entry, contents = watch.read_page(vaddr)
    if options.as_json:
        emit([page_json_line(datetime.now().astimezone(), pid, entry, contents)])
    else:
        emit(hexdump(contents, entry.vaddr))


def watch_range(machine: Machine, pid: int, span: Span, options: Options) -> None:
    """Print the table of `span` repeatedly until a signal asks the program to end (or once), and close the table.

    Raises KerneldGone when the connection ends.
    """
    with stop_signals() as signals:
        with Watch(machine, pid, span) as watch:
            if watch.span != span:
                note(f"cut to 8 MiB: the range shown ends at {watch.span.end:#x}")
            print_until_stopped(watch, signals, options)
        if not options.once:
            with contextlib.suppress(Failure):
                # After a SIGHUP the terminal may be gone: the table is closed anyway.
                emit(["The table is closed."], to_stderr=options.as_json)


def follow_range(process: Process, pid: int, span: Span, options: Options) -> None:
    """Print the table of `span`, then each change until a signal or the end of the process. Close it, and print totals.

    Raises KerneldGone when the connection ends.
    """
    # The trace is opened before the table, so that it has every change of the table.
    log = EventLog(open_session(process))
    try:
        with stop_signals() as signals:
            with Watch(process, pid, span) as watch:
                if watch.span != span:
                    note(f"cut to 8 MiB: the range shown ends at {watch.span.end:#x}")
                has_exited = follow_until_stopped(watch, log, signals, options)
            with contextlib.suppress(Failure):
                ended = [f"Process {pid} has exited."] if has_exited else []
                totals = f"{log.pages} changes of entries, {log.lost} events lost. The table is closed."
                emit([*ended, totals], to_stderr=options.as_json)
    finally:
        log.close()
