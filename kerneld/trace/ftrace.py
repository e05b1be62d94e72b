"""The function tracer: every function of the kernel, as it begins and as it ends.

While somebody asks, the interpreter calls a hook of ours at each call and each return (sys.setprofile), on the one
thread there is; when nobody does there is no hook, and no function differs from what it was. That is chosen over
wrappers around functions (`kerneld.trace.fprobe`): it sees functions that stand in no table (nested ones, methods that
an object has kept, properties), puts nothing between caller and callee, and a function that an exception leaves has
ended like any other.

A function is a `def` of a module of `kerneld`, but for the tracing itself; comprehensions, generator expressions and
lambdas are part of the function they stand in. A generator begins and ends each time it is resumed.

Owns who wants which functions, and what is under way for each of them. Invariant: the hook is in place exactly while
some trace wants one of the events of FTRACE. Answers to Linux v6.8 kernel/trace/ftrace.c and trace_functions_graph.c.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Generator, Iterator
from time import monotonic_ns
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from kerneld.trace.fprobe import FPROBES
from shared.trace.events import FTRACE, FUNCGRAPH_ENTRY, FUNCGRAPH_EXIT, FUNCTION
from shared.trace.glob import compile_glob

if TYPE_CHECKING:
    from kerneld.trace.trace import Trace
    from kerneld.trace.tracing import Tracing
    from shared.trace.event import Event

_KERNEL, _TRACER = "kerneld.", "kerneld.trace."
_FEWEST_A_WRITE = 256
"""A request may call any number of functions: so many records are written without waiting for its end."""
_NAME_BYTES = 63


class _Graph:
    """What one trace wants of the function tracer, and which of its functions are under way."""

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
        """Of each function that has been called: its name, and whether what is inside it is wanted; None: nothing."""
        self._stack: list[tuple[FrameType, bytes, int]] = []

    def enter(self, frame: FrameType) -> None:
        """A function begins."""
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
        # The last, so that the time is the function's and not ours.
        begun = monotonic_ns()
        if self._entry:
            self._record(FUNCGRAPH_ENTRY, begun, name, len(self._stack))
            begun = monotonic_ns()
        self._stack.append((frame, name, begun))

    def leave(self, frame: FrameType) -> None:
        """A function ends, in whatever way; one whose beginning was not seen is passed over."""
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
        # What is inside a graph function is wanted whatever its name; a filter holds there too, as in Linux.
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
    """The hook, and for whom it is there."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._graphs: list[_Graph] = []
        self._former: Any = None

    @property
    def is_on(self) -> bool:
        """Whether functions are traced."""
        return bool(self._graphs)

    def open(self, trace: Trace, functions: tuple[str, ...], graph_functions: tuple[str, ...]) -> None:
        """A trace is there; where it wants functions, it is told of them from now on."""
        if FTRACE.isdisjoint(event.number for event in trace.events):
            return
        if not self._graphs:
            self._former = sys.getprofile()
            sys.setprofile(self._hook)
        self._graphs.append(_Graph(trace, self._tracing, functions, graph_functions))

    def close(self, trace: Trace) -> None:
        """A trace ends."""
        before = len(self._graphs)
        self._graphs = [graph for graph in self._graphs if graph.trace is not trace]
        if before and not self._graphs:
            sys.setprofile(self._former)
            self._former = None

    def _hook(self, frame: FrameType, event: str, _arg: Any) -> None:
        # While this runs the interpreter calls no hook: what is called from here is not traced.
        if event == "call":
            for graph in self._graphs:
                graph.enter(frame)
        elif event == "return":
            for graph in self._graphs:
                graph.leave(frame)


def function_name(frame: FrameType) -> bytes:
    """Return the name of the kernel's function that a frame runs, `Class.method` of a method; empty for any other."""
    module = frame.f_globals.get("__name__", "")
    code = frame.f_code
    if not module.startswith(_KERNEL) or module.startswith(_TRACER) or code.co_name.startswith("<"):
        return b""
    return code.co_qualname.replace("<locals>.", "").encode()[:_NAME_BYTES]


def _caller_name(frame: FrameType) -> bytes:
    """Return the name of the kernel's function that called one; what stands between while it is traced is passed by."""
    caller = frame.f_back
    while caller is not None and caller.f_globals.get("__name__", "").startswith(_TRACER):
        caller = caller.f_back
    return function_name(caller) if caller is not None else b""


def _matches(name: bytes, globs: list[Callable[[str], object]]) -> bool:
    """Tell whether one of the globs, as `compile_glob` has made them, names a function, with its class or without."""
    whole, own = _both_names(name)
    return any(matches(whole) or matches(own) for matches in globs)


def _both_names(name: bytes) -> tuple[str, str]:
    whole = name.decode("utf-8", "replace")
    return whole, whole.rpartition(".")[2]


def available_filter_functions() -> Iterator[bytes]:
    """Yield the names of the functions that stand in a module or a class of the kernel.

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


@functools.lru_cache(maxsize=1)
def _filter_names(_nr_modules: int) -> tuple[str, ...]:
    """Return the names by which functions can be chosen, each once; it is asked for anew when a module has come."""
    return tuple({name for both in map(_both_names, available_filter_functions()) for name in both})


def check_globs(globs: tuple[str, ...]) -> Generator[None, None, bool]:
    """Tell whether each glob names some function that can be traced, one glob a piece: there are a thousand names."""
    for glob in globs:
        matches = compile_glob(glob)
        if not any(map(matches, _filter_names(len(sys.modules)))):
            return False
        yield
    return True
