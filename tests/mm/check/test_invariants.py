"""The invariants notice what they are for: each way of breaking the machine is named in the KernelBug."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kerneld.errors import KernelBug
from kerneld.hw.paging import PTE_DIRTY, PTE_NX, PTE_PRESENT, PTE_PROTNONE, PTE_RW, PTE_SPECIAL, PTE_USER
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.check.invariants import check_machine, check_mm, find_unmerged
from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE, PG_DIRTY, PG_SWAPBACKED, PG_TABLE, ZERO_PFN
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_GROWSDOWN, VM_SHARED
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import (
    ANON,
    BASE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    errno_of,
    layout,
    load,
    mmap,
    page,
    pfn_of,
    store,
    vma_at,
)


class World:
    """A machine in which every kind of page is mapped: two processes, a file, shared memory, the zero page."""

    def __init__(self) -> None:
        self.machine = Machine(4 << 20)
        self.frames = self.machine.frames
        self.mm = self.machine.new_mm()
        self.file, _ = self.machine.new_file(bytes(8 * PAGE_SIZE))
        mmap(self.mm, 4, at=page(0))
        mmap(self.mm, 4, RW, SHARED, at=page(8), file=self.file)
        mmap(self.mm, 4, RW, SHARED_ANON, at=page(16))
        mmap(self.mm, 2, READ, at=page(24))
        mmap(self.mm, 2, RW, PRIVATE, at=page(28), file=self.file)
        for number in (0, 1, 8, 16):
            store(self.mm, page(number), b"x")
        load(self.mm, page(2))
        load(self.mm, page(9))
        load(self.mm, page(24))
        load(self.mm, page(28))
        self.child = self.machine.fork(self.mm)
        store(self.mm, page(1), b"y")
        self.vma = vma_at(self.mm, page(0))
        assert self.vma.anon_vma is not None
        self.anon_vma = self.vma.anon_vma
        self.machine.check()

    def pte(self, number: int) -> int:
        pte = self.mm.page_table.find_pte(page(number))
        assert pte is not None
        return pte

    def set_entry(self, number: int, entry: int) -> None:
        self.machine.ram.words[self.pte(number)] = entry

    def change(self, number: int, *, add: int = 0, drop: int = 0) -> None:
        self.set_entry(number, self.machine.ram.words[self.pte(number)] & ~drop | add)

    def pfn(self, number: int) -> int:
        return pfn_of(self.mm, page(number))

    def flag(self, number: int, *, add: int = 0, drop: int = 0) -> None:
        self.frames.flags_at[self.pfn(number)] = self.frames.flags_at[self.pfn(number)] & ~drop | add

    def leak(self) -> None:
        self.frames.alloc_page()

    def free_behind(self, number: int) -> None:
        self.frames.buddy.free_one(self.pfn(number))

    def lonely_table(self) -> None:
        self.mm.page_table.ensure_pte(BASE + 4 * PMD_SIZE)

    def dirty_unwritten(self, pfn: int) -> None:
        self.machine.ram.words[pfn << 9] = 1

    def write_free_frames(self) -> None:
        self.machine.ram.words_np[512 * 600 :] = 1

    def swapbacked_file_page(self) -> None:
        self.frames.flags_at[self.file.mapping.ensure_page(7)] |= PG_SWAPBACKED

    def lose_block(self) -> None:
        for stack in self.frames.buddy._lists:
            del stack[:]


BREAK: list[tuple[str, Callable[[World], object]]] = [
    ("overlaps", lambda w: w.mm.vmas.insert(Vma(page(3), page(5), RW, 0))),
    ("is not page-aligned", lambda w: w.mm.vmas.insert(Vma(page(30) + 1, page(31), RW, 0))),
    ("is empty", lambda w: w.mm.vmas.insert(Vma(page(30), page(30), RW, 0))),
    ("nothing holds its pages", lambda w: setattr(w.vma, "vm_flags", w.vma.vm_flags | VM_SHARED)),
    ("grows down", lambda w: setattr(vma_at(w.mm, page(8)), "vm_flags", RW | VM_GROWSDOWN)),
    ("starts elsewhere|start elsewhere", lambda w: setattr(w.vma, "start", page(1))),
    ("counts", lambda w: setattr(w.mm.vmas, "count", 7)),
    ("than the largest of chunk", lambda w: w.mm.vmas._max_gaps.__setitem__(0, 0)),
    ("larger than noted", lambda w: w.mm.vmas._gaps[0].__setitem__(0, 0)),
    ("lies in no VMA", lambda w: w.set_entry(5, PTE_PRESENT | PTE_USER | PTE_NX)),
    ("does not name a table", lambda w: w.machine.ram.words.__setitem__(w.mm.page_table.root << 9, 1)),
    ("covers no VMA", lambda w: w.lonely_table()),
    ("table_pages is", lambda w: setattr(w.mm.page_table, "table_pages", 9)),
    ("is writable, its VMA is not", lambda w: w.mm.set_vma_flags(w.vma, w.vma.vm_flags & ~2)),
    ("is executable, its VMA is not", lambda w: w.change(0, drop=PTE_NX)),
    ("its VMA allows no access", lambda w: w.mm.set_vma_flags(vma_at(w.mm, page(24)), 0)),
    ("is PROT_NONE, its VMA is not", lambda w: w.change(0, add=PTE_PROTNONE, drop=PTE_PRESENT)),
    ("is both present and PROT_NONE", lambda w: w.change(0, add=PTE_PROTNONE)),
    ("is not for user mode", lambda w: w.change(0, drop=PTE_USER)),
    ("no read-only zero page", lambda w: w.change(2, add=PTE_RW)),
    ("no read-only zero page", lambda w: w.change(0, add=PTE_SPECIAL)),
    ("out of bounds", lambda w: w.change(2, drop=PTE_SPECIAL)),
    ("out of bounds", lambda w: w.change(0, add=1 << 40)),
    ("of another index", lambda w: w.frames.index.__setitem__(w.pfn(0), 5)),
    ("not of its VMA's file", lambda w: w.frames.mapping.__setitem__(w.pfn(9), 99)),
    ("maps a clean page", lambda w: w.change(9, add=PTE_RW)),
    ("maps a clean page", lambda w: w.change(9, add=PTE_DIRTY)),
    ("private mapping of a file's own page", lambda w: w.change(28, add=PTE_RW)),
    ("anonymous frame in a shared VMA", lambda w: w.flag(16, add=PG_ANON)),
    ("may have other owners", lambda w: w.change(0, add=PTE_RW)),
    ("mapped elsewhere", lambda w: w.flag(0, add=PG_ANON_EXCLUSIVE)),
    ("not in its chain", lambda w: w.frames.mapping.__setitem__(w.pfn(1), 99)),
    ("total_vm is", lambda w: setattr(w.mm, "total_vm", 0)),
    ("data_vm is", lambda w: setattr(w.mm, "data_vm", 0)),
    ("locked_vm is", lambda w: setattr(w.mm, "locked_vm", 1)),
    ("rss of ANON is", lambda w: w.mm.rss.counts.__setitem__(1, 7)),
    ("rss of SHMEM is", lambda w: w.mm.rss.counts.__setitem__(3, 7)),
    ("names no slot", lambda w: w.set_entry(3, 1 << 20)),
    ("rss of SWAP is", lambda w: w.mm.rss.counts.__setitem__(2, 7)),
    ("i_mmap_writable of mapping", lambda w: setattr(w.file.mapping, "i_mmap_writable", 7)),
    ("has not got are gone", lambda w: w.file.mapping.unsaved.add(99)),
    ("i_mmap of mapping", lambda w: w.file.mapping.i_mmap.clear()),
    ("names another mapping or index", lambda w: w.file.mapping.pages.__setitem__(5, w.pfn(9))),
    ("dirty pages of", lambda w: w.file.mapping.dirty.add(1)),
    ("dirty pages of", lambda w: w.file.mapping.dirty.clear()),
    ("wrong kind", lambda w: w.swapbacked_file_page()),
    ("not chained to its own", lambda w: setattr(vma_at(w.mm, page(24)), "anon_vma", w.anon_vma)),
    ("without one of its own", lambda w: setattr(w.vma, "anon_vma", None)),
    ("are chained to it", lambda w: setattr(w.anon_vma, "ending", None)),
    ("num_active_vmas is", lambda w: setattr(w.anon_vma, "num_active_vmas", 5)),
    ("num_children is", lambda w: setattr(w.anon_vma, "num_children", 5)),
    ("mapcount of frame", lambda w: w.frames.mapcount.__setitem__(w.pfn(16), 3)),
    ("refcount of frame", lambda w: w.frames.refcount.__setitem__(w.pfn(16), 7)),
    ("refcount of frame", lambda w: w.leak()),
    ("refcount of frame", lambda w: w.frames.refcount.__setitem__(ZERO_PFN, 0)),
    ("is free and has references", lambda w: w.free_behind(1)),
    ("keeps flags", lambda w: w.frames.flags.__setitem__(900, PG_DIRTY)),
    ("page table by its flags", lambda w: w.frames.flags.__setitem__(w.mm.page_table.root, 0)),
    ("page table by its flags", lambda w: w.flag(16, add=PG_TABLE)),
    ("zero page has been written", lambda w: w.machine.ram.write(ZERO_PFN << 12, b"x")),
    ("does not read as zeros", lambda w: w.dirty_unwritten(ZERO_PFN)),
    ("does not read as zeros", lambda w: w.write_free_frames()),
    ("nr_free is", lambda w: setattr(w.frames.buddy, "nr_free", 3)),
    ("free blocks by order", lambda w: w.frames.buddy.nr_blocks.__setitem__(0, 77)),
    ("is in no list", lambda w: w.lose_block()),
    ("per-cpu list twice", lambda w: w.frames.buddy.pcp.__setitem__(0, w.frames.buddy.pcp[1])),
]  # fmt: skip


@pytest.mark.parametrize(("message", "damage"), BREAK, ids=[f"{at}-{name}" for at, (name, _) in enumerate(BREAK)])
def test_damage_is_named(message: str, damage: Callable[[World], object]) -> None:
    world = World()
    try:
        damage(world)
        with pytest.raises(KernelBug, match=message):
            world.machine.check()
    finally:
        world.machine.ram.close()


def test_an_address_space_that_is_left_out_is_noticed() -> None:
    world = World()
    with pytest.raises(KernelBug):
        check_machine(world.frames, [world.mm])
    check_machine(world.frames, [world.child, world.mm])
    check_mm(world.child)
    world.machine.close()


def test_a_file_with_pages_that_nothing_maps() -> None:
    machine = Machine()
    file, _ = machine.new_file(bytes(PAGE_SIZE))
    file.mapping.ensure_page(0)
    with pytest.raises(KernelBug, match="refcount of frame"):
        machine.check()
    check_machine(machine.frames, [], [file.mapping])
    file.mapping.evict()
    machine.close()


class TestUnmerged:
    """Neighbours that could be one VMA, and the ways in which Linux too leaves them two."""

    def test_after_a_split_that_the_map_count_stopped(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 6, at=page(0))
        machine.sysctl.max_map_count = 2
        errno_of(lambda: do_mprotect(mm, page(2), 2 * PAGE_SIZE, READ))
        assert [(low.start, high.start) for low, high in find_unmerged(mm)] == [(page(0), page(2))]

    def test_after_a_fork_of_locked_memory(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 2, READ, ANON | Map.LOCKED.value, at=page(0))
        mmap(mm, 2, READ, at=page(2))
        assert find_unmerged(mm) == []
        assert len(find_unmerged(machine.fork(mm))) == 1

    def test_touched_ones_are_not_counted(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(0))
        mmap(mm, 1, at=page(2))
        store(mm, page(0), b"x")
        store(mm, page(2), b"x")
        mmap(mm, 1, at=page(1))
        assert len(layout(mm)) == 2
        assert find_unmerged(mm) == []
