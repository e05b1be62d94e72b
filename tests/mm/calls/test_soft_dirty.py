"""Soft-dirty pages: which pages bit 55 of pagemap shows after a write of 4 to /proc/PID/clear_refs.

tests/native/c/soft_dirty.c is compared with the host's kernel, and the referee plays random programs.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.fs.proc_pagemap import PM_SOFT_DIRTY, read_pagemap
from kerneld.hw.paging import PTE_DIRTY, PTE_RW, PTE_SOFT_DIRTY, PTE_UNNOTICED
from kerneld.mm.calls.access import write_remote_vm
from kerneld.mm.calls.brk import do_brk_flags
from kerneld.mm.calls.clear_refs import ClearRefs, clear_refs
from kerneld.mm.calls.mbind import mbind_in_pieces
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.fault.cow import unshare_page
from kerneld.mm.frames.frames import PG_DIRTY
from kerneld.mm.space import pace
from kerneld.mm.space.mempolicy import MPOL_LOCAL
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.space.writeback import do_msync
from kerneld.mm.vm_flags import VM_SOFTDIRTY
from shared.uapi.mman import Madv, Map, Mremap, Ms
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.huge_machine import HugeMachine, entry_at, huge, sizes
from tests.support.machine import (
    ANON,
    BASE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    advise,
    checked,
    entry,
    load,
    mmap,
    page,
    pfn_of,
    store,
    vma_at,
)

TO = (Mremap.MAYMOVE | Mremap.FIXED).value


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


def clear(mm: MmStruct, kind: ClearRefs = ClearRefs.SOFT_DIRTY) -> None:
    run_at_once(clear_refs(mm, kind))


def dirty(mm: MmStruct, count: int, at: int = BASE) -> list[int]:
    """Return which pages from an address on are soft-dirty."""
    words = memoryview(read_pagemap(mm, at >> 9, count * 8, show_pfn=True)).cast("Q")
    return [number for number, word in enumerate(words) if word & PM_SOFT_DIRTY]


def protect(mm: MmStruct, first: int, count: int, prot: int) -> None:
    do_mprotect(mm, page(first), count * PAGE_SIZE, prot)


def move(mm: MmStruct, first: int, count: int, to: int) -> None:
    do_mremap(mm, page(first), count * PAGE_SIZE, count * PAGE_SIZE, TO, to, privileged=False)


def written_again(mm: MmStruct) -> None:
    """Write to three pages, forget that, and write to the second one again."""
    mmap(mm, 3, at=BASE)
    for number in range(3):
        store(mm, page(number), b"x")
    clear(mm)
    store(mm, page(1), b"y")


def test_all_of_a_new_mapping_is_soft_dirty_until_it_is_cleared(mm: MmStruct) -> None:
    mmap(mm, 4, at=BASE)
    assert dirty(mm, 6) == [0, 1, 2, 3]
    store(mm, page(1), b"x")
    load(mm, page(2))
    clear(mm)
    assert dirty(mm, 6) == []
    load(mm, page(1))
    load(mm, page(2))
    load(mm, page(3))
    assert dirty(mm, 6) == []
    store(mm, page(1), b"y")
    store(mm, page(3), b"y")
    assert dirty(mm, 6) == [1, 3]
    clear(mm)
    assert dirty(mm, 6) == []


@pytest.mark.parametrize("kind", [kind for kind in ClearRefs if kind is not ClearRefs.SOFT_DIRTY])
def test_no_other_kind_clears_it(mm: MmStruct, kind: ClearRefs) -> None:
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"x")
    clear(mm, kind)
    assert dirty(mm, 1) == [0]
    assert entry(mm, BASE) & PTE_RW


def test_it_is_no_dirty_bit(mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"x")
    clear(mm)
    assert entry(mm, BASE) & (PTE_DIRTY | PTE_SOFT_DIRTY | PTE_RW) == PTE_DIRTY
    store(mm, BASE, b"y")
    advise(mm, 0, 1, Madv.FREE)
    assert entry(mm, BASE) & (PTE_DIRTY | PTE_SOFT_DIRTY) == PTE_SOFT_DIRTY


@pytest.mark.parametrize("is_shmem", [None, False, True])
def test_the_first_write_to_shared_memory_is_seen(machine: Machine, mm: MmStruct, is_shmem: bool | None) -> None:
    """Shared anonymous memory, a regular file, a memory file: read first, which maps what a write could use."""
    file = None if is_shmem is None else machine.new_file(bytes(4 * PAGE_SIZE), is_shmem=is_shmem)[0]
    mmap(mm, 4, at=BASE, flags=SHARED_ANON if file is None else SHARED, file=file)
    store(mm, page(0), b"x")
    load(mm, page(1))
    clear(mm)
    for number in range(3):
        load(mm, page(number))
    assert dirty(mm, 4) == []
    assert not entry(mm, page(2)) & (PTE_RW | PTE_UNNOTICED)
    for number in (0, 1, 2):
        store(mm, page(number), b"y")
    assert dirty(mm, 4) == [0, 1, 2]


def test_a_page_of_a_memory_file_is_dirty_by_the_fault_that_is_linuxs_too(machine: Machine, mm: MmStruct) -> None:
    """While nobody looks for soft-dirty pages, Linux takes none: the entry is dirty, the page not yet."""
    file, backing = machine.new_file(bytes(2 * PAGE_SIZE), is_shmem=True)
    backing.holes = {0, 1}
    mmap(mm, 2, at=BASE, flags=SHARED, file=file)
    load(mm, BASE)
    assert entry(mm, BASE) & PTE_UNNOTICED
    store(mm, BASE, b"x")
    assert not machine.frames.flags_at[pfn_of(mm, BASE)] & PG_DIRTY
    do_msync(mm, BASE, PAGE_SIZE, Ms.SYNC.value)
    assert entry(mm, BASE) & (PTE_RW | PTE_UNNOTICED) == PTE_UNNOTICED  # Linux's entry stays writable.
    clear(mm)
    store(mm, BASE, b"y")
    assert machine.frames.flags_at[pfn_of(mm, BASE)] & PG_DIRTY


def test_a_private_page_of_a_file_is_soft_dirty_by_its_copy(machine: Machine, mm: MmStruct) -> None:
    file, _ = machine.new_file(bytes(2 * PAGE_SIZE))
    mmap(mm, 2, at=BASE, flags=PRIVATE, file=file)
    load(mm, BASE)
    clear(mm)
    store(mm, BASE, b"x")
    assert dirty(mm, 2) == [0]


def test_a_page_keeps_it_in_the_swap_file(machine: Machine, mm: MmStruct) -> None:
    written_again(mm)
    machine.reclaim_all()
    assert dirty(mm, 3) == [1]
    load(mm, page(0))
    load(mm, page(1))
    assert dirty(mm, 3) == [1]
    machine.reclaim_all()
    clear(mm)
    assert dirty(mm, 3) == []
    store(mm, page(2), b"z")
    load(mm, page(1))
    assert dirty(mm, 3) == [2]


def test_a_child_has_the_same(machine: Machine, mm: MmStruct) -> None:
    written_again(mm)
    child = machine.fork(mm)
    assert dirty(child, 3) == [1]
    store(child, page(0), b"z")
    assert (dirty(mm, 3), dirty(child, 3)) == ([1], [0, 1])
    clear(child)
    assert (dirty(mm, 3), dirty(child, 3)) == ([1], [])
    unshare_page(mm, vma_at(mm, page(1)), page(1))
    unshare_page(mm, vma_at(mm, page(2)), page(2))
    assert dirty(mm, 3) == [1]


@pytest.mark.parametrize("shared", [False, True])
def test_rights_that_come_back_let_no_write_pass_unseen(mm: MmStruct, shared: bool) -> None:
    """Both for few pages and for many."""
    for count in (2, 40):
        mmap(mm, count, at=BASE, flags=SHARED_ANON if shared else ANON)
        for number in range(count):
            store(mm, page(number), b"x")
        clear(mm)
        store(mm, page(1), b"y")
        protect(mm, 0, count, READ)
        protect(mm, 0, count, RW)
        assert [number for number in range(count) if entry(mm, page(number)) & PTE_RW] == [1]
        store(mm, page(0), b"y")
        assert dirty(mm, count) == [0, 1]


def test_memory_that_joins_a_mapping_makes_all_of_it_soft_dirty(mm: MmStruct) -> None:
    mmap(mm, 2, at=BASE)
    do_brk_flags(mm, page(8), PAGE_SIZE)
    clear(mm)
    mmap(mm, 1, at=page(2))
    do_brk_flags(mm, page(9), PAGE_SIZE)
    assert len(list(mm.vmas)) == 2
    assert dirty(mm, 10) == [0, 1, 2, 8, 9]


@pytest.mark.parametrize("part_is_soft_dirty", [True, False])
def test_a_mapping_that_grows_over_a_part_takes_after_the_part(mm: MmStruct, part_is_soft_dirty: bool) -> None:
    """Page 0 gets the rights of page 1, which is mapped again after the clearing if the part is not soft-dirty."""
    mmap(mm, 1, READ if part_is_soft_dirty else RW, at=page(1))
    mmap(mm, 1, READ, at=page(0))
    clear(mm)
    mmap(mm, 1, RW, at=page(0 if part_is_soft_dirty else 1))
    protect(mm, 0, 1, READ if part_is_soft_dirty else RW)
    assert len(list(mm.vmas)) == 1
    assert dirty(mm, 2) == ([0, 1] if part_is_soft_dirty else [])


def test_a_policy_leaves_the_flags_of_the_mapping_that_grows(mm: MmStruct) -> None:
    mmap(mm, 1, at=page(1))
    clear(mm)
    run_at_once(mbind_in_pieces(mm, page(1), PAGE_SIZE, MPOL_LOCAL, 0, 0, may_move_all=True))
    mmap(mm, 1, at=page(0))
    run_at_once(mbind_in_pieces(mm, page(0), PAGE_SIZE, MPOL_LOCAL, 0, 0, may_move_all=True))
    assert len(list(mm.vmas)) == 1
    assert dirty(mm, 2) == []


def test_the_bits_of_fresh_entries_lag_behind_a_merge_by_advice(machine: Machine, mm: MmStruct) -> None:
    """Linux sets vm_page_prot together with the rights, and not with other flags (madvise_update_vma())."""
    file, _ = machine.new_file(bytes(2 * PAGE_SIZE), is_shmem=True)
    mmap(mm, 1, at=BASE, flags=SHARED, file=file)
    advise(mm, 0, 1, Madv.SEQUENTIAL)
    clear(mm)
    mmap(mm, 1, at=page(1), flags=SHARED, file=file, pgoff=1)
    advise(mm, 1, 1, Madv.SEQUENTIAL)
    assert [(vma.vm_flags & VM_SOFTDIRTY != 0, vma.tracks_writes) for vma in mm.vmas] == [(True, True)]
    load(mm, page(0))
    assert not entry(mm, page(0)) & (PTE_RW | PTE_UNNOTICED)
    protect(mm, 0, 2, READ)
    protect(mm, 0, 2, RW)
    assert [vma.tracks_writes for vma in mm.vmas] == [False]


def test_what_moves_is_soft_dirty_at_its_new_place(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 4, at=BASE)
    for number in range(3):
        store(mm, page(number), b"x")
    machine.reclaim_all()
    load(mm, page(0))
    load(mm, page(3))
    clear(mm)
    move(mm, 0, 4, page(600))
    assert dirty(mm, 5, page(600)) == [0, 1, 2, 3]
    assert not vma_at(mm, page(600)).vm_flags & VM_SOFTDIRTY


def test_whole_tables_move_without_a_look_at_their_entries(mm: MmStruct) -> None:
    start = BASE + PMD_SIZE & -PMD_SIZE
    mmap(mm, 1024, at=start)
    store(mm, start, b"x")
    clear(mm)
    do_mremap(mm, start, 2 * PMD_SIZE, 2 * PMD_SIZE, TO, start + 8 * PMD_SIZE, privileged=False)
    assert dirty(mm, 2, start + 8 * PMD_SIZE) == []


@pytest.mark.parametrize("prot", [READ, RW])
def test_a_forced_write_is_seen(mm: MmStruct, prot: int) -> None:
    """As by a debugger. Source: Linux v6.8 mm/gup.c:can_follow_write_pte()."""
    mmap(mm, 2, at=BASE)
    store(mm, BASE, b"x")
    protect(mm, 0, 2, prot)
    clear(mm)
    write_remote_vm(mm, BASE, b"y", force=True)
    assert dirty(mm, 2) == [0]
    assert load(mm, BASE) == b"y"


class TestHugePages:
    @pytest.fixture
    def machine(self) -> Iterator[HugeMachine]:
        yield from checked(HugeMachine())

    def test_it_is_one_entry(self, machine: HugeMachine) -> None:
        mm = machine.new_mm()
        mmap(mm, 1024, at=BASE)
        store(mm, BASE, b"x")
        load(mm, huge(1))
        clear(mm)
        assert dirty(mm, 1024) == []
        assert sizes(mm, 2) == "HZ"
        assert not entry_at(mm, BASE) & PTE_RW
        store(mm, BASE + 5 * PAGE_SIZE, b"y")
        assert dirty(mm, 1024) == list(range(512))

    def test_a_split_makes_its_small_entries_anew(self, machine: HugeMachine) -> None:
        """A dirty one is soft-dirty then (pte_mkdirty()); the zero pages are not."""
        mm = machine.new_mm()
        mmap(mm, 1024, at=BASE)
        store(mm, BASE, b"x")
        load(mm, huge(1))
        clear(mm)
        do_mprotect(mm, BASE, PAGE_SIZE, READ)
        do_mprotect(mm, huge(1), PAGE_SIZE, READ)
        assert dirty(mm, 1024) == list(range(512))

    def test_it_moves_as_one_entry(self, machine: HugeMachine) -> None:
        mm = machine.new_mm()
        mmap(mm, 512, at=BASE)
        store(mm, BASE, b"x")
        clear(mm)
        do_mremap(mm, BASE, PMD_SIZE, PMD_SIZE, TO, huge(4), privileged=False)
        assert dirty(mm, 512, huge(4)) == list(range(512))


@pytest.mark.parametrize("kind", [ClearRefs.ALL, ClearRefs.SOFT_DIRTY])
def test_memory_without_tables_is_passed_over(mm: MmStruct, monkeypatch: pytest.MonkeyPatch, kind: ClearRefs) -> None:
    """Programs reserve terabytes: there are as many pieces as there are tables, or upper ones."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0)
    mmap(mm, 1 << 33, READ, ANON | Map.NORESERVE.value, at=BASE)
    load(mm, BASE + (20 << 40))
    assert sum(1 for _ in clear_refs(mm, kind)) < 100
    assert dirty(mm, 1) == ([] if kind is ClearRefs.SOFT_DIRTY else [0])
