"""Cases of `tests.hostile.waits` about many: processes of a family, clients that leave at once, connections, traces."""

from __future__ import annotations

import contextlib
import os
import signal

from shared.client import Process
from shared.client.errors import KerneldError
from shared.client.realmem import map_anonymous, unmap
from shared.client.trace import TraceSession
from shared.uapi.mman import Madv, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE
from shared.uapi.syscalls import Access, Nr
from tests.hostile import waits_worlds as worlds
from tests.hostile.waits_calls import advise, fork
from tests.hostile.waits_cases import Case
from tests.hostile.waits_machine import ksm_is, reclaim_all, scan
from tests.hostile.waits_worlds import ANON, BASE, RW, Scale, World

_COPIES = 16
_FAMILY, _LARGE_FAMILY, _LEAVING, _LOOP = 60, 180, 250, 100
_ENTRY_BYTES = 24


def _children(p: Process, count: int, *, copies: int = 0, first_unmaps: bool = False) -> list[int]:
    """Fork so many processes, which stay until their parent ends; each with fork copies of its own."""
    pids = []
    parent_is_there, _kept = os.pipe()
    for _ in range(count):
        ready, done = os.pipe()
        pid = p.fork()
        if not pid:
            os.close(_kept)
            if first_unmaps:
                p.munmap(BASE, PAGE_SIZE)
            for _ in range(copies):
                p.call(Nr.CLONE)
            os.write(done, b"x")
            os.read(parent_is_there, 1)
            os._exit(0)
        os.close(done)
        os.read(ready, 1)
        os.close(ready)
        pids.append(pid)
    worlds.keep(_kept)
    os.close(parent_is_there)
    _pids[:] = pids
    return pids


_pids: list[int] = []


def _one_huge(p: Process) -> World:
    p.mmap(BASE, PMD_SIZE, RW, ANON)
    p.madvise(BASE, PMD_SIZE, Madv.HUGEPAGE)
    p.call(Nr.TOUCH, BASE, PMD_SIZE, Access.WRITE)
    return World(BASE, PMD_SIZE)


def huge_family(p: Process, _scale: Scale) -> World:
    """A huge page of which 1,000 address spaces map all small pages but the first."""
    world = _one_huge(p)
    _children(p, _FAMILY, copies=_COPIES, first_unmaps=True)
    return world


def huge_family_merging(p: Process, scale: Scale) -> World:
    """A huge page that 1,000 address spaces map whole, of pages that KSM may merge."""
    world = _one_huge(p)
    p.madvise(world.start, world.length, Madv.MERGEABLE)
    _children(p, _FAMILY, copies=_COPIES)
    return world


def large_huge_family(p: Process, _scale: Scale) -> World:
    """The same of 3,000 address spaces."""
    world = _one_huge(p)
    p.madvise(world.start, world.length, Madv.MERGEABLE)
    _children(p, _LARGE_FAMILY, copies=_COPIES)
    return world


def family(p: Process, _scale: Scale) -> World:
    """2 MiB of small pages that 1,000 address spaces map."""
    p.mmap(BASE, PMD_SIZE, RW, ANON)
    p.call(Nr.TOUCH, BASE, PMD_SIZE, Access.WRITE)
    _children(p, _FAMILY, copies=_COPIES)
    return World(BASE, PMD_SIZE)


def chain(p: Process, _scale: Scale) -> World:
    """100 generations: the youngest has an anon_vma of each for its 500 mappings."""
    p.mmap(BASE, 500 * PAGE_SIZE, RW, ANON)
    p.call(Nr.TOUCH, BASE, 500 * PAGE_SIZE, Access.WRITE)
    for number in range(0, 500, 2):
        p.mprotect(BASE + number * PAGE_SIZE, PAGE_SIZE, int(Prot.READ))
    alive, _kept = os.pipe()
    worlds.keep(_kept)
    for _ in range(100):
        pid = p.fork()
        if pid:
            # The parent waits for its child; the youngest goes on.
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            os._exit(0)
    os.close(alive)
    return World(BASE, 500 * PAGE_SIZE)


def crowd(p: Process, scale: Scale) -> World:
    """250 processes, each with 100 mappings and 8 MiB written to."""
    world = worlds.vmas(p, scale._replace(nr_vmas=100))
    p.mmap(worlds.ELSEWHERE, 8 << 20, RW, ANON)
    p.call(Nr.TOUCH, worlds.ELSEWHERE, 8 << 20, Access.WRITE)
    _children(p, _LEAVING)
    return world


def crowd_of_copies(p: Process, scale: Scale) -> World:
    """A process with 16 copies by fork of 200 GiB of zero pages."""
    world = worlds.wide(p, scale)
    for _ in range(_COPIES):
        p.call(Nr.CLONE)
    return world


def _all_leave(p: Process, _world: World) -> None:
    for pid in _pids:
        os.kill(pid, signal.SIGKILL)
    for pid in _pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    for _ in range(100):
        p.getpid()


def _ksm_splits(p: Process, _world: World) -> None:
    ksm_is(p)
    scan(p, 3)


def _connects(p: Process, _world: World) -> None:
    """As many connections as a process may have come at once, with a ring each, and go at once."""
    for _ in range(3):
        others = []
        with contextlib.suppress(KerneldError, OSError):
            for number in range(200):
                other = Process.attach(p.socket_path, tid=(1 << 22) + number)
                others.append(other)
                other.getpid()
        for other in others:
            other.close()
        p.getpid()


def _traces(p: Process, _world: World) -> None:
    for _ in range(_LOOP):
        trace = TraceSession(p, ("*",), [p.pid], 1 << 20)
        trace.stop()
        trace.close()


def _function_traces(p: Process, _world: World) -> None:
    for _ in range(10):
        trace = TraceSession(p, ("*",), [p.pid], 1 << 20, functions=("*",))
        p.mmap(worlds.ELSEWHERE, PAGE_SIZE, RW, ANON)
        trace.stop()
        trace.close()


def _tables(p: Process, w: World) -> None:
    """Open, start, stop and close the shadow table of the most that there may be."""
    length = MAX_SPT_RANGE // PAGE_SIZE * _ENTRY_BYTES
    at = map_anonymous(length)
    for _ in range(_LOOP):
        p.shadowpt_open(p.pid, w.start, w.start + MAX_SPT_RANGE, at)
        p.shadowpt_start()
        p.shadowpt_stop()
        p.shadowpt_close()
    unmap(at, length)


def _watched(p: Process, w: World) -> None:
    """While a table of its first pages is updated, the whole is unmapped."""
    at = map_anonymous(MAX_SPT_RANGE // PAGE_SIZE * _ENTRY_BYTES)
    p.shadowpt_open(p.pid, w.start, w.start + MAX_SPT_RANGE, at)
    p.shadowpt_start()
    p.mprotect(w.start, w.length, int(Prot.READ))
    p.munmap(w.start, w.length)
    p.shadowpt_close()


def _fault_table(p: Process, w: World) -> None:
    """The largest table of faults."""
    p.faults_open(p.pid, map_anonymous(MAX_SPT_RANGE), MAX_SPT_RANGE)
    p.call(Nr.TOUCH, w.start, min(w.length, 64 << 20), Access.WRITE)
    p.shadowpt_close()


CASES = [
    *[Case(f"madvise {advice.name} of half a huge page", huge_family,
           lambda p, w, advice=advice: p.madvise(w.start, w.length // 2, advice))  # type: ignore[misc]
      for advice in (Madv.PAGEOUT, Madv.COLD, Madv.FREE)],
    Case("munmap of half a huge page", huge_family, lambda p, w: p.munmap(w.start, w.length // 2)),
    *[Case("KSM's scans", make, _ksm_splits) for make in (huge_family_merging, large_huge_family)],
    Case("min_free_kbytes", large_huge_family, reclaim_all),
    *[Case(call, make, do)
      for make in (family, chain)
      for call, do in (
          ("madvise PAGEOUT", advise(Madv.PAGEOUT)),
          ("madvise COLD", advise(Madv.COLD)),
          ("fork", fork),
          ("touch, writing", lambda p, w: p.call(Nr.TOUCH, w.start, w.length, Access.WRITE)),
          ("munmap", lambda p, w: p.munmap(w.start, w.length)),
      )],
    Case("250 ends at once", crowd, _all_leave),
    Case("exit with 16 copies", crowd_of_copies, worlds.end),
    Case("200 connections, three times", worlds.untouched, _connects),
    Case("100 traces", worlds.vmas, _traces),
    Case("10 function traces", worlds.untouched, _function_traces),
    Case("100 shadow tables", worlds.written, _tables),
    Case("shadow table, mprotect, munmap", worlds.written, _watched),
    Case("shadow table, mprotect, munmap", worlds.vmas, _watched),
    Case("shadow table, mprotect, munmap", worlds.huge, _watched),
    Case("table of faults", worlds.untouched, _fault_table),
]  # fmt: skip
