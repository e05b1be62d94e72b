"""System calls that Linux lets go of mmap_lock in: others are served between two pieces of one, and may do anything."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from signal import SIGKILL

import pytest

from kerneld.mm.space import pace
from kerneld.server.batch import Batch
from kerneld.server.reply import Outcome
from kerneld.syscalls.dispatch import dispatch
from kerneld.syscalls.kernel import Kernel
from shared import wire
from shared.uapi.mman import Madv, Map, Mcl, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.in_process import Client
from tests.support.long_requests import attached, begun, call, finish, kernel_in_pieces
from tests.support.programs import iovecs

MIB = 1 << 20
LENGTH = 64 * MIB
"""More than there is RAM: what is read there is the zero page."""
READ, RW = Prot.READ.value, Prot.READ.value | Prot.WRITE.value
ANON = (Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE).value
POPULATE = ANON | Map.POPULATE.value
NO_FD = (1 << 64) - 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Every slice, and every piece, is over at once."""
    yield from kernel_in_pieces(monkeypatch)


@pytest.fixture
def long(kernel: Kernel) -> Client:
    """Who makes the call."""
    return attached(kernel, os.getpid())


@pytest.fixture
def other(kernel: Kernel) -> Client:
    """Who is served meanwhile."""
    return attached(kernel, os.getppid())


def mmap(who: Client, length: int = LENGTH, prot: int = READ, flags: int = ANON) -> int:
    vaddr = call(who, Nr.MMAP, 0, length, prot, flags, NO_FD, 0).ret
    assert vaddr > 0
    return vaddr


def rss_pages(who: Client) -> int:
    assert who.thread is not None
    return who.thread.process.live_mm.rss.resident_pages


def mapped_zero_pages(who: Client, vaddr: int, length: int = LENGTH) -> int:
    assert who.thread is not None
    return int((who.thread.process.live_mm.page_table.walk.entries(vaddr, vaddr + length) != 0).sum())


def test_a_mapping_that_is_populated(long: Client, other: Client) -> None:
    (reply,), served = finish(begun(long, Nr.MMAP, 0, LENGTH, READ, POPULATE, NO_FD, 0), other)
    assert mapped_zero_pages(long, reply.ret) == LENGTH // PAGE_SIZE
    assert served >= 30


@pytest.mark.parametrize(
    ("nr", "args"),
    [(Nr.MLOCK, ()), (Nr.MLOCK2, (0,)), (Nr.MADVISE, (Madv.POPULATE_READ,)), (Nr.MLOCKALL, None)],
)
def test_memory_that_is_locked_or_populated(long: Client, other: Client, nr: Nr, args: tuple[int, ...] | None) -> None:
    vaddr = mmap(long)
    words = (Mcl.CURRENT.value,) if args is None else (vaddr, LENGTH, *args)
    (reply,), served = finish(begun(long, nr, *words), other)
    assert reply.ret == 0
    assert mapped_zero_pages(long, vaddr) == LENGTH // PAGE_SIZE
    assert served >= 30


def test_a_locked_heap_that_grows(long: Client, other: Client) -> None:
    assert call(long, Nr.MLOCKALL, Mcl.FUTURE.value).ret == 0
    brk = call(long, Nr.BRK, 0).ret
    before = rss_pages(long)
    (reply,), served = finish(begun(long, Nr.BRK, brk + 12 * MIB), other)
    assert reply.ret == brk + 12 * MIB
    assert rss_pages(long) - before == 12 * MIB // PAGE_SIZE
    assert served >= 5


@pytest.mark.parametrize(
    ("nr", "args", "ret"),
    [(Nr.MLOCK, (), 0), (Nr.MADVISE, (Madv.POPULATE_READ,), -errno.ENOMEM), (Nr.MADVISE, (Madv.POPULATE_WRITE,), -22)],
)
def test_memory_that_goes_meanwhile(
    long: Client, other: Client, kernel: Kernel, nr: Nr, args: tuple[int, ...], ret: int
) -> None:
    """Linux: __mm_populate() finds no VMA and is content, madvise_populate() is not; nor with rights that have gone."""
    is_write = args == (Madv.POPULATE_WRITE,)
    length = 8 * MIB if is_write else LENGTH
    vaddr = mmap(long, length, RW if is_write else READ)
    batch = begun(long, nr, vaddr, length, *args)
    assert long.thread is not None
    half = vaddr + length // 2
    words = (half, length // 2, READ if is_write else 0, 0, 0, 0)
    change = wire.Request(int(Nr.MPROTECT if is_write else Nr.MUNMAP), words, b"")
    assert dispatch(kernel, long.thread, change, []).ret == 0
    (reply,), _ = finish(batch, other)
    assert reply.ret == ret
    assert mapped_zero_pages(long, vaddr, length) == length // 2 // PAGE_SIZE


def test_who_populates_more_than_there_is_is_killed(long: Client, other: Client) -> None:
    (reply,), _ = finish(begun(long, Nr.MMAP, 0, LENGTH, RW, POPULATE, NO_FD, 0), other)
    assert reply.signo == SIGKILL


@pytest.mark.parametrize(("nr", "args"), [(Nr.MADVISE, (Madv.POPULATE_WRITE,)), (Nr.MLOCK, ())])
def test_a_page_table_whose_pages_come_one_by_one(
    long: Client, other: Client, monkeypatch: pytest.MonkeyPatch, nr: Nr, args: tuple[int, ...]
) -> None:
    """Each may have to wait for reclaim: sixteen are enough for a piece that is late."""
    vaddr = mmap(long, 4 * MIB, RW)
    assert call(long, Nr.MADVISE, vaddr, 4 * MIB, Madv.POPULATE_READ).ret == 0
    monkeypatch.setattr(pace, "_LATE_SECONDS", -1.0)
    (reply,), served = finish(begun(long, nr, vaddr, 4 * MIB, *args), other)
    assert reply.ret == 0
    assert served >= 4 * MIB // PAGE_SIZE // 16 - 2
    assert rss_pages(long) >= 4 * MIB // PAGE_SIZE


def test_who_populates_may_die_meanwhile(long: Client, kernel: Kernel) -> None:
    batch = begun(long, Nr.MMAP, 0, LENGTH, READ, POPULATE, NO_FD, 0)
    assert long.thread is not None
    kernel.process_died(long.thread.process)
    batch.close()


def copy(reader: Client, remote: Client, nr: Nr, near: int, far: int) -> Batch:
    """Begin to copy LENGTH bytes between a MiB of the reader's, again and again, and memory of the other's."""
    assert remote.thread is not None
    pieces = [(near, MIB)] * (LENGTH // MIB)
    data = iovecs(*pieces) + iovecs((far, LENGTH))
    return begun(reader, nr, remote.thread.process.pid, 1, len(pieces), 1, 1, 0, data=data)


def test_memory_that_is_copied(long: Client, other: Client) -> None:
    near, far = mmap(long, MIB, RW), mmap(other, LENGTH, RW)
    call(other, Nr.STORE, far + LENGTH - MIB, 5, data=b"hello")
    (reply,), served = finish(copy(long, other, Nr.PROCESS_VM_READV, near, far), other)
    assert reply.ret == LENGTH
    assert call(long, Nr.LOAD, near, 5).data == b"hello"
    assert served >= 10


def test_a_process_that_is_written_to_may_die_meanwhile(long: Client, other: Client, kernel: Kernel) -> None:
    near, far = mmap(long, MIB, RW), mmap(other, LENGTH, RW)
    batch = copy(long, other, Nr.PROCESS_VM_WRITEV, near, far)
    assert batch.run(0.0) is None
    assert other.thread is not None
    kernel.process_died(other.thread.process)
    outcome: Outcome | None = None
    while outcome is None:
        outcome = batch.run(0.0)
    (reply,) = wire.unpack_replies(outcome.answer)
    assert 0 < reply.ret < LENGTH
    assert reply.ret % MIB == 0


def test_who_copies_may_die_meanwhile(long: Client, other: Client, kernel: Kernel) -> None:
    near, far = mmap(long, MIB, RW), mmap(other, LENGTH, RW)
    batch = copy(long, other, Nr.PROCESS_VM_READV, near, far)
    assert long.thread is not None
    kernel.process_died(long.thread.process)
    batch.close()
    assert call(other, Nr.MUNMAP, far, LENGTH).ret == 0
