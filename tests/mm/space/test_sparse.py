"""Calls on ranges of which hardly anything has a page table: they go over the rest, however long it is.

A call that comes in pieces ends one after each step here. Of 100 TiB there are 800,000 steps of 64 page tables.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterable

import pytest

from kerneld.mm.calls.fork import dup_in_pieces, new_copy
from kerneld.mm.calls.madvise import do_madvise, madvise_in_pieces
from kerneld.mm.calls.mlock import lock_flags_in_pieces, munlock_in_pieces
from kerneld.mm.calls.mprotect import mprotect_in_pieces
from kerneld.mm.fault import collapse
from kerneld.mm.space.dying import take_down
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import munmap_in_pieces
from kerneld.mm.space.pace import Pace, WaitingSteps
from kerneld.mm.space.pagewalk import PUD_SIZE
from kerneld.mm.space.truncate import truncate_in_pieces
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_LOCKED, VM_LOCKONFAULT
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Vaddr
from tests.support.machine import ANON, BASE, NONE, PRIVATE, RW, SHARED, Machine, errno_of, load, mmap, page, store

PAGES = (100 << 40) >> PAGE_SHIFT
LENGTH = PAGES * PAGE_SIZE
MIDDLE = PAGES // 2
FEW = 1000
NORESERVE = Map.NORESERVE.value


@pytest.fixture(autouse=True)
def _each_step_is_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pace, "is_over", lambda _pace: True)


def steps_of(pieces: Iterable[object]) -> int:
    """How many times others are served; given up where there is no end to be seen."""
    count = 0
    for _ in pieces:
        count += 1
        assert count < FEW
    return count


def fill(mm: MmStruct) -> None:
    """Write a page at either end of the range, and one in the middle."""
    for number in (0, MIDDLE, PAGES - 1):
        store(mm, page(number), b"there")


Call = Callable[[MmStruct], WaitingSteps]
CALLS: dict[str, Call] = {
    "munmap": lambda mm: munmap_in_pieces(mm, BASE, LENGTH),
    "mprotect": lambda mm: mprotect_in_pieces(mm, BASE, LENGTH, NONE),
    "DONTNEED": lambda mm: madvise_in_pieces(mm, BASE, LENGTH, Madv.DONTNEED),
    "FREE": lambda mm: madvise_in_pieces(mm, BASE, LENGTH, Madv.FREE),
    "COLD": lambda mm: madvise_in_pieces(mm, BASE, LENGTH, Madv.COLD),
    "PAGEOUT": lambda mm: madvise_in_pieces(mm, BASE, LENGTH, Madv.PAGEOUT),
    "WILLNEED": lambda mm: madvise_in_pieces(mm, BASE, LENGTH, Madv.WILLNEED),
}


@pytest.mark.parametrize("name", CALLS)
def test_anonymous_memory(mm: MmStruct, name: str) -> None:
    mmap(mm, PAGES, flags=ANON | NORESERVE, at=BASE)
    fill(mm)
    assert 2 < steps_of(CALLS[name](mm)) < FEW


def test_a_fork(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, PAGES, flags=ANON | NORESERVE, at=BASE)
    fill(mm)
    child = new_copy(mm)
    machine.mms.append(child)
    assert 2 < steps_of(dup_in_pieces(mm, child)) < FEW
    assert load(child, page(MIDDLE), 5) == b"there"


def test_collapse(mm: MmStruct, monkeypatch: pytest.MonkeyPatch) -> None:
    mmap(mm, PAGES, flags=ANON | NORESERVE, at=BASE)
    fill(mm)
    tried: list[int] = []

    def try_one(_mm: MmStruct, _vma: Vma, haddr: Vaddr) -> Generator[None, None, bool]:
        assert len(tried) < FEW
        tried.append(haddr)
        yield from ()
        return False

    monkeypatch.setattr(collapse, "_collapse_pmd", try_one)
    assert errno_of(lambda: do_madvise(mm, BASE, LENGTH, Madv.COLLAPSE)) == errno.EINVAL
    assert tried == [BASE]  # It ends at the next leaf table, which is missing.
    tried.clear()
    # Where the tables above are missing too it goes on.
    assert errno_of(lambda: do_madvise(mm, BASE + PUD_SIZE, LENGTH - PUD_SIZE, Madv.COLLAPSE)) == errno.EINVAL
    assert [haddr - BASE >> PAGE_SHIFT for haddr in tried] == [MIDDLE]


def test_locked_memory(mm: MmStruct) -> None:
    mmap(mm, PAGES, flags=ANON | NORESERVE, at=BASE)
    fill(mm)
    lock = lock_flags_in_pieces(mm, BASE, BASE + LENGTH, VM_LOCKED | VM_LOCKONFAULT)
    assert 2 < steps_of(lock) < FEW
    assert mm.locked_vm == PAGES
    assert 2 < steps_of(madvise_in_pieces(mm, BASE, LENGTH, Madv.DONTNEED_LOCKED)) < FEW
    fill(mm)
    assert 2 < steps_of(munlock_in_pieces(mm, BASE, LENGTH)) < FEW


def test_an_end(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, PAGES, flags=ANON | NORESERVE, at=BASE)
    fill(mm)
    machine.mms.remove(mm)
    assert 2 < steps_of(take_down(mm)) < FEW


@pytest.mark.parametrize("flags", [SHARED, PRIVATE | NORESERVE])
def test_files(machine: Machine, mm: MmStruct, flags: int) -> None:
    file, backing = machine.new_file(bytes(2 * PAGE_SIZE))
    mmap(mm, PAGES, RW, flags, at=BASE, file=file)
    store(mm, BASE, b"there")
    assert 0 < steps_of(madvise_in_pieces(mm, BASE, LENGTH, Madv.WILLNEED)) < FEW
    backing.data = bytearray(PAGE_SIZE)
    assert 1 < steps_of(truncate_in_pieces(file.mapping, PAGE_SIZE)) < FEW
    assert load(mm, BASE, 5) == b"there"
    assert 1 < steps_of(munmap_in_pieces(mm, BASE, LENGTH)) < FEW
