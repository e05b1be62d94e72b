"""Cases of `tests.hostile.waits`: filters of functions, what a core dump asks for, and batches of one call.

A filter is a list of globs (docs/tracing.md). A trace may have 32 of functions and 32 of graph functions, and a
process may have sixteen traces.
"""

from __future__ import annotations

import contextlib
from itertools import islice

from shared.client import Process
from shared.client.trace import TraceSession
from shared.trace.attr import MAX_GLOBS
from shared.uapi.mman import Madv, Mremap
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.hostile import waits_worlds as worlds
from tests.hostile.waits_calls import advise, fork
from tests.hostile.waits_cases import Case, Do
from tests.hostile.waits_worlds import ANON, ELSEWHERE, GIB, RW, World

_TRACES = 16
_MOST_REQUESTS = 2_000
_ADVICE = (Madv.DONTNEED, Madv.FREE, Madv.PAGEOUT, Madv.WILLNEED, Madv.COLLAPSE, Madv.POPULATE_WRITE)
_RING_BYTES = 1 << 20
_EVENTS = ("ftrace:*", "fault:*", "kmem:*")
_CHUNK_BYTES = 65_536
"""What a program inside reads at once."""
_WINDOW_PAGES = _CHUNK_BYTES // 8
_ENTRY_BYTES = 8
_PRESENT_OR_SWAPPED = 3 << 62


def _globs() -> tuple[str, ...]:
    """Return as many globs as there may be, each of which takes long to find that a name does not match.

    All match the longest name of a function, which is not called here: unmerge_and_remove_all_rmap_items.
    """
    return tuple(f"*{'?' * (number % 28)}*items" for number in range(MAX_GLOBS))


def _filtered(p: Process, functions: tuple[str, ...], graph_functions: tuple[str, ...]) -> list[TraceSession]:
    """Return as many traces as a process may have: one less if it traces itself already."""
    traces = []
    with contextlib.suppress(OSError):
        for _ in range(_TRACES):
            traces.append(TraceSession(p, _EVENTS, [p.pid], _RING_BYTES, functions, graph_functions))
    return traces


def _close(traces: list[TraceSession]) -> None:
    for trace in traces:
        trace.stop()
        trace.close()


def _no_function(p: Process, w: World) -> None:
    """Each function is compared with all globs of all traces, and matches none."""
    traces = _filtered(p, _globs(), _globs())
    _work(p, w)
    _close(traces)


def _every_function(p: Process, w: World) -> None:
    """Each function is told to all traces."""
    traces = _filtered(p, ("*",), ())
    _work(p, w)
    _close(traces)


def _inside_one(p: Process, w: World) -> None:
    """Each function may be told, but is inside no function that is wanted."""
    traces = _filtered(p, ("*",), _globs())
    _work(p, w)
    _close(traces)


def _work(p: Process, w: World) -> None:
    """What calls many functions: all is used, protected, copied, advised on and unmapped."""
    if w.length >= GIB:
        p.call(Nr.TOUCH, w.start, w.length, Access.WRITE)  # Small mappings may not be written to, and have been used.
    p.mprotect(w.start, w.length, worlds.READ)
    fork(p, w)
    advise(Madv.COLD)(p, w)
    p.munmap(w.start, w.length)


def _read_all(p: Process, view: str) -> bytes:
    text = b""
    while part := p.procread(view, len(text), _CHUNK_BYTES):
        text += part
    return text


def _core_dump(p: Process, _world: World) -> None:
    """The requests of stub/memory/dump.c: smaps, then of each mapping its pagemap, and its pages."""
    for line in _read_all(p, "self/smaps").splitlines():
        bounds, _, rights = line.partition(b" ")
        if b"-" not in bounds or bounds.endswith(b":"):
            continue
        start, end = (int(bound, 16) for bound in bounds.split(b"-"))
        for at in range(start, end, _WINDOW_PAGES * PAGE_SIZE):
            _copy_window(p, at, min(_WINDOW_PAGES, (end - at) >> PAGE_SHIFT), is_shared=rights[3:4] == b"s")


def _copy_window(p: Process, start: int, nr_pages: int, *, is_shared: bool) -> None:
    words = memoryview(p.procread("self/pagemap", start // PAGE_SIZE * _ENTRY_BYTES, nr_pages * _ENTRY_BYTES)).cast("Q")
    wanted = [number for number, word in enumerate(words) if word & _PRESENT_OR_SWAPPED]
    if is_shared:
        p.madvise(start, nr_pages * PAGE_SIZE, Madv.WILLNEED)
        resident = p.mincore(start, nr_pages * PAGE_SIZE)
        wanted = [number for number, byte in enumerate(resident) if byte & 1]
    numbers = iter(wanted)
    while run := list(islice(numbers, _CHUNK_BYTES // PAGE_SIZE)):
        p.procread("self/mem", start + run[0] * PAGE_SIZE, (run[-1] - run[0] + 1) * PAGE_SIZE)


def _dump_of_all(p: Process, w: World) -> None:
    """The same of a process with a heap beside it that nobody has used."""
    p.mmap(ELSEWHERE, w.length, RW, ANON)
    _core_dump(p, w)


def _batch(nr: Nr, length: int, *more: int) -> Do:
    """Return the call of 2,000 requests in one datagram: about all, or each about the next part of so many bytes."""

    def send(p: Process, w: World) -> None:
        with p.batch() as batch:
            for number in range(_MOST_REQUESTS):
                at = w.start + number * length % w.length
                batch.call(nr, at, length or w.length, *more)

    return send


def _moves(p: Process, w: World) -> None:
    """All moves there and back, 2,000 times."""
    places = w.start, ELSEWHERE + PAGE_SIZE
    with p.batch() as batch:
        for number in range(_MOST_REQUESTS):
            old, new = places[number % 2], places[1 - number % 2]
            batch.call(Nr.MREMAP, old, w.length, w.length, int(Mremap.MAYMOVE | Mremap.FIXED), new)


def _grow_elsewhere(p: Process, w: World) -> None:
    """To the double, where there is no room behind it: all of it moves, and the new half is used."""
    p.mmap(w.start + w.length, PAGE_SIZE, RW, ANON)
    at = p.mremap(w.start, w.length, 2 * w.length, int(Mremap.MAYMOVE))
    p.call(Nr.TOUCH, at, w.length, Access.READ)


CASES = [
    *[Case(f"2,000 times {name}", worlds.written, do)
      for name, do in (
          ("munmap of 2 MiB", _batch(Nr.MUNMAP, PMD_SIZE)),
          ("mprotect of 2 MiB", _batch(Nr.MPROTECT, PMD_SIZE, worlds.READ)),
          ("mlock of 2 MiB", _batch(Nr.MLOCK, PMD_SIZE)),
          *((f"{advice.name} of 2 MiB", _batch(Nr.MADVISE, PMD_SIZE, advice.value)) for advice in _ADVICE),
          ("mremap", _moves),
      )],
    *[Case("mremap to the double, elsewhere", make, _grow_elsewhere)
      for make in (worlds.written, worlds.huge, worlds.shared, worlds.file, worlds.private_file, worlds.swapped,
                   worlds.wide)],
    *[Case(f"filters: {name}", make, do)
      for name, do in (("no function", _no_function), ("inside one", _inside_one), ("every", _every_function))
      for make in (worlds.untouched, worlds.vmas, worlds.huge)],
    *[Case("core dump", make, _dump_of_all)
      for make in (worlds.written, worlds.vmas, worlds.shared, worlds.huge, worlds.swapped, worlds.file)],
]  # fmt: skip
