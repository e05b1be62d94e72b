"""What a piece of this process costs: instructions of the processor by callgrind or by a counter, or time.

Knows no kernel. Each meter measures what runs between `begin` and `end`, and prints a line of its name and its figure,
except callgrind, which writes a file (`bench.counting` reads it).
"""

from __future__ import annotations

import collections
import cProfile
import ctypes
import json
import os
import pstats
import struct
import sys
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, Protocol

SYS_PERF_EVENT_OPEN = 298
TYPE_HARDWARE, TYPE_SOFTWARE = 0, 1
HARDWARE_INSTRUCTIONS, SOFTWARE_PAGE_FAULTS = 1, 2
_ATTR_BYTES = 128
_EXCLUDE_KERNEL_AND_HV = 1 << 5 | 1 << 6
"""Bits of the word of flags. Source: Linux v6.8 include/uapi/linux/perf_event.h:struct perf_event_attr."""


class Meter(Protocol):
    """Measures pieces of this process, one after the other."""

    def begin(self) -> None:
        """Begin a piece."""

    def end(self, name: str) -> None:
        """End the piece, which has this name."""


class Counter(Meter, Protocol):
    """A meter of instructions. Only it can leave out a part of a piece."""

    def pause(self) -> None:
        """Stop to count: what follows is not in the piece."""

    def resume(self) -> None:
        """Go on."""


class PerfCounter:
    """A counter of this thread: instructions in user mode, unless another event is named."""

    def __init__(self, kind: int = TYPE_HARDWARE, event: int = HARDWARE_INSTRUCTIONS) -> None:
        """Raises OSError where the processor or the host has no such counter, or does not let this user read it.

        Source: perf_event_open(2).
        """
        attr = struct.pack("<IIQQQQQ", kind, _ATTR_BYTES, event, 0, 0, 0, _EXCLUDE_KERNEL_AND_HV)
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.syscall(SYS_PERF_EVENT_OPEN, attr.ljust(_ATTR_BYTES, b"\0"), 0, -1, -1, 0)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "perf_event_open")
        self._at = self._before = 0

    def read(self) -> int:
        """Return how many events there have been."""
        return int.from_bytes(os.read(self.fd, 8), "little")

    def begin(self) -> None:
        """Begin a piece."""
        self._before = 0
        self._at = self.read()

    def pause(self) -> None:
        """Stop to count."""
        self._before += self.read() - self._at

    def resume(self) -> None:
        """Go on."""
        self._at = self.read()

    def end(self, name: str) -> None:
        """Print the events since `begin`."""
        count = self._before + self.read() - self._at
        print(name, count, flush=True)


class Callgrind:
    """Valgrind's counter: this process must run under it. Each piece becomes a file."""

    def __init__(self, library: str) -> None:
        """`library` is the path of the compiled callgrind.c."""
        self._library = ctypes.CDLL(library)
        self._library.instrument()

    def begin(self) -> None:
        """Begin a piece."""
        self._library.begin()

    def pause(self) -> None:
        """Stop to count."""
        self._library.toggle()

    def resume(self) -> None:
        """Go on."""
        self._library.toggle()

    def end(self, name: str) -> None:
        """Have the counts since `begin` written."""
        self._library.end(name.encode())


class Clock:
    """The processor time of this process, in nanoseconds."""

    def __init__(self) -> None:
        self._at = 0

    def begin(self) -> None:
        """Begin a piece."""
        self._at = time.process_time_ns()

    def end(self, name: str) -> None:
        """Print the nanoseconds since `begin`."""
        spent = time.process_time_ns() - self._at
        print(name, spent, flush=True)


class Profile:
    """Python's profiler: where the time of a piece goes, function by function."""

    def begin(self) -> None:
        """Begin a piece."""
        self._profile = cProfile.Profile()
        self._profile.enable()

    def end(self, name: str) -> None:
        """Print the functions that took most of the time."""
        self._profile.disable()
        print(name)
        pstats.Stats(self._profile, stream=sys.stdout).sort_stats("tottime").print_stats(45)


class Functions:
    """The instructions of the interpreter that each function has run, and the functions in C that it has called.

    The interpreter's instructions (opcodes) are the same each time, also without valgrind. `end` prints a line of JSON.
    Not in it are the calls into C that have no name: an operator, an index, an attribute.
    """

    def __init__(self) -> None:
        self._opcodes: collections.Counter[CodeType] = collections.Counter()
        self._calls: collections.Counter[CodeType] = collections.Counter()

    def begin(self) -> None:
        """Begin a piece."""
        self._opcodes.clear()
        self._calls.clear()
        if sys.version_info >= (3, 12):
            # sys.settrace() sees no opcodes there of a function's first run.
            events, tool = sys.monitoring.events, sys.monitoring.PROFILER_ID
            sys.monitoring.use_tool_id(tool, "bench")
            sys.monitoring.register_callback(tool, events.INSTRUCTION, self._instruction)
            sys.monitoring.register_callback(tool, events.C_RETURN, self._returned)
            sys.monitoring.set_events(tool, events.INSTRUCTION | events.CALL)
        else:
            sys.setprofile(self._called)
            sys.settrace(self._entered)

    def end(self, name: str) -> None:
        """Print the name, and for each function its opcodes and its calls into C."""
        if sys.version_info >= (3, 12):
            sys.monitoring.set_events(sys.monitoring.PROFILER_ID, 0)
            sys.monitoring.free_tool_id(sys.monitoring.PROFILER_ID)
        else:
            sys.settrace(None)
            sys.setprofile(None)
        functions = {place(code): (opcodes, self._calls[code]) for code, opcodes in self._opcodes.items()}
        print(name, json.dumps(functions), flush=True)

    def _instruction(self, code: CodeType, _offset: int) -> None:
        self._opcodes[code] += 1

    def _returned(self, code: CodeType, _offset: int, _callable: object, _first: object) -> None:
        self._calls[code] += 1

    def _entered(self, frame: FrameType, event: str, arg: Any) -> Any:
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._ran

    def _ran(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            self._opcodes[frame.f_code] += 1
        return self._ran

    def _called(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call":
            self._calls[frame.f_code] += 1


def place(code: CodeType) -> str:
    """Return the file of a function, as seen from where it was imported, and the function's name."""
    path = code.co_filename
    roots = [root for root in sys.path if root and path.startswith(f"{root}/")]
    return f"{path.removeprefix(max(roots, key=len, default='')).lstrip('/')}:{code.co_qualname}"


TIMERS: dict[str, Callable[[], Meter]] = {"clock": Clock, "profile": Profile}
"""The meters that measure time."""


def meter(name: str) -> Meter:
    """Return a meter: `clock`, `profile`, `functions`, or a counter. Raises OSError."""
    if name == "functions":
        return Functions()
    return TIMERS[name]() if name in TIMERS else counter(name)


def counter(name: str) -> Counter:
    """Return a counter of instructions: `perf`, or callgrind by the path of its library. Raises OSError."""
    return PerfCounter() if name == "perf" else Callgrind(name)
