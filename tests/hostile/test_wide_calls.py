"""Calls on wide ranges and on many VMAs: others are served between two pieces, and the outcome is that of one piece."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kerneld.errors import SysError
from kerneld.mm.calls import mincore
from kerneld.mm.calls.fork import dup_mmap
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mbind import mbind_in_pieces
from kerneld.mm.calls.mincore import do_mincore
from kerneld.mm.calls.mlock import do_mlock, do_munlock, mlockall_flags_in_pieces
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.space import munmap, pace, truncate
from kerneld.mm.space.mempolicy import MPOL_LOCAL
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap, exit_mmap
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.space.rss import Rss
from kerneld.mm.space.writeback import do_msync
from kerneld.mm.vm_flags import VM_LOCKED, VM_LOCKONFAULT
from kerneld.syscalls.answer import Call
from kerneld.syscalls.dispatch import run
from kerneld.syscalls.kernel import Kernel
from shared.uapi.mman import MLOCK_ONFAULT, Madv, Map, Mcl, Ms
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Nr
from shared.wire import MAX_REPLY
from tests.support.in_process import Client
from tests.support.long_requests import attached, begun, call, finish, kernel_in_pieces
from tests.support.wide_ranges import (
    ANON,
    BASE,
    LENGTH,
    NO_FD,
    NONE,
    READ,
    RW,
    many_vmas,
    mm_of,
    one_vma,
    state,
)

AtOnce = Callable[[MmStruct], None]
ADVICE = (Madv.DONTNEED, Madv.FREE, Madv.COLD, Madv.PAGEOUT, Madv.WILLNEED, Madv.DONTFORK)


def advise(advice: Madv) -> AtOnce:
    return lambda mm: do_madvise(mm, BASE, LENGTH, advice.value)


def lock_on_fault(mm: MmStruct) -> None:
    """Lock what is there, as a mlock() does before it faults in the rest."""
    do_mlock(mm, BASE, LENGTH, VM_LOCKED | VM_LOCKONFAULT, privileged=True)


def bind_to_its_node(mm: MmStruct) -> None:
    run_at_once(mbind_in_pieces(mm, BASE, LENGTH, MPOL_LOCAL, 0, 0, may_move_all=False))


CALLS: dict[str, tuple[Nr, tuple[int, ...], AtOnce]] = {
    "munmap": (Nr.MUNMAP, (), lambda mm: do_munmap(mm, BASE, LENGTH)),
    "mprotect": (Nr.MPROTECT, (READ,), lambda mm: do_mprotect(mm, BASE, LENGTH, READ)),
    "mprotect none": (Nr.MPROTECT, (NONE,), lambda mm: do_mprotect(mm, BASE, LENGTH, NONE)),
    "mprotect write": (Nr.MPROTECT, (RW | 4,), lambda mm: do_mprotect(mm, BASE, LENGTH, RW | 4)),
    **{advice.name.lower(): (Nr.MADVISE, (advice.value,), advise(advice)) for advice in ADVICE},
    "msync": (Nr.MSYNC, (Ms.SYNC.value,), lambda mm: do_msync(mm, BASE, LENGTH, Ms.SYNC.value)),
    "munlock": (Nr.MUNLOCK, (), lambda mm: do_munlock(mm, BASE, LENGTH)),
    "mbind": (Nr.MBIND, (MPOL_LOCAL, 0, 0, 0), bind_to_its_node),
    "mlock2": (Nr.MLOCK2, (MLOCK_ONFAULT,), lock_on_fault),
}  # fmt: skip


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Every slice, and every piece, is over at once, and two tables or sixteen VMAs are many."""
    monkeypatch.setattr(pace, "_AT_ONCE", 2 * PMD_SIZE)
    monkeypatch.setattr(pace, "_FEW_VMAS", 16)
    monkeypatch.setattr(munmap, "_FEW", 4)
    yield from kernel_in_pieces(monkeypatch)


ONE_STEP = {("msync", one_vma), ("dontfork", one_vma), ("munlock", one_vma), ("mbind", one_vma)}
"""One VMA has other flags, and that is all."""


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("make", [one_vma, many_vmas])
def test_what_comes_of_it(kernel: Kernel, name: str, make: Callable[[MmStruct, Client], None]) -> None:
    long, twin = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    for who in (long, twin):
        make(mm_of(who), who)
    nr, args, at_once = CALLS[name]
    expected = 0
    try:
        at_once(mm_of(twin))
    except SysError as error:
        expected = -error.errno
    if (name, make) in ONE_STEP:
        assert call(long, nr, BASE, LENGTH, *args).ret == expected
    else:
        (reply,), served = finish(begun(long, nr, BASE, LENGTH, *args), twin)
        assert reply.ret == expected
        assert served >= 5
    assert state(mm_of(long)) == state(mm_of(twin))


@pytest.mark.parametrize("make", [one_vma, many_vmas])
def test_which_pages_are_in_memory(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, make: Callable[[MmStruct, Client], None]
) -> None:
    monkeypatch.setattr(mincore, "_AT_ONCE", PMD_SIZE // 2)
    long, twin = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    for who in (long, twin):
        make(mm_of(who), who)
    (reply,), served = finish(begun(long, Nr.MINCORE, BASE, LENGTH, 0), twin)
    assert (reply.ret, reply.data) == (0, do_mincore(mm_of(twin), BASE, LENGTH, MAX_REPLY))
    assert served >= 5


@pytest.mark.parametrize("make", [one_vma, many_vmas])
def test_all_memory_locked_and_unlocked(kernel: Kernel, make: Callable[[MmStruct, Client], None]) -> None:
    long, twin = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    for who in (long, twin):
        make(mm_of(who), who)
    for flags in (Mcl.FUTURE | Mcl.CURRENT | Mcl.ONFAULT, 0):
        run_at_once(mlockall_flags_in_pieces(mm_of(twin), int(flags)))
        nr = Nr.MLOCKALL if flags else Nr.MUNLOCKALL
        (reply,), served = finish(begun(long, nr, int(flags)), twin)
        assert reply.ret == 0
        assert served >= 5
        assert (mm_of(long).def_flags, *state(mm_of(long))) == (mm_of(twin).def_flags, *state(mm_of(twin)))


def test_what_is_mapped_there_meanwhile_may_go_and_nothing_beside_it(kernel: Kernel) -> None:
    """Others of the process are quicker than the call that removes the range."""
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    mm = mm_of(long)
    one_vma(mm, long)
    batch = begun(long, Nr.MUNMAP, BASE, LENGTH)
    do_mprotect(mm, BASE + LENGTH // 2, LENGTH // 2 + PMD_SIZE, READ | 4)
    (reply,), _ = finish(batch, other)
    assert reply.ret == 0
    assert [(vma.start, vma.end) for vma in mm.vmas if vma.start < BASE + 2 * LENGTH and vma.end > BASE - LENGTH] == [
        (BASE - PMD_SIZE, BASE), (BASE + LENGTH, BASE + LENGTH + PMD_SIZE)
    ]  # fmt: skip


def test_who_unmaps_may_die_meanwhile(kernel: Kernel) -> None:
    long = attached(kernel, os.getpid())
    one_vma(mm_of(long), long)
    batch = begun(long, Nr.MUNMAP, BASE, LENGTH)
    assert long.thread is not None
    kernel.process_died(long.thread.process)
    batch.close()


def test_a_range_that_nobody_can_unmap_stays_whole(kernel: Kernel) -> None:
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    mm = mm_of(long)
    one_vma(mm, long)
    mm.sysctl.max_map_count = mm.map_count
    before = state(mm)
    assert call(long, Nr.MUNMAP, BASE + PMD_SIZE, LENGTH - 2 * PMD_SIZE).ret == -errno.ENOMEM
    assert state(mm) == before
    assert call(other, Nr.GETPID).ret == os.getppid()


def test_others_are_served_while_pages_are_written_to_a_file(kernel: Kernel, tmp_path: Path) -> None:
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    mm = mm_of(long)
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * PAGE_SIZE))
    assert long.call is not None
    with path.open("r+b") as file:
        long.call.fds.append(os.dup(file.fileno()))
    vaddr = call(long, Nr.MMAP, 0, 64 * PAGE_SIZE, RW, Map.SHARED.value, 0, 0).ret
    assert vaddr > 0
    for number in range(64):
        assert call(long, Nr.STORE, vaddr + number * PAGE_SIZE, 1, data=b"x").ret == 1
    (reply,), served = finish(begun(long, Nr.MSYNC, vaddr, 64 * PAGE_SIZE, 4), other)
    assert (reply.ret, mm.map_count > 0) == (0, True)
    assert served >= 60
    assert path.read_bytes()[::PAGE_SIZE] == b"x" * 64


def test_a_few_mib_of_a_file_are_many(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its pages may have to be written to the file."""
    monkeypatch.setattr(pace, "_AT_ONCE", 64 * PMD_SIZE)
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    length = 4 * PMD_SIZE
    assert long.call is not None
    fd = os.memfd_create("file")
    os.ftruncate(fd, length)
    long.call.fds.append(fd)
    vaddr = call(long, Nr.MMAP, 0, length, RW, Map.SHARED.value, 0, 0).ret
    for number in range(8):
        assert call(long, Nr.STORE, vaddr + number * PAGE_SIZE, 1, data=b"x").ret == 1
    (reply,), served = finish(begun(long, Nr.MUNMAP, vaddr, length), other)
    assert reply.ret == 0
    assert served >= 8


def test_the_pages_of_a_file_are_unmapped_in_shorter_pieces(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_AT_ONCE", 64 * PMD_SIZE)
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    length = 24 * PMD_SIZE
    fd = os.memfd_create("file")
    os.ftruncate(fd, length)
    assert long.call is not None
    long.call.fds.append(os.dup(fd))
    vaddr = call(long, Nr.MMAP, 0, length, RW, Map.SHARED.value, 0, 0).ret
    for table in range(24):
        assert call(long, Nr.STORE, vaddr + table * PMD_SIZE, 1, data=b"x").ret == 1
    batch = begun(long, Nr.MUNMAP, vaddr, length)
    # The first piece wrote a page, and unmapped no more than some tables.
    assert mm_of(long).rss.counts[Rss.SHMEM] >= 16
    (reply,), _ = finish(batch, other)
    assert reply.ret == 0
    assert os.pread(fd, length, 0)[::PMD_SIZE] == b"x" * 24
    os.close(fd)


@contextlib.contextmanager
def another_thread() -> Iterator[int]:
    """Yield the tid of a thread of this process that lives as long."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    try:
        yield thread.native_id or 0
    finally:
        over.set()
        thread.join()


def copy_of(kernel: Kernel, who: Client) -> MmStruct:
    assert who.thread is not None
    (copy,) = kernel.table.copies_of(who.thread.process)
    return copy


@pytest.mark.parametrize("make", [one_vma, many_vmas])
def test_a_fork(kernel: Kernel, make: Callable[[MmStruct, Client], None]) -> None:
    long, twin = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    for who in (long, twin):
        make(mm_of(who), who)
    at_once = dup_mmap(mm_of(twin))
    expected = state(at_once)
    exit_mmap(at_once)
    batch = begun(long, Nr.CLONE)
    with another_thread() as tid:
        thread = kernel.attach(long.sender, 1, tid, 0)
        assert kernel.table.mmap_locks.keeps_waiting(thread)
        (reply,), served = finish(batch, twin)
        assert not kernel.table.mmap_locks.keeps_waiting(thread)
    assert reply.ret > 0
    assert served >= 5
    assert state(copy_of(kernel, long)) == expected
    assert state(mm_of(long)) == state(mm_of(twin))


def test_who_forks_may_die_meanwhile(kernel: Kernel) -> None:
    long = attached(kernel, os.getpid())
    one_vma(mm_of(long), long)
    batch = begun(long, Nr.CLONE)
    assert long.thread is not None
    kernel.process_died(long.thread.process)
    batch.close()


def test_a_fork_that_is_given_up_leaves_nothing(kernel: Kernel) -> None:
    long = attached(kernel, os.getpid())
    one_vma(mm_of(long), long)
    free = kernel.frames.free_pages
    batch = begun(long, Nr.CLONE)
    assert kernel.frames.free_pages < free
    batch.close()
    assert kernel.frames.free_pages == free
    assert long.thread is not None
    assert kernel.table.copies_of(long.thread.process) == []


def with_shared_memory(kernel: Kernel, pages: int) -> tuple[Client, Client]:
    """Return two processes; the first, and its copy, map so many pages of shared anonymous memory at BASE, written."""
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    flags = (Map.SHARED | Map.ANONYMOUS | Map.FIXED).value
    assert call(long, Nr.MMAP, BASE, pages * PAGE_SIZE, RW, flags, NO_FD, 0).ret == BASE
    assert call(long, Nr.TOUCH, BASE, pages * PAGE_SIZE, 1).ret == pages
    assert call(long, Nr.STORE, BASE, 1, data=b"x").ret == 1
    return long, other


def test_a_hole_in_shared_memory(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile a page that has not gone yet is read again where it was unmapped, and one that has is written to."""
    monkeypatch.setattr(truncate, "_DROPPED_AT_ONCE", 8)
    monkeypatch.setattr(truncate, "_REMOVED_AT_ONCE", 4)
    pages = 64
    long, other = with_shared_memory(kernel, pages)
    assert call(long, Nr.CLONE).ret > 0
    before = kernel.frames.free_pages
    batch = begun(long, Nr.MADVISE, BASE, pages * PAGE_SIZE, Madv.REMOVE)
    assert long.thread is not None
    last = Call(kernel, long.thread, (BASE + (pages - 1) * PAGE_SIZE, 1, 1, 0, 0, 0), b"", [])
    first = Call(kernel, long.thread, (BASE, 1, 0, 0, 0, 0), b"y", [])
    assert run(last, int(Nr.TOUCH)) == 1
    assert run(first, int(Nr.STORE)) == 1
    (reply,), served = finish(batch, other)
    assert reply.ret == 0
    assert served >= 8
    assert call(long, Nr.LOAD, BASE + PAGE_SIZE, 8).data == bytes(8)
    assert call(long, Nr.LOAD, BASE, 1).data in (b"y", b"\0")
    assert kernel.frames.free_pages >= before + pages - 3


def test_huge_pages_are_made_in_pieces(kernel: Kernel) -> None:
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    length = 4 * PMD_SIZE
    assert call(long, Nr.MMAP, BASE, length, RW, ANON, NO_FD, 0).ret == BASE
    assert call(long, Nr.MADVISE, BASE, length, Madv.NOHUGEPAGE).ret == 0
    for table in range(4):
        assert call(long, Nr.STORE, BASE + table * PMD_SIZE, 1, data=b"x").ret == 1
    assert call(long, Nr.MADVISE, BASE, length, Madv.HUGEPAGE).ret == 0
    (reply,), served = finish(begun(long, Nr.MADVISE, BASE, length, Madv.COLLAPSE), other)
    assert reply.ret == 0
    assert served >= 2
    assert all(mm_of(long).page_table.find_huge_pmd(BASE + table * PMD_SIZE) is not None for table in range(4))


@pytest.mark.parametrize("way", ["unmap", "refuse"])
def test_what_is_to_be_huge_goes_meanwhile(kernel: Kernel, way: str) -> None:
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    length = 4 * PMD_SIZE
    assert call(long, Nr.MMAP, BASE, length, RW, ANON, NO_FD, 0).ret == BASE
    for table in range(4):
        assert call(long, Nr.STORE, BASE + table * PMD_SIZE, 1, data=b"x").ret == 1
    batch = begun(long, Nr.MADVISE, BASE, length, Madv.COLLAPSE)
    half = BASE + length // 2
    if way == "unmap":
        do_munmap(mm_of(long), half, length // 2)
    else:
        do_madvise(mm_of(long), half, length // 2, Madv.NOHUGEPAGE)
    (reply,), _ = finish(batch, other)
    assert reply.ret == -errno.EINVAL
    assert mm_of(long).page_table.find_huge_pmd(half) is None
