"""`kerneld ftrace`: the kernel's functions as they run, until Ctrl+C.

Owns the options, the two formats' writers and the totals; what reads a trace is `follow`.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO

import click

from kerneld.commands.options import Size, socket_option
from kerneld.commands.trace.follow import WHY, Follower, ending, run
from kerneld.commands.trace.output import opened, output_option
from kerneld.commands.trace.writers import LineWriter
from shared.client.path import default_socket_path
from shared.failure import Status
from shared.option_types import Seconds, Whole
from shared.stop_signals import stop_signals
from shared.trace.events import FUNCGRAPH_EXIT, FUNCTION
from shared.trace.graph_text import FUNCTION_HEADER, GRAPH_HEADER, Graph, function_line, plain_name
from shared.trace.record import Lost, Record
from shared.trace.text import lost_line

_WHY = {
    **WHY,
    errno.EINVAL: (Status.USAGE, "kerneld has no function of that name"),
    errno.EPERM: (
        Status.NOT_PERMITTED,
        "not permitted: functions of all are root's to see, --pid those of your processes",
    ),
}
_TOP = 10
"""So many functions are named in the totals."""


@click.command(
    short_help="Print the kernel's functions as they run.",
    help="""Print the functions of a running kerneld as they are called; with --graph indented as they nest, with times.

A function's time includes those it calls, and what it costs to watch them. Ctrl+C ends it, or with --pid the end of the
process; totals are then printed on stderr. Everybody's functions are the superuser's to see; --pid of one's own
processes is anybody's.

\b
Examples:
  kerneld ftrace --graph --pid 4242                              all that is done for one process
  kerneld ftrace --graph --graph-function exc_page_fault         page faults, and what is inside them
  kerneld ftrace --filter 'do_*' --filter find_vma               calls of these, and who calls them
  kerneld ftrace --graph --graph-function mmap -o mmap.txt --count 1000
""",
)
@socket_option
@click.option("--graph", is_flag=True, help="Print a graph: what calls what, and how long each takes.")
@click.option("--filter", "functions", multiple=True, metavar="GLOB", help="Only these functions. [all]")
@click.option(
    "--graph-function", "graph_functions", multiple=True, metavar="GLOB", help="Only what is inside these. [anything]"
)
@click.option("--pid", "pids", type=Whole(min=1), multiple=True, metavar="PID", help="Only for this process.")
@click.option("--classes", is_flag=True, help="Name a method with its class.")
@output_option
@click.option("--count", type=Whole(min=1), metavar="N", help="End after so many calls.")
@click.option("--duration", type=Seconds(min=0), metavar="SECONDS", help="End after so long.")
@click.option("--buffer", type=Size(), default="16M", metavar="SIZE", help="Room for what is not read yet. [16M]")
def ftrace(
    socket_path: str | None,
    graph: bool,
    functions: tuple[str, ...],
    graph_functions: tuple[str, ...],
    pids: tuple[int, ...],
    classes: bool,
    output: str | None,
    count: int | None,
    duration: float | None,
    buffer: int,
) -> None:
    """Read functions and write them."""
    for glob in (*functions, *graph_functions):
        if not glob or "\0" in glob:
            raise click.BadParameter("a function has a name")
    events = ("ftrace:funcgraph_*",) if graph else (FUNCTION.name,)
    with opened(output) as out, stop_signals() as stopped:
        writer = GraphWriter(out.file, classes=classes) if graph else FunctionWriter(out.file, classes=classes)
        follow = CallFollower(writer, count, out.begin)
        path = socket_path or default_socket_path()
        with ending(follow):
            run(path, events, pids, buffer, duration, follow, stopped, functions, graph_functions, _WHY)


class _Writer(LineWriter):
    """What both formats share."""

    header = ""

    def __init__(self, file: IO[str], *, classes: bool) -> None:
        super().__init__(file)
        self._classes = classes

    def begin(self) -> None:
        """The trace is open."""
        print(self.header, file=self._file, flush=True)


class FunctionWriter(_Writer):
    """A line a call."""

    header = FUNCTION_HEADER

    def lost(self, lost: Lost) -> None:
        """So many records are missing here."""
        print(lost_line(lost), file=self._file)

    def event(self, record: Record) -> None:
        """One call."""
        print(function_line(record, self._names, classes=self._classes), file=self._file)


class GraphWriter(_Writer):
    """A graph."""

    header = GRAPH_HEADER

    def __init__(self, file: IO[str], *, classes: bool) -> None:
        super().__init__(file, classes=classes)
        self._graph = Graph(self._names, classes=classes)

    def lost(self, lost: Lost) -> None:
        """So many records are missing here."""
        self._print(self._graph.lost(lost))

    def event(self, record: Record) -> None:
        """One beginning or end."""
        self._print(self._graph.add(record))

    def close(self) -> None:
        """What is still under way has no end here."""
        self._print(self._graph.end())
        super().close()

    def _print(self, lines: Iterator[str]) -> None:
        for line in lines:
            print(line, file=self._file)


class CallFollower(Follower):
    """Counts calls, by function; with --graph one that has ended."""

    def __init__(self, writer: FunctionWriter | GraphWriter, count: int | None, on_open: Callable[[], None]) -> None:
        super().__init__(writer, count, on_open)
        self._header = writer

    def begin(self) -> None:
        """Whoever sees the header knows that the trace is open."""
        super().begin()
        self._header.begin()

    def _take_one(self, record: Record) -> None:
        self._writer.event(record)
        if record.event not in (FUNCTION, FUNCGRAPH_EXIT):
            return
        self._totals[plain_name(record.fields["func"])] += 1
        if self._left is not None:
            self._left -= 1

    def end(self) -> None:
        """Finish the file and say on stderr what there was."""
        self._writer.close()
        totals: Counter[str] = self._totals
        for name, number in totals.most_common(_TOP):
            click.echo(f"{number:>10} {name}", err=True)
        click.echo(f"{totals.total():>10} calls of {len(totals)} functions, {self.lost} records lost", err=True)
