"""The function tracer: it records the begin and the end of every function of the kernel.

While a trace wants functions, the interpreter calls a hook at each call and each return (sys.setprofile), on the only
thread. Without such a trace there is no hook, and no function is changed. The hook is better here than wrappers around
functions (`kerneld.trace.fprobe`): it sees functions that no table has (nested functions, methods that an object keeps,
properties); it adds nothing between caller and callee; and it sees the end of a function also after an exception.
While records are written there is no hook (`pause`): to ignore the calls of that took ten times as long as the writing.

A function is a `def` of a module of `kerneld`, without the modules of tracing. Comprehensions, generator expressions
and lambdas count as a part of their function. A generator begins and ends each time it is resumed.

Owns the functions that each trace wants, and the open functions of each trace. Invariant: the hook is set exactly while
some trace wants one of the events of FTRACE, but for a pause.
Answers to Linux v6.8 kernel/trace/ftrace.c and trace_functions_graph.c.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator, Iterator
from time import monotonic_ns
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from kerneld.mm.space.pace import Pace
from kerneld.trace.fprobe import FPROBES
from shared.trace.events import FTRACE, FUNCGRAPH_ENTRY, FUNCGRAPH_EXIT, FUNCTION
from shared.trace.glob import compile_glob

if TYPE_CHECKING:
    from kerneld.trace.trace import Trace
    from kerneld.trace.tracing import Tracing
    from shared.trace.event import Event

_KERNEL, _TRACER = "kerneld.", "kerneld.trace."
_FEWEST_A_WRITE = 256
"""The number of records that are written before the end of a request: a request may call any number of functions."""
_NAME_BYTES = 63
_MOST_UNWANTED = 4096
_LOOKED_AT_ONCE = 64
"""Functions that are looked for in a piece: some 4 ms."""


class _Graph:
    """The functions that one trace wants, and its open functions."""

    def __init__(
        self, trace: Trace, tracing: Tracing, functions: tuple[str, ...], graph_functions: tuple[str, ...]
    ) -> None:
        self.trace = trace
        self._tracing = tracing
        self._now = tracing.current
        self._functions = [compile_glob(glob) for glob in functions]
        self._graph_functions = [compile_glob(glob) for glob in graph_functions]
        wanted = {event.number for event in trace.events}
        self._function = FUNCTION.number in wanted
        self._entry = FUNCGRAPH_ENTRY.number in wanted
        self._exit = FUNCGRAPH_EXIT.number in wanted
        self._names: dict[CodeType, tuple[bytes, bool] | None] = {}
        """By code of a called function: its name, and whether the functions inside it are wanted; None: not wanted."""
        self._stack: list[tuple[FrameType, bytes, int]] = []

    def enter(self, frame: FrameType) -> None:
        """Note the begin of a function."""
        code = frame.f_code
        try:
            known = self._names[code]
        except KeyError:
            known = self._names[code] = self._look_at(frame)
        if known is None:
            return
        name, is_graph_function = known
        pids = self.trace.pids
        if (self._graph_functions and not self._stack and not is_graph_function) or (
            pids is not None and self._now.pid not in pids
        ):
            return
        if self._function:
            self._record(FUNCTION, monotonic_ns(), name, _caller_name(frame))
        # The time is taken last, so that it does not include this code.
        begun = monotonic_ns()
        if self._entry:
            self._record(FUNCGRAPH_ENTRY, begun, name, len(self._stack))
            begun = monotonic_ns()
        self._stack.append((frame, name, begun))

    def wants(self, code: CodeType) -> bool:
        """Return whether a function that has been entered may ever be told."""
        return self._names[code] is not None

    def leave(self, frame: FrameType) -> None:
        """Note the end of a function, also by an exception. A function whose begin was not seen is ignored."""
        stack = self._stack
        if not stack or stack[-1][0] is not frame:
            return
        ended = monotonic_ns()
        _frame, name, begun = stack.pop()
        if self._exit:
            self._record(FUNCGRAPH_EXIT, ended, name, len(stack), 0, begun, ended)
        if (not stack and not self._now.depth) or len(self.trace.records) >= _FEWEST_A_WRITE:
            self._tracing.flush()

    def _look_at(self, frame: FrameType) -> tuple[bytes, bool] | None:
        name = function_name(frame)
        # Functions inside a graph function are wanted with any name. A filter holds there too, as in Linux.
        if not name or (self._functions and not _matches(name, self._functions)):
            return None
        return name, _matches(name, self._graph_functions)

    def _record(self, event: Event, time: int, *values: Any) -> None:
        now = self._now
        self.trace.records.append(
            event.layout.pack(
                event.layout.size, event.number, now.pid, now.tid, now.causes, time, now.nr, now.pid, now.address,
                *values,
            )
        )  # fmt: skip


class FunctionTracer:
    """The hook, and the traces that use it."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._graphs: list[_Graph] = []
        self._unwanted: set[CodeType] = set()
        """Functions that no trace wants: those of libraries, which the kernel calls most."""
        self._former: Any = None

    @property
    def is_on(self) -> bool:
        """Whether functions are traced."""
        return bool(self._graphs)

    def open(self, trace: Trace, functions: tuple[str, ...], graph_functions: tuple[str, ...]) -> None:
        """Note a new trace. If it wants functions, it gets their records from now on."""
        if FTRACE.isdisjoint(event.number for event in trace.events):
            return
        if not self._graphs:
            self._former = sys.getprofile()
            sys.setprofile(self._hook)
        self._unwanted.clear()
        self._graphs.append(_Graph(trace, self._tracing, functions, graph_functions))
        Pace.slow_down(len(self._graphs))

    def close(self, trace: Trace) -> None:
        """Note the end of a trace."""
        before = len(self._graphs)
        self._graphs = [graph for graph in self._graphs if graph.trace is not trace]
        Pace.slow_down(len(self._graphs))
        if before and not self._graphs:
            sys.setprofile(self._former)
            self._former = None

    def pause(self) -> None:
        """Take the hook away for work of the tracing itself, whose calls would be ignored one by one."""
        if self._graphs:
            sys.setprofile(None)

    def go_on(self) -> None:
        """Set the hook again after `pause`, unless the last trace has ended meanwhile."""
        if self._graphs:
            sys.setprofile(self._hook)

    def _hook(self, frame: FrameType, event: str, _arg: Any) -> None:
        # The interpreter calls no hook while this runs. So the functions called here are not traced.
        code = frame.f_code
        if code in self._unwanted:
            return
        if event == "call":
            for graph in self._graphs:
                graph.enter(frame)
            if not any(graph.wants(code) for graph in self._graphs) and len(self._unwanted) < _MOST_UNWANTED:
                self._unwanted.add(code)
        elif event == "return":
            for graph in self._graphs:
                graph.leave(frame)


def function_name(frame: FrameType) -> bytes:
    """Return the name of the kernel's function in a frame, `Class.method` for a method.

    Empty for any other function.
    """
    module = frame.f_globals.get("__name__", "")
    code = frame.f_code
    if not module.startswith(_KERNEL) or module.startswith(_TRACER) or code.co_name.startswith("<"):
        return b""
    return code.co_qualname.replace("<locals>.", "").encode()[:_NAME_BYTES]


def _caller_name(frame: FrameType) -> bytes:
    """Return the name of the kernel's function that called a function. Frames of the tracing between are skipped."""
    caller = frame.f_back
    while caller is not None and caller.f_globals.get("__name__", "").startswith(_TRACER):
        caller = caller.f_back
    return function_name(caller) if caller is not None else b""


def _matches(name: bytes, globs: list[Callable[[str], object]]) -> bool:
    """Return whether one of the globs (made by `compile_glob`) matches a function, with or without its class."""
    whole, own = _both_names(name)
    return any(matches(whole) or matches(own) for matches in globs)


def _both_names(name: bytes) -> tuple[str, str]:
    whole = name.decode("utf-8", "replace")
    return whole, whole.rpartition(".")[2]


def available_filter_functions() -> Iterator[bytes]:
    """Yield the names of the functions in modules and classes of the kernel.

    Source: Linux v6.8 Documentation/trace/ftrace.rst: available_filter_functions.
    """
    for name, module in list(sys.modules.items()):
        if not name.startswith(_KERNEL) or name.startswith(_TRACER):
            continue
        for value in list(vars(module).values()):
            for held in vars(value).values() if inspect.isclass(value) else (value,):
                found = getattr(held, "fget", None) or getattr(held, "__func__", held)
                function = inspect.unwrap(FPROBES.defined(found))
                if inspect.isfunction(function) and function.__module__ == name:
                    yield function.__qualname__.encode()


_names: dict[int, tuple[str, ...]] = {}
"""The names of functions that can be chosen, by the number of modules that there were when they were looked for."""


def _filter_names() -> Generator[None, None, tuple[str, ...]]:
    """Return the names of functions that can be chosen, each once. Yields when other clients may be served.

    They are looked for again after an import of a module.
    """
    nr_modules = len(sys.modules)
    if nr_modules not in _names:
        found: dict[str, None] = {}
        for number, name in enumerate(available_filter_functions(), 1):
            found.update(dict.fromkeys(_both_names(name)))
            if not number % _LOOKED_AT_ONCE:
                yield
        _names.clear()
        _names[nr_modules] = tuple(found)
    return _names[nr_modules]


def check_globs(globs: tuple[str, ...]) -> Generator[None, None, bool]:
    """Return whether each glob names a function that can be traced.

    It yields after each glob: there are 1,000 names. And while the names are looked for.
    """
    for glob in globs:
        matches = compile_glob(glob)
        names = yield from _filter_names()
        if not any(map(matches, names)):
            return False
        yield
    return True
