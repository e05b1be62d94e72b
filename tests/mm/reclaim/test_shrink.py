"""A batch of frames under reclaim: each row of the table in `kerneld.mm.reclaim.shrink`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_PRESENT
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.frames.frames import PG_ACTIVE, PG_DIRTY, PG_REFERENCED, PG_SWAPBACKED, PG_UNEVICTABLE
from kerneld.mm.frames.lru import isolate
from kerneld.mm.reclaim.shrink import shrink_folio_list
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE
from tests.mm.reclaim.old import make_old
from tests.support.machine import (
    ANON,
    BASE,
    EXEC,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    access,
    checked,
    entry,
    load,
    mmap,
    page,
    pfn_of,
    store,
    vma_at,
)


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


@pytest.fixture
def pfn(mm: MmStruct) -> int:
    """The frame of a page of anonymous memory that has been written to, and not used since."""
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"x")
    make_old(mm)
    return pfn_of(mm, BASE)


def shrink(machine: Machine, *pfns: int, ignore_references: bool = False, may_write: bool = True) -> int:
    batch = np.array(pfns)
    isolate(machine.frames, batch)
    return shrink_folio_list(machine.frames, batch, ignore_references=ignore_references, may_write=may_write)


def flag(machine: Machine, pfn: int, bit: int) -> bool:
    return machine.frames.flags_at[pfn] & bit != 0


def test_what_nobody_has_used_goes_to_the_swap_file_and_comes_back(machine: Machine, mm: MmStruct, pfn: int) -> None:
    assert shrink(machine, pfn) == 1
    assert entry(mm, BASE) & PTE_PRESENT == 0
    assert entry(mm, BASE) != 0
    assert machine.frames.vmstat["pswpout"] == 1
    assert load(mm, BASE) == b"x"


def test_used_once_it_stays_for_another_round_and_used_twice_it_is_active(
    machine: Machine, mm: MmStruct, pfn: int
) -> None:
    load(mm, BASE)
    assert shrink(machine, pfn) == 0
    assert (flag(machine, pfn, PG_REFERENCED), flag(machine, pfn, PG_ACTIVE)) == (True, False)
    load(mm, BASE)
    assert shrink(machine, pfn) == 0
    assert flag(machine, pfn, PG_ACTIVE)


def test_a_round_without_use_takes_the_mark_away(machine: Machine, mm: MmStruct, pfn: int) -> None:
    load(mm, BASE)
    shrink(machine, pfn)
    assert shrink(machine, pfn) == 1


def test_used_by_two_processes_it_is_active_at_once(machine: Machine, mm: MmStruct, pfn: int) -> None:
    child = machine.fork(mm)
    for each in (mm, child):
        load(each, BASE)
    assert shrink(machine, pfn) == 0
    assert flag(machine, pfn, PG_ACTIVE)


def test_shared_by_two_processes_one_slot_is_named_twice(machine: Machine, mm: MmStruct, pfn: int) -> None:
    child = machine.fork(mm)
    for each in (mm, child):
        make_old(each)
    assert shrink(machine, pfn) == 1
    assert entry(mm, BASE) == entry(child, BASE) != 0
    assert sorted(machine.frames.swap.count.tolist())[-1] == 2
    store(child, BASE, b"y")
    assert (load(mm, BASE), load(child, BASE)) == (b"x", b"y")


def test_who_ignores_references_takes_what_is_in_use(machine: Machine, mm: MmStruct, pfn: int) -> None:
    load(mm, BASE)
    assert shrink(machine, pfn, ignore_references=True) == 1


def test_what_a_call_holds_stays_and_is_active(machine: Machine, mm: MmStruct, pfn: int) -> None:
    machine.frames.get_page(pfn)
    assert shrink(machine, pfn) == 0
    assert flag(machine, pfn, PG_ACTIVE)
    machine.frames.put_page(pfn)
    assert load(mm, BASE) == b"x"


def test_a_locked_page_leaves_the_lists(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, flags=ANON | Map.LOCKED.value, at=BASE)
    pfn = pfn_of(mm, BASE)
    machine.frames.flags_at[pfn] &= ~PG_UNEVICTABLE
    assert shrink(machine, pfn) == 0
    assert flag(machine, pfn, PG_UNEVICTABLE)


def test_without_a_slot_it_stays_and_is_active(machine: Machine, mm: MmStruct, pfn: int) -> None:
    swap = machine.frames.swap
    taken = swap.get_swap_pages(swap.nr_free)
    swap.swap_duplicate(taken)
    assert shrink(machine, pfn) == 0
    assert flag(machine, pfn, PG_ACTIVE)
    swap.swap_free_many(taken)


@pytest.mark.parametrize("written", [False, True])
def test_lazily_freed_memory_goes_unless_somebody_has_written(
    machine: Machine, mm: MmStruct, pfn: int, *, written: bool
) -> None:
    do_madvise(mm, BASE, PAGE_SIZE, Madv.FREE)
    if written:
        store(mm, BASE, b"y")
        make_old(mm)
    assert shrink(machine, pfn) == (not written)
    assert machine.frames.vmstat["pswpout"] == 0
    assert load(mm, BASE) == (b"y" if written else b"\0")
    if written:
        assert flag(machine, pfn, PG_SWAPBACKED), "it is anonymous memory like any other again"
        assert flag(machine, pfn, PG_DIRTY), "the entry was removed and put back"


def shared_and_lazily_freed(machine: Machine, mm: MmStruct, pfn: int) -> MmStruct:
    """A page that parent and child map, and that is lazily freed: its only user has advised it, and then forked."""
    do_madvise(mm, BASE, PAGE_SIZE, Madv.FREE)
    child = machine.fork(mm)
    assert machine.frames.mapcount_at[pfn] == 2
    return child


def make_dirty(mm: MmStruct) -> None:
    """Set the dirty bit of a page's entry, and leave all else: a write would copy the page."""
    pte = mm.page_table.find_pte(BASE)
    assert pte is not None
    mm.frames.ram.words[pte] |= PTE_DIRTY


@pytest.mark.parametrize("relinked", [False, True])
@pytest.mark.parametrize("writer", ["parent", "child"])
def test_shared_lazily_freed_memory_goes_from_the_entries_before_the_first_dirty_one(
    machine: Machine, mm: MmStruct, pfn: int, writer: str, *, relinked: bool
) -> None:
    child = shared_and_lazily_freed(machine, mm, pfn)
    order = [mm, child]
    if relinked:
        # A VMA with a new end is put behind all others of the same page offset.
        mmap(mm, 1, at=BASE + PAGE_SIZE)
        assert vma_at(mm, BASE).nr_pages == 2
        order.reverse()
    dirty = {"parent": mm, "child": child}[writer]
    make_dirty(dirty)
    assert shrink(machine, pfn) == 0
    kept = order[order.index(dirty) :]
    assert [entry(each, BASE) != 0 for each in order] == [each in kept for each in order]
    assert machine.frames.vmstat["pglazyfreed"] == 0
    assert all(flag(machine, pfn, bit) for bit in (PG_SWAPBACKED, PG_DIRTY, PG_ACTIVE))
    for each in order:
        assert load(each, BASE) == (b"x" if each in kept else b"\0")


def test_shared_lazily_freed_memory_goes_whole_if_nobody_has_written(machine: Machine, mm: MmStruct, pfn: int) -> None:
    child = shared_and_lazily_freed(machine, mm, pfn)
    assert shrink(machine, pfn) == 1
    assert machine.frames.vmstat["pglazyfreed"] == 1
    assert entry(mm, BASE) == entry(child, BASE) == 0


def test_lazily_freed_memory_that_a_call_holds_is_anonymous_memory_again(
    machine: Machine, mm: MmStruct, pfn: int
) -> None:
    do_madvise(mm, BASE, PAGE_SIZE, Madv.FREE)
    machine.frames.get_page(pfn)
    assert shrink(machine, pfn) == 0
    assert all(flag(machine, pfn, bit) for bit in (PG_SWAPBACKED, PG_ACTIVE))
    assert not flag(machine, pfn, PG_DIRTY)
    machine.frames.put_page(pfn)
    assert load(mm, BASE) == b"x"


def test_the_walk_for_accesses_ends_at_a_locked_vma(machine: Machine, mm: MmStruct, pfn: int) -> None:
    child = machine.fork(mm)
    for each in (mm, child):
        load(each, BASE)
    # A fault would leave the page to one of them.
    mm.set_vma_flags(vma_at(mm, BASE), vma_at(mm, BASE).vm_flags | VM_LOCKED)
    assert shrink(machine, pfn) == 0
    assert flag(machine, pfn, PG_UNEVICTABLE)
    assert [entry(each, BASE) & PTE_ACCESSED != 0 for each in (mm, child)] == [True, True]


@pytest.mark.parametrize("may_write", [False, True])
def test_a_dirty_page_of_a_file_is_written_or_left_for_the_flusher(
    machine: Machine, mm: MmStruct, *, may_write: bool
) -> None:
    file, backing = machine.new_file(b"a" * PAGE_SIZE)
    mmap(mm, 1, RW, SHARED, at=BASE, file=file)
    store(mm, BASE, b"b")
    make_old(mm)
    pfn = pfn_of(mm, BASE)
    assert shrink(machine, pfn, may_write=may_write) == may_write
    assert entry(mm, BASE) == 0
    assert (backing.data[:1] == b"b", file.mapping.host.has_reclaim(0)) == (may_write, not may_write)
    assert load(mm, BASE) == b"b"


def test_a_clean_page_of_a_file_is_dropped_and_leaves_its_shadow(machine: Machine, mm: MmStruct) -> None:
    file, backing = machine.new_file(b"a" * PAGE_SIZE)
    mmap(mm, 1, READ, PRIVATE, at=BASE, file=file)
    load(mm, BASE)
    make_old(mm)
    assert shrink(machine, pfn_of(mm, BASE)) == 1
    assert (list(file.mapping.pages), list(file.mapping.shadows), backing.writes) == ([], [0], [])


def test_code_that_was_used_once_is_active(machine: Machine, mm: MmStruct) -> None:
    file, _ = machine.new_file(b"a" * PAGE_SIZE)
    mmap(mm, 1, READ | EXEC, PRIVATE, at=BASE, file=file)
    access(mm, BASE)
    pfn = pfn_of(mm, BASE)
    assert shrink(machine, pfn) == 0
    assert flag(machine, pfn, PG_ACTIVE)


def test_shared_memory_goes_to_the_swap_file(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, RW, SHARED_ANON, at=BASE)
    store(mm, BASE, b"s")
    make_old(mm)
    file = vma_at(mm, BASE).file
    assert file is not None
    assert shrink(machine, pfn_of(mm, BASE)) == 1
    assert (entry(mm, BASE), list(file.mapping.pages), len(file.mapping.swapped)) == (0, [], 1)
    assert load(mm, BASE) == b"s"


def test_each_of_a_batch_goes_its_own_way(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 4, at=BASE)
    for number in range(4):
        store(mm, page(number), bytes([number + 1]))
        if number % 2:
            make_old(mm, page(number))
    pfns = [pfn_of(mm, page(number)) for number in range(4)]
    assert shrink(machine, *pfns) == 2
    assert [entry(mm, page(number)) & PTE_PRESENT for number in range(4)] == [1, 0, 1, 0]
    assert [load(mm, page(number)) for number in range(4)] == [b"\1", b"\2", b"\3", b"\4"]
