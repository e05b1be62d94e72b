"""Faults that a call takes in the kernel count for the process that makes it, in min_flt and in pgfault.

Source: Linux v6.8 mm/memory.c:mm_account_fault().
"""

from __future__ import annotations

import os

import pytest

from shared.uapi.mman import Madv, Map, Mcl, Mremap
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import BASE, USER, Program, World, iovecs

PAGES = 5
LENGTH = PAGES * PAGE_SIZE


@pytest.mark.parametrize(
    ("nr", "args"),
    [
        (Nr.MADVISE, (BASE, LENGTH, Madv.POPULATE_READ)),
        (Nr.MADVISE, (BASE, LENGTH, Madv.POPULATE_WRITE)),
        (Nr.MLOCK, (BASE, LENGTH)),
    ],
)
def test_each_page_that_is_populated_is_a_fault_of_the_caller(program: Program, nr: Nr, args: tuple[int, ...]) -> None:
    program.mmap(PAGES, at=BASE)
    before = program.process.min_flt
    assert program.call(nr, *args) == 0
    assert program.process.min_flt - before == PAGES
    assert program.call(nr, *args) == 0
    assert program.process.min_flt - before == PAGES


def test_memory_that_is_mapped_populated(program: Program) -> None:
    before = program.process.min_flt
    flags = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED | Map.POPULATE
    assert program.call(Nr.MMAP, BASE, LENGTH, 3, flags, (1 << 64) - 1, 0) == BASE
    assert program.process.min_flt - before == PAGES


def test_locked_memory_that_grows(program: Program) -> None:
    program.mmap(1, at=BASE)
    assert program.call(Nr.MLOCK, BASE, PAGE_SIZE) == 0
    before = program.process.min_flt
    assert program.call(Nr.MREMAP, BASE, PAGE_SIZE, LENGTH, Mremap.MAYMOVE, 0) > 0
    assert program.process.min_flt - before == PAGES - 1


def test_a_copy_from_anothers_memory_takes_the_callers_faults(program: Program, world: World) -> None:
    other = world.attach(USER)
    for each in (program, other):
        each.mmap(PAGES, at=BASE)
    before, theirs = program.process.min_flt, other.process.min_flt
    data = iovecs((BASE, LENGTH)) * 2
    assert program.call(Nr.PROCESS_VM_READV, other.pid, BASE, 1, BASE, 1, 0, data=data) == LENGTH
    # The pages there are read, and the pages here written.
    assert program.process.min_flt - before == 2 * PAGES
    assert other.process.min_flt == theirs


def test_calls_that_fault_nothing_in_count_nothing(program: Program) -> None:
    program.mmap(PAGES, at=BASE)
    before = program.process.min_flt
    assert program.call(Nr.MLOCKALL, Mcl.CURRENT | Mcl.ONFAULT) == 0
    assert program.call(Nr.MADVISE, BASE, LENGTH, Madv.WILLNEED) in (0, -9)
    assert program.process.min_flt == before


@pytest.mark.parametrize(("size", "failed"), [(PAGES - 1, 2), (0, 1)])
def test_a_fault_that_fails_counts_for_the_machine_alone(
    program: Program, world: World, size: int, failed: int
) -> None:
    """Where pages came before it, it is taken twice: the first time ends their part of the work."""
    with open(os.memfd_create("file"), "wb") as file:
        file.truncate(size * PAGE_SIZE)
        assert program.mmap(PAGES, flags=Map.SHARED, at=BASE, fd=file.fileno()) == BASE
    before, faults = program.process.min_flt, world.kernel.frames.vmstat["pgfault"]
    assert program.call(Nr.MADVISE, BASE, LENGTH, Madv.POPULATE_WRITE) == -14
    assert program.process.min_flt - before == size
    assert world.kernel.frames.vmstat["pgfault"] - faults == failed
