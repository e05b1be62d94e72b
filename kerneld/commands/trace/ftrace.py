"""`kerneld ftrace`: the functions of the kernel as they run.

Owns the options, the writers of the two formats, and the totals. `follow` reads the trace.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO

import click

from kerneld.commands.options import Size
from kerneld.commands.trace.follow import WHY, Follower, ending, run
from kerneld.commands.trace.output import opened, output_option
from kerneld.commands.trace.writers import LineWriter
from shared.client.path import default_socket_path
from shared.failure import Status
from shared.option_types import Seconds, Whole, socket_option
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
        "not permitted: only root and the user that runs kerneld see all functions; use --pid for your own process",
    ),
}
_TOP = 10
"""The number of functions in the totals."""


@click.command(
    short_help="Print the functions of the kernel as they run.",
    help="""Print the functions of a running kerneld as they are called. With --graph the lines are indented as
the calls nest, and have times.

The time of a function includes the functions that it calls, and the cost of watching them. Ctrl+C ends the trace. With
--pid, the end of the process ends it too. The command then prints totals on stderr. Only root, or the user that runs
kerneld, sees the functions of all processes. Other users see their own processes with --pid.

\b
Examples:
  kerneld ftrace --graph --pid 4242                              all functions for one process
  kerneld ftrace --graph --graph-function exc_page_fault         page faults, and the functions inside them
  kerneld ftrace --filter 'do_*' --filter find_vma               calls of these functions, with their callers
  kerneld ftrace --graph --graph-function mmap -o mmap.txt --count 1000
""",
)
@socket_option
@click.option("--graph", is_flag=True, help="Print a graph: the nesting of the calls, and the time of each.")
@click.option("--filter", "functions", multiple=True, metavar="GLOB", help="Only these functions. [all]")
@click.option(
    "--graph-function",
    "graph_functions",
    multiple=True,
    metavar="GLOB",
    help="Only these functions and the functions inside them. [all]",
)
@click.option("--pid", "pids", type=Whole(min=1), multiple=True, metavar="PID", help="Only for this process.")
@click.option("--classes", is_flag=True, help="Print a method with the name of its class.")
@output_option
@click.option("--count", type=Whole(min=1), metavar="N", help="End after N calls.")
@click.option("--duration", type=Seconds(min=0), metavar="SECONDS", help="End after this time.")
@click.option(
    "--buffer", type=Size(), default="16M", metavar="SIZE", help="The buffer for calls that are not read yet. [16M]"
)
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
    """Read calls of functions and write them."""
    for glob in (*functions, *graph_functions):
        if not glob or "\0" in glob:
            raise click.BadParameter("the name of a function is empty")
    events = ("ftrace:funcgraph_*",) if graph else (FUNCTION.name,)
    with opened(output) as out, stop_signals() as stopped:
        writer = GraphWriter(out.file, classes=classes) if graph else FunctionWriter(out.file, classes=classes)
        follow = CallFollower(writer, count, out.begin)
        path = socket_path or default_socket_path()
        with ending(follow):
            run(path, events, pids, buffer, duration, follow, stopped, functions, graph_functions, _WHY)


class _Writer(LineWriter):
    """The common part of both formats."""

    header = ""

    def __init__(self, file: IO[str], *, classes: bool) -> None:
        super().__init__(file)
        self._classes = classes

    def begin(self) -> None:
        """Write the header."""
        print(self.header, file=self._file, flush=True)


class FunctionWriter(_Writer):
    """A line a call."""

    header = FUNCTION_HEADER

    def lost(self, lost: Lost) -> None:
        """Say how many records are missing here."""
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
        """Say how many records are missing here."""
        self._print(self._graph.lost(lost))

    def event(self, record: Record) -> None:
        """One beginning or end."""
        self._print(self._graph.add(record))

    def close(self) -> None:
        """Write the calls that have not ended."""
        self._print(self._graph.end())
        super().close()

    def _print(self, lines: Iterator[str]) -> None:
        for line in lines:
            print(line, file=self._file)


class CallFollower(Follower):
    """Counts the calls of each function. With --graph, a call counts when it ends."""

    def __init__(self, writer: FunctionWriter | GraphWriter, count: int | None, on_open: Callable[[], None]) -> None:
        super().__init__(writer, count, on_open)
        self._header = writer

    def begin(self) -> None:
        """Write the header when the trace is open: a reader of the header knows that."""
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
        """Finish the file, and print the totals on stderr."""
        self._writer.close()
        totals: Counter[str] = self._totals
        for name, number in totals.most_common(_TOP):
            click.echo(f"{number:>10} {name}", err=True)
        click.echo(f"{totals.total():>10} calls of {len(totals)} functions, {self.lost} records lost", err=True)
