"""Prints the function tracer's records as Linux's tracers do: a line for each call, or a graph of nested calls.

Answers to Linux v6.8 kernel/trace/trace_functions_graph.c and Documentation/trace/ftrace.rst; there is one CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

from shared.clock import seconds_text
from shared.terminal import one_line
from shared.trace.events import FUNCGRAPH_ENTRY
from shared.trace.record import Lost, Record
from shared.trace.text import Names, lost_line

GRAPH_HEADER = """\
# tracer: function_graph
#
# CPU  DURATION                  FUNCTION CALLS
# |     |   |                     |   |   |   |"""
FUNCTION_HEADER = """\
# tracer: function
#
#           TASK-PID     CPU#     TIMESTAMP  FUNCTION
#              | |         |         |         |"""
_MARKS = ((1_000_000_000, "$"), (100_000_000, "@"), (10_000_000, "*"), (1_000_000, "#"), (100_000, "!"), (10_000, "+"))
_RULE = " ------------------------------------------"
_NO_DURATION = " " * 14 + "|  "
_DURATION_DIGITS = 7
_COMM_SHOWN, _PROC_COLUMNS = 7, 14


def plain_name(name: str) -> str:
    """Return a function's own name, without its class."""
    return name.rpartition(".")[2]


def duration_text(nanoseconds: int) -> str:
    """Return a duration for the graph's column: at most seven digits, with a mark for a long duration."""
    mark = next((sign for least, sign in _MARKS if nanoseconds > least), " ")
    microseconds, rest = divmod(nanoseconds, 1000)
    text = str(microseconds)
    if len(text) < _DURATION_DIGITS:
        text = f"{text}.{rest:03}"[: _DURATION_DIGITS + 1]
    return f"{mark} {text} us " + " " * (8 - len(text)) + "|  "


def function_line(record: Record, names: Names, *, classes: bool) -> str:
    """Return the function tracer's line of a call: `comm-tid [000] seconds: function <-caller`."""
    fields = record.fields
    func, parent = (fields[key] if classes else plain_name(fields[key]) for key in ("func", "parent"))
    who = f"{one_line(names.find(record.pid))[:15]:>16}-{record.tid:<7}"
    return f"{who} [000] {seconds_text(record.time):>12}: {func} <-{parent or 'loop'}"


class Graph:
    """Makes lines of entries and exits. A leaf function takes one line, so an entry waits for the next record."""

    def __init__(self, names: Names, *, classes: bool) -> None:
        """With `classes` a method is named with its class."""
        self._names = names
        self._classes = classes
        self._waiting: Record | None = None
        self._open: list[str] = []
        """The functions whose beginning has been printed, by depth."""
        self._last_pid: int | None = None

    def add(self, record: Record) -> Iterator[str]:
        """Yield the lines that are certain now."""
        waiting, self._waiting = self._waiting, None
        is_entry = record.event is FUNCGRAPH_ENTRY
        if waiting is not None:
            if not is_entry and _call(record) == _call(waiting):
                yield from self._line(record, f"{self._name(record)}();")
                return
            yield from self._entry(waiting)
        if is_entry:
            self._waiting = record
        else:
            yield from self._exit(record)

    def lost(self, lost: Lost) -> Iterator[str]:
        """Yield the line for missing records. Open functions may have ended in the gap, so they are forgotten."""
        yield from self.end()
        self._open.clear()
        yield lost_line(lost)

    def end(self) -> Iterator[str]:
        """Yield the entry that waits: no more records come."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            yield from self._entry(waiting)

    def _entry(self, record: Record) -> Iterator[str]:
        depth = record.fields["depth"]
        name = self._name(record)
        self._open[depth:] = [name]
        yield from self._line(record, f"{name}() {{", is_begun=True)

    def _exit(self, record: Record) -> Iterator[str]:
        depth = record.fields["depth"]
        name = self._name(record)
        is_open = depth < len(self._open) and self._open[depth] == name
        del self._open[depth:]
        yield from self._line(record, "}" if is_open else f"}} /* {name} */")

    def _line(self, record: Record, text: str, *, is_begun: bool = False) -> Iterator[str]:
        if self._last_pid not in (None, record.pid):
            yield f"{_RULE}\n 0) {self._proc(self._last_pid or 0)} => {self._proc(record.pid)}\n{_RULE}\n"
        self._last_pid = record.pid
        fields = record.fields
        duration = _NO_DURATION if is_begun else duration_text(fields["rettime"] - fields["calltime"])
        yield f" 0) {duration}{'  ' * fields['depth']}{text}"

    def _proc(self, pid: int) -> str:
        text = f"{one_line(self._names.find(pid))[:_COMM_SHOWN]}-{pid}"
        return (" " * ((_PROC_COLUMNS - len(text)) // 2) + text).ljust(_PROC_COLUMNS)

    def _name(self, record: Record) -> str:
        func: str = record.fields["func"]
        return func if self._classes else plain_name(func)


def _call(record: Record) -> tuple[str, int]:
    return record.fields["func"], record.fields["depth"]
