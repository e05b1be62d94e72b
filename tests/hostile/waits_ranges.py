"""More cases of `tests.hostile.waits`: calls on ranges, in worlds that `waits_calls` has not."""

from __future__ import annotations

import contextlib
from functools import partial

from shared.client import Process
from shared.uapi.mman import Madv, Map, Mcl, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import Rlimit
from shared.uapi.syscalls import Access, Nr
from tests.hostile import waits_worlds as worlds
from tests.hostile.waits_cases import Case
from tests.hostile.waits_worlds import ELSEWHERE, READ, RW, World

_MAX_IOVECS = 1024


def _pieces(advice: Madv, p: Process, w: World) -> None:
    """The most iovecs, each of all of it."""
    p.process_madvise(p.pid, [(w.start, w.length)] * _MAX_IOVECS, advice)


def _writev(p: Process, w: World) -> None:
    near = p.mmap(0, 1 << 20, RW, int(Map.PRIVATE | Map.ANONYMOUS))
    p.process_vm_writev(p.pid, [(near, 1 << 20)] * 1024, [(w.start, min(w.length, 1 << 30))])


def _many_iovecs(p: Process, w: World) -> None:
    """A page of each of 1,024 mappings."""
    near = p.mmap(0, 8 << 20, RW, int(Map.PRIVATE | Map.ANONYMOUS))
    iovecs = [(w.start + number * 58 * PAGE_SIZE, PAGE_SIZE) for number in range(1024)]
    p.process_vm_readv(p.pid, [(near, 4 << 20)], iovecs)


def _remap_file_pages(p: Process, w: World) -> None:
    half = w.length // 2 & -PAGE_SIZE
    p.call(Nr.REMAP_FILE_PAGES, w.start, half, 0, half // PAGE_SIZE, 0)


def _pkey_mprotect(p: Process, w: World) -> None:
    key = -1
    with contextlib.suppress(OSError):
        key = p.pkey_alloc()
    p.pkey_mprotect(w.start, w.length, READ, key)


def _set_locked(p: Process, w: World) -> None:
    """All is to be locked, and a mapping grows."""
    p.mlockall(int(Mcl.FUTURE))
    at = p.mmap(ELSEWHERE, PAGE_SIZE, RW, worlds.ANON & ~Map.NORESERVE.value)
    p.mremap(at, PAGE_SIZE, w.length, 0)


def _locked_heap(p: Process, w: World) -> None:
    p.prlimit64(0, Rlimit.DATA, (1 << 62, 1 << 62))
    p.mlockall(int(Mcl.FUTURE))
    p.brk(p.brk(0) + w.length)


def _pagemap(p: Process, w: World) -> None:
    """8 bytes a page: what 64 MiB of the file say."""
    at = w.start // PAGE_SIZE * 8
    end = at + min(w.length // PAGE_SIZE * 8, 64 << 20)
    while at < end:
        at += len(p.procread("self/pagemap", at))


def _policy(p: Process, w: World) -> None:
    """A policy of all memory: preferred, then the default."""
    nodes = (1).to_bytes(8, "little")
    p.call(Nr.MBIND, w.start, w.length, 1, 1, 65, 0, data=nodes)
    p.call(Nr.MBIND, w.start, w.length, 0, 0, 0, 0)


def _lock_and_unlock(p: Process, w: World) -> None:
    p.mlock(w.start, w.length)
    p.munlock(w.start, w.length)


def _fork_and_write(p: Process, w: World) -> None:
    p.call(Nr.CLONE)
    p.call(Nr.TOUCH, w.start, w.length, Access.WRITE)


_BACKED = (worlds.shared, worlds.huge, worlds.file, worlds.private_file, worlds.swapped)
CASES = [
    *[Case(f"process_madvise {advice.name}, 1,024 times all", make, partial(_pieces, advice))
      for advice in (Madv.COLD, Madv.WILLNEED) for make in (worlds.vmas, worlds.swapped)],
    *[Case("process_vm_writev", make, _writev) for make in (worlds.untouched, *_BACKED)],
    Case("process_vm_readv of 1,024 iovecs", worlds.vmas, _many_iovecs),
    *[Case("remap_file_pages", make, _remap_file_pages) for make in (worlds.shared, worlds.file)],
    *[Case("pkey_mprotect", make, _pkey_mprotect) for make in (worlds.vmas, worlds.wide, *_BACKED)],
    *[Case("mprotect none", make, lambda p, w: p.mprotect(w.start, w.length, int(Prot.NONE))) for make in _BACKED],
    *[Case("mlock", make, lambda p, w: p.mlock(w.start, w.length)) for make in _BACKED],
    *[Case("munlock", make, _lock_and_unlock) for make in _BACKED],
    *[Case("mincore", make, lambda p, w: p.mincore(w.start, w.length)) for make in _BACKED],
    Case("mremap grows, mlockall FUTURE", worlds.nothing, _set_locked),
    Case("brk grows, mlockall FUTURE", worlds.nothing, _locked_heap),
    *[Case("read self/pagemap", make, _pagemap) for make in (worlds.wide, worlds.vmas, worlds.huge, worlds.swapped)],
    *[Case("read self/smaps", make, lambda p, _: p.procread("self/smaps"))
      for make in (worlds.written, *_BACKED, worlds.many_files)],
    *[Case("mbind, twice", make, _policy) for make in (worlds.vmas, worlds.wide)],
    Case("touch, writing", worlds.private_file, lambda p, w: p.call(Nr.TOUCH, w.start, w.length, Access.WRITE)),
    Case("touch, executing", worlds.wide, lambda p, w: p.call(Nr.TOUCH, w.start, w.length, Access.FETCH)),
    Case("fork, then touch, writing", worlds.written, _fork_and_write),
    Case("fork, then touch, writing", worlds.huge, _fork_and_write),
]  # fmt: skip
