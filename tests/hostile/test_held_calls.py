"""Calls that Linux holds mmap_lock for to their end: in pieces here, and other threads of their process wait."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from kerneld.errors import SysError
from kerneld.mm.calls import move_page_tables
from kerneld.mm.calls.brk import do_brk
from kerneld.mm.calls.mmap import do_mmap
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.space import munmap, pace
from kerneld.mm.space.mempolicy import MPOL_LOCAL
from kerneld.mm.space.mm import MmStruct
from kerneld.syscalls.kernel import Kernel
from shared.uapi.mman import Madv, Map, Mremap
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Nr
from tests.support.long_requests import attached, begun, call, finish, kernel_in_pieces
from tests.support.programs import iovecs
from tests.support.wide_ranges import ANON, BASE, LENGTH, NO_FD, RW, many_vmas, mm_of, one_vma, state

AWAY = BASE + 64 * LENGTH
LongCall = tuple[Nr, tuple[int, ...], Callable[[MmStruct], object]]
"""A request, and the same at once."""
MOVE = (Mremap.MAYMOVE | Mremap.FIXED).value
DONTUNMAP = MOVE | Mremap.DONTUNMAP.value
PRIVATE = (Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE).value


def mremap(start: int, old: int, new: int, flags: int, to: int) -> LongCall:
    args = (start, old, new, flags, to)
    return Nr.MREMAP, args, lambda mm: do_mremap(mm, *args, privileged=True)


def mmap(start: int, length: int) -> LongCall:
    args = (start, length, RW, ANON)
    return Nr.MMAP, (*args, NO_FD, 0), lambda mm: do_mmap(mm, *args, None, 0, privileged=True)


CALLS: dict[str, LongCall] = {
    "move by a page": mremap(BASE, LENGTH, LENGTH, MOVE, AWAY + PAGE_SIZE),
    "move by a page, longer": mremap(BASE, LENGTH, 2 * LENGTH, MOVE, AWAY + PAGE_SIZE),
    "move by a page, shorter": mremap(BASE, LENGTH, LENGTH // 2, MOVE, AWAY + PAGE_SIZE),
    "move by tables": mremap(BASE, LENGTH, LENGTH, MOVE, AWAY),
    "move from inside a table": mremap(BASE + PAGE_SIZE, LENGTH - PAGE_SIZE, LENGTH, MOVE, AWAY),
    "leave the mapping": mremap(BASE, LENGTH, LENGTH, DONTUNMAP, AWAY + PAGE_SIZE),
    "shrink": mremap(BASE, LENGTH, PAGE_SIZE, 0, 0),
    "map over it": mmap(BASE, LENGTH),
    "map inside it": mmap(BASE + PAGE_SIZE, LENGTH - 2 * PAGE_SIZE),
    "map over it and beyond": mmap(BASE - PMD_SIZE, LENGTH + 3 * PMD_SIZE),
}
ONE_STEP = {"move by tables", "move from inside a table"}
"""The tables move, and nothing is left to be done piece by piece."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Every slice, and every piece, is over at once, and two tables or sixteen VMAs are many."""
    monkeypatch.setattr(pace, "_AT_ONCE", 2 * PMD_SIZE)
    monkeypatch.setattr(pace, "_FEW_VMAS", 16)
    monkeypatch.setattr(munmap, "_FEW", 4)
    monkeypatch.setattr(move_page_tables, "_MOVED_AT_ONCE", 2 * PMD_SIZE)
    yield from kernel_in_pieces(monkeypatch)


def everything(mm: MmStruct) -> list[object]:
    away = mm.page_table.walk.entries(AWAY - PMD_SIZE, AWAY + 2 * LENGTH + PMD_SIZE)
    return [*state(mm), (away != 0).tolist(), (away & 3).tolist(), mm.hiwater_vm]


@pytest.mark.parametrize("name", CALLS)
def test_what_comes_of_it(kernel: Kernel, name: str) -> None:
    long, twin = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    for who in (long, twin):
        one_vma(mm_of(who), who)
    nr, args, at_once = CALLS[name]
    at_once(mm_of(twin))
    if name in ONE_STEP:
        assert call(long, nr, *args).ret > 0
    else:
        (reply,), served = finish(begun(long, nr, *args), twin)
        assert reply.ret > 0
        assert served >= 5
    assert everything(mm_of(long)) == everything(mm_of(twin))


@pytest.mark.parametrize("name", ["map over it", "map inside it", "map over it and beyond"])
def test_what_comes_of_it_for_many(kernel: Kernel, name: str) -> None:
    long, twin = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    for who in (long, twin):
        many_vmas(mm_of(who), who)
    nr, args, at_once = CALLS[name]
    at_once(mm_of(twin))
    (reply,), served = finish(begun(long, nr, *args), twin)
    assert reply.ret == args[0]
    assert served >= 5
    assert everything(mm_of(long)) == everything(mm_of(twin))


def test_a_move_over_what_is_mapped(kernel: Kernel) -> None:
    long, twin = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    for who in (long, twin):
        one_vma(mm_of(who), who)
        assert call(who, Nr.MMAP, AWAY, LENGTH, RW, ANON, NO_FD, 0).ret == AWAY
    args = (AWAY, LENGTH, LENGTH, MOVE, BASE)
    assert do_mremap(mm_of(twin), *args, privileged=True) == BASE
    (reply,), served = finish(begun(long, Nr.MREMAP, *args), twin)
    assert reply.ret == BASE
    assert served >= 5
    assert everything(mm_of(long)) == everything(mm_of(twin))


def test_a_heap_that_shrinks(kernel: Kernel) -> None:
    long, twin = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    for who in (long, twin):
        start = call(who, Nr.BRK, 0).ret
        for step in (1, 2, 3):
            assert call(who, Nr.BRK, start + step * 12 * PMD_SIZE).ret == start + step * 12 * PMD_SIZE
        assert call(who, Nr.MADVISE, start, 36 * PMD_SIZE, Madv.POPULATE_READ).ret == 0
    assert do_brk(mm_of(twin), start + PAGE_SIZE, privileged=True) == start + PAGE_SIZE
    (reply,), served = finish(begun(long, Nr.BRK, start + PAGE_SIZE), twin)
    assert reply.ret == start + PAGE_SIZE
    assert served >= 5
    assert state(mm_of(long)) == state(mm_of(twin))
    assert mm_of(long).brk == mm_of(twin).brk


def test_a_move_that_fails_is_undone(kernel: Kernel) -> None:
    """Half of the entries have moved when there is no frame for a table more."""
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    mm = mm_of(long)
    one_vma(mm, long)
    before = everything(mm)
    frames = kernel.frames
    batch = begun(long, Nr.MREMAP, BASE, LENGTH, LENGTH, MOVE, AWAY + PAGE_SIZE)
    alloc, left = frames.alloc_page, [3]

    def few(*args: int, **words: bool) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise SysError(errno.ENOMEM)
        return alloc(*args, **words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames, "alloc_page", few)
        (reply,), _ = finish(batch, other)
    assert reply.ret == -errno.ENOMEM
    assert everything(mm)[:2] == before[:2]
    assert mm.page_table.walk.entries(BASE, BASE + LENGTH).any()


@pytest.mark.parametrize("name", sorted(CALLS.keys() - ONE_STEP))
def test_who_makes_it_may_die_meanwhile(kernel: Kernel, name: str) -> None:
    long = attached(kernel, os.getpid())
    one_vma(mm_of(long), long)
    nr, args, _ = CALLS[name]
    batch = begun(long, nr, *args)
    assert long.thread is not None
    assert kernel.table.mmap_locks.holders == {mm_of(long): long.thread}
    kernel.process_died(long.thread.process)
    batch.close()
    assert not kernel.table.mmap_locks.holders


def test_a_policy_of_many_mappings(kernel: Kernel) -> None:
    """What is checked at the beginning is true at the end. Linux: mmap_write_lock() in mm/mempolicy.c:do_mbind()."""
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    many_vmas(mm_of(long), long)
    batch = begun(long, Nr.MBIND, BASE, LENGTH, MPOL_LOCAL, 0, 0, 0)
    assert kernel.table.mmap_locks.holders == {mm_of(long): long.thread}
    (reply,), served = finish(batch, other)
    assert (reply.ret, kernel.table.mmap_locks.holders) == (0, {})
    assert served >= 5


@pytest.mark.parametrize("nr", [Nr.PROCESS_VM_WRITEV, Nr.PROCESS_MADVISE])
def test_who_works_with_its_memory_waits(kernel: Kernel, nr: Nr) -> None:
    """Linux: mmap_read_lock() of the other's address space."""
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    one_vma(mm_of(long), long)
    assert long.thread is not None
    near = call(other, Nr.MMAP, 0, PAGE_SIZE, RW, PRIVATE, NO_FD, 0).ret
    batch = begun(long, Nr.MREMAP, BASE, LENGTH, LENGTH, MOVE, AWAY + PAGE_SIZE)
    pid, far = long.thread.process.pid, AWAY + PAGE_SIZE
    if nr is Nr.PROCESS_MADVISE:
        waits = begun(other, nr, pid, 1, 1, Madv.COLD, 0, data=iovecs((far, LENGTH)))
        expected = LENGTH
    else:
        waits = begun(other, nr, pid, 1, 1, 1, 1, 0, data=iovecs((near, 5)) + iovecs((far, 5)))
        expected = 5
    for _ in range(3):
        assert waits.run(0.0) is None
    # No real process has this number; 1 may be the parent's, in a namespace.
    third = attached(kernel, 1 << 22)
    (reply,), _ = finish(batch, third)
    assert reply.ret == far
    (reply,), _ = finish(waits, third)
    assert reply.ret == expected
