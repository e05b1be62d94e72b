"""fork: private pages are shared until somebody writes, and who writes last keeps the page without a copy."""

from __future__ import annotations

import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_RW
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.frames.frames import PG_ANON_EXCLUSIVE, ZERO_PFN
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.vm_flags import VM_DONTCOPY, VM_LOCKED, VM_WIPEONFORK
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import Rlimit
from tests.support.machine import (
    ANON,
    BASE,
    NONE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    entry,
    layout,
    load,
    mmap,
    page,
    pfn_of,
    store,
    vma_at,
)


def test_both_see_the_page_and_neither_may_write_it(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"before")
    child = machine.fork(mm)
    pfn = pfn_of(mm, BASE)
    assert pfn_of(child, BASE) == pfn
    assert not (entry(mm, BASE) | entry(child, BASE)) & PTE_RW
    assert (machine.frames.refcount[pfn], machine.frames.mapcount[pfn]) == (2, 2)
    assert not machine.frames.flags[pfn] & PG_ANON_EXCLUSIVE
    assert load(child, BASE, 6) == b"before"


@pytest.mark.parametrize("pages", [1, 20], ids=["entry by entry", "a run"])
def test_the_child_has_accessed_nothing(machine: Machine, mm: MmStruct, pages: int) -> None:
    """Source: Linux v6.8 mm/memory.c:copy_present_pte(), pte_mkold()."""
    mmap(mm, pages, at=BASE)
    store(mm, BASE, b"data")
    child = machine.fork(mm)
    assert entry(mm, BASE) & (PTE_ACCESSED | PTE_DIRTY) == PTE_ACCESSED | PTE_DIRTY
    assert entry(child, BASE) & (PTE_ACCESSED | PTE_DIRTY) == PTE_DIRTY


def test_vmas_that_are_copied_together(machine: Machine, mm: MmStruct) -> None:
    """Small VMAs of one leaf table, with a hole, one without pages of its own, and one of a file, twice mapped."""
    file, _ = machine.new_file(b"file" * 1024 * 4)
    for place, prot in ((0, RW), (1, READ), (2, RW), (5, RW)):
        mmap(mm, 1, RW, at=page(place))
        store(mm, page(place), b"%d" % place)
        do_mprotect(mm, page(place), PAGE_SIZE, prot)
    mmap(mm, 1, READ, at=page(6))
    load(mm, page(6))
    for place in (3, 8):
        mmap(mm, 4 if place == 8 else 2, RW, PRIVATE, at=page(place), file=file)
        load(mm, page(place))
        store(mm, page(place + 1), b"own")
    child = machine.fork(mm)
    machine.check()
    assert layout(child) == layout(mm)
    for place in (0, 1, 2, 5):
        assert pfn_of(child, page(place)) == pfn_of(mm, page(place))
        assert load(child, page(place), 1) == b"%d" % place
    assert not entry(child, page(6))
    for place in (3, 8):
        assert pfn_of(child, page(place + 1)) == pfn_of(mm, page(place + 1))
        assert load(child, page(place + 1), 3) == b"own"
    machine.exit(child)
    machine.check()
    assert load(mm, page(5), 1) == b"5"


def test_a_vma_that_stays_behind_between_two_that_are_copied(machine: Machine, mm: MmStruct) -> None:
    """All three are in one leaf table; nothing of the one in the middle goes to the child."""
    mmap(mm, 3, RW, at=page(0))
    for place in range(3):
        store(mm, page(place), b"%d" % place)
    do_madvise(mm, page(1), PAGE_SIZE, Madv.DONTFORK)
    child = machine.fork(mm)
    machine.check()
    assert entry(child, page(1)) == 0
    assert machine.frames.flags[pfn_of(mm, page(1))] & PG_ANON_EXCLUSIVE
    assert [load(child, page(place), 1) for place in (0, 2)] == [b"0", b"2"]


def test_a_locked_vma_among_others_ends_with_them(machine: Machine, mm: MmStruct) -> None:
    for place in range(4):
        mmap(mm, 1, RW, ANON | Map.LOCKED.value * (place == 2), at=page(place), privileged=True)
        store(mm, page(place), b"x")
        do_mprotect(mm, page(place), PAGE_SIZE, READ if place % 2 else RW)
    machine.exit(mm)
    machine.check()
    assert machine.frames.free_pages == machine.frames.total_pages


@pytest.mark.parametrize("child_first", [False, True])
def test_the_first_writer_copies_and_the_second_reuses(machine: Machine, mm: MmStruct, child_first: bool) -> None:
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"before")
    child = machine.fork(mm)
    pfn = pfn_of(mm, BASE)
    first, second = (child, mm) if child_first else (mm, child)
    store(first, BASE, b"first.")
    assert pfn_of(first, BASE) != pfn
    assert load(second, BASE, 6) == b"before"
    machine.check()
    store(second, BASE, b"second")
    assert pfn_of(second, BASE) == pfn
    assert (load(first, BASE, 6), load(second, BASE, 6)) == (b"first.", b"second")
    assert machine.frames.mapping[pfn] == getattr(vma_at(second, BASE).anon_vma, "number", None)


def test_the_sole_owner_left_reuses(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"x")
    pfn = pfn_of(mm, BASE)
    machine.exit(machine.fork(mm))
    assert not entry(mm, BASE) & PTE_RW
    store(mm, BASE, b"y")
    assert pfn_of(mm, BASE) == pfn
    assert machine.frames.flags[pfn] & PG_ANON_EXCLUSIVE


def test_three_generations(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 2, at=BASE)
    store(mm, page(0), b"a")
    child = machine.fork(mm)
    store(child, page(1), b"b")
    grandchild = machine.fork(child)
    machine.exit(child)
    machine.check()
    store(grandchild, page(0), b"c")
    store(grandchild, page(1), b"d")
    assert [load(mm, page(n)) + load(grandchild, page(n)) for n in (0, 1)] == [b"ac", b"\0d"]
    machine.exit(mm)
    machine.check()
    assert load(grandchild, page(0)) == b"c"


def test_many_forks_of_one_parent_do_not_lengthen_chains(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"x")
    for _ in range(5):
        child = machine.fork(mm)
        store(child, BASE, b"y")
        assert len(vma_at(child, BASE).anon_vma_chain) == 2
        machine.exit(child)
    line = mm
    for _ in range(6):
        line = machine.fork(line)
        store(line, BASE, b"z")
        machine.check()
        for each in machine.mms[:-1]:
            machine.exit(each)
    assert len(vma_at(line, BASE).anon_vma_chain) <= 3


def test_the_zero_page_stays_the_zero_page(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    mmap(mm, 1, at=page(1))
    store(mm, page(1), b"x")
    load(mm, BASE)
    child = machine.fork(mm)
    assert pfn_of(child, BASE) == ZERO_PFN
    store(child, BASE, b"x")
    assert load(mm, BASE) == b"\0"


def test_pages_without_rights_come_along(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"x")
    do_mprotect(mm, BASE, PAGE_SIZE, NONE)
    child = machine.fork(mm)
    do_mprotect(child, BASE, PAGE_SIZE, RW)
    assert load(child, BASE) == b"x"
    store(child, BASE, b"y")
    do_mprotect(mm, BASE, PAGE_SIZE, READ)
    assert load(mm, BASE) == b"x"


def test_shared_memory_is_one(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 2, RW, SHARED_ANON, at=BASE)
    store(mm, page(0), b"before")
    child = machine.fork(mm)
    assert not entry(child, page(0))
    store(child, page(1), b"child")
    store(mm, page(0), b"parent")
    assert (load(child, page(0), 6), load(mm, page(1), 5)) == (b"parent", b"child")
    machine.exit(mm)
    assert load(child, page(0), 6) == b"parent"


def test_file_pages_are_faulted_in_again_and_copies_are_not_lost(machine: Machine, mm: MmStruct) -> None:
    file, _ = machine.new_file(b"f" * 4 * PAGE_SIZE)
    mmap(mm, 2, RW, PRIVATE, at=page(0), file=file)
    mmap(mm, 2, RW, SHARED, at=page(4), file=file, pgoff=2)
    load(mm, page(0))
    store(mm, page(1), b"mine")
    store(mm, page(4), b"ours")
    child = machine.fork(mm)
    assert [number for number in range(6) if entry(child, page(number))] == [0, 1]
    assert not entry(child, page(0)) & PTE_DIRTY
    assert load(child, page(1), 5) == b"minef"
    assert load(child, page(4), 5) == b"oursf"
    store(child, page(1), b"hers")
    assert load(mm, page(1), 5) == b"minef"
    assert mm.rss.counts[:2] == [2, 1]


def test_flags_that_a_child_does_not_get(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=page(0))
    mmap(mm, 1, at=page(2))
    mmap(mm, 1, RW, ANON | Map.LOCKED.value, at=page(4))
    for number in (0, 2):
        store(mm, page(number), b"x")
    mm.set_vma_flags(vma_at(mm, page(0)), vma_at(mm, page(0)).vm_flags | VM_DONTCOPY)
    mm.set_vma_flags(vma_at(mm, page(2)), vma_at(mm, page(2)).vm_flags | VM_WIPEONFORK)
    child = machine.fork(mm)
    assert layout(child) == [(2, 1, RW), (4, 1, RW)]
    assert load(child, page(2)) == b"\0"
    assert not vma_at(child, page(4)).vm_flags & VM_LOCKED
    assert (mm.locked_vm, child.locked_vm) == (1, 0)
    store(child, page(2), b"y")
    assert load(mm, page(2)) == b"x"


def test_the_child_has_its_own_limits_and_the_same_places(machine: Machine, mm: MmStruct) -> None:
    mm.start_brk = mm.brk = BASE
    mm.exe_path = "/bin/true"
    child = machine.fork(mm)
    child.rlimits.soft[Rlimit.STACK] = 1
    assert mm.rlimits.soft[Rlimit.STACK] != 1
    assert (child.start_brk, child.brk, child.exe_path) == (BASE, BASE, "/bin/true")


def test_munmap_in_one_leaves_the_other(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 40, RW, ANON | Map.POPULATE.value, at=BASE)
    child = machine.fork(mm)
    do_munmap(mm, page(0), 30 * PAGE_SIZE)
    machine.check()
    assert (mm.rss.counts[1], child.rss.counts[1]) == (10, 40)
    do_munmap(child, page(20), 20 * PAGE_SIZE)
    assert machine.frames.mapcount.max() == 1


@pytest.mark.parametrize("number", range(8))
def test_a_fork_without_frames_leaves_no_child(machine: Machine, mm: MmStruct, number: int) -> None:
    mmap(mm, 1, at=BASE)
    mmap(mm, 1, at=BASE + (1 << 30))
    store(mm, BASE, b"x")
    store(mm, BASE + (1 << 30), b"y")
    free = machine.frames.free_pages
    with machine.failing_allocation(number) as failed:
        try:
            machine.fork(mm)
        except SysError:
            assert machine.frames.free_pages == free
        else:
            assert not failed
    machine.check()
    store(mm, BASE, b"z")
    assert load(mm, BASE + (1 << 30)) == b"y"
