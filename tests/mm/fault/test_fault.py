"""Page faults by the table in kerneld.mm.fault.fault, row by row."""

from __future__ import annotations

from signal import SIGBUS, SIGKILL, SIGSEGV

import numpy as np
import pytest

from kerneld.errors import KernelBug
from kerneld.hw.paging import PTE_ACCESSED, PTE_MKDIRTY, PTE_NX, PTE_PRESENT, PTE_RW, PTE_SPECIAL, PTE_USER, make_pte
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.vm_fault import VM_FAULT_SIGBUS
from kerneld.mm.frames.frames import PG_ANON, PG_ANON_EXCLUSIVE, PG_DIRTY, PG_LRU, PG_SWAPBACKED, ZERO_PFN
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.rss import Rss
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import (
    BASE,
    EXEC,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    WRITE,
    Machine,
    entry,
    load,
    mmap,
    page,
    pfn_of,
    signal_of,
    store,
    vma_at,
)

USER = PTE_PRESENT | PTE_USER | PTE_ACCESSED | PTE_NX


class TestAnonymous:
    """No entry, or the zero page's."""

    def test_a_read_maps_the_zero_page(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        free = machine.frames.free_pages
        assert load(mm, BASE, 8) == bytes(8)
        assert entry(mm, BASE) == make_pte(ZERO_PFN, USER | PTE_SPECIAL)
        assert mm.rss.counts == [0, 0, 0, 0]
        assert machine.frames.free_pages == free - 3
        assert machine.frames.mapcount[ZERO_PFN] == 0

    def test_a_write_maps_a_zeroed_frame(self, machine: Machine, mm: MmStruct) -> None:
        junk = machine.frames.alloc_page()
        machine.ram.write(junk * PAGE_SIZE, b"\xff" * PAGE_SIZE)
        machine.frames.put_page(junk)
        mmap(mm, 1, at=BASE)
        mm.page_table.ensure_pte(BASE)
        store(mm, BASE + 100, b"x")
        assert load(mm, BASE, 101) == bytes(100) + b"x"
        assert entry(mm, BASE) == make_pte(pfn_of(mm, BASE), USER | PTE_RW | PTE_MKDIRTY)
        assert machine.frames.flags[pfn_of(mm, BASE)] == PG_ANON | PG_SWAPBACKED | PG_ANON_EXCLUSIVE | PG_LRU
        assert mm.rss.counts[Rss.ANON] == 1

    def test_a_write_after_a_read_leaves_the_zero_page(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        load(mm, BASE)
        store(mm, BASE, b"x")
        assert pfn_of(mm, BASE) > ZERO_PFN
        assert entry(mm, BASE) & PTE_RW
        assert not entry(mm, BASE) & PTE_SPECIAL
        assert load(mm, BASE, 2) == b"x\0"

    def test_executable_memory_has_no_nx(self, mm: MmStruct) -> None:
        mmap(mm, 1, RW | EXEC, at=BASE)
        store(mm, BASE, b"x")
        assert not entry(mm, BASE) & PTE_NX

    def test_a_fault_that_was_settled_meanwhile(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        store(mm, BASE, b"x")
        before = entry(mm, BASE)
        assert handle_mm_fault(mm, vma_at(mm, BASE), BASE + 5, True) == 0
        assert entry(mm, BASE) == before

    def test_no_frame_at_all(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        held = machine.frames.alloc_pages(machine.frames.free_pages)
        assert signal_of(lambda: store(mm, BASE, b"x")) == SIGKILL
        machine.frames.put_pages(held)
        store(mm, BASE, b"x")

    def test_no_frame_for_a_copy_keeps_the_old_page(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        load(mm, BASE)
        held = machine.frames.alloc_pages(machine.frames.free_pages)
        assert signal_of(lambda: store(mm, BASE, b"x")) == SIGKILL
        assert load(mm, BASE) == b"\0"
        machine.frames.put_pages(held)

    def test_an_entry_that_is_neither(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        pte = mm.page_table.ensure_pte(BASE)
        mm.frames.ram.words[pte] = PTE_RW
        with pytest.raises(KernelBug, match="neither present nor empty"):
            handle_mm_fault(mm, vma_at(mm, BASE), BASE, False)
        mm.frames.ram.words[pte] = 0

    def test_outside_and_forbidden(self, mm: MmStruct) -> None:
        mmap(mm, 1, READ, at=BASE)
        assert signal_of(lambda: load(mm, page(1))) == SIGSEGV
        assert signal_of(lambda: store(mm, BASE, b"x")) == SIGSEGV


class TestFiles:
    """Pages of a file, private and shared."""

    @pytest.mark.parametrize("flags", [PRIVATE, SHARED])
    def test_a_read_maps_the_cached_page(self, machine: Machine, mm: MmStruct, flags: int) -> None:
        file, backing = machine.new_file(b"0123" * 1024 + b"abcd")
        mmap(mm, 2, RW, flags, at=BASE, file=file)
        assert load(mm, BASE + 1, 3) == b"123"
        assert load(mm, page(1), 8) == b"abcd\0\0\0\0"
        assert entry(mm, BASE) == make_pte(file.mapping.pages[0], USER)
        assert mm.rss.counts[Rss.FILE] == 2
        assert backing.reads == [(0, 2 * PAGE_SIZE)]

    def test_a_private_write_copies(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"abcd" * 1024)
        mmap(mm, 1, RW, PRIVATE, at=BASE, file=file)
        store(mm, BASE, b"X")
        assert load(mm, BASE, 4) == b"Xbcd"
        assert pfn_of(mm, BASE) != file.mapping.pages[0]
        assert machine.frames.flags[pfn_of(mm, BASE)] & PG_ANON
        assert mm.rss.counts == [0, 1, 0, 0]
        do_munmap(mm, BASE, PAGE_SIZE)
        assert backing.data[:4] == b"abcd"
        assert backing.releases == 1

    def test_a_private_write_after_a_read_copies(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"abcd" * 1024)
        mmap(mm, 1, RW, PRIVATE, at=BASE, file=file)
        load(mm, BASE)
        store(mm, BASE, b"X")
        assert load(mm, BASE, 4) == b"Xbcd"
        assert mm.rss.counts == [0, 1, 0, 0]
        assert machine.frames.mapcount[file.mapping.pages[0]] == 0

    def test_a_shared_write_is_noted(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"abcd" * 1024)
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        store(mm, BASE, b"X")
        pfn = file.mapping.pages[0]
        assert entry(mm, BASE) == make_pte(pfn, USER | PTE_RW | PTE_MKDIRTY)
        assert set(file.mapping.dirty) == {0}
        assert machine.frames.flags[pfn] & PG_DIRTY
        assert backing.writes == []

    def test_a_shared_write_after_a_read_is_noted(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"abcd" * 1024)
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        load(mm, BASE)
        assert set(file.mapping.dirty) == set()
        store(mm, BASE, b"X")
        assert set(file.mapping.dirty) == {0}
        assert mm.rss.counts == [1, 0, 0, 0]

    def test_two_processes_see_one_page(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"abcd" * 1024)
        other = machine.new_mm()
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        mmap(other, 1, RW, SHARED, at=page(7), file=file)
        mmap(other, 1, READ, PRIVATE, at=page(9), file=file)
        load(other, page(9))
        store(mm, BASE, b"seen")
        assert load(other, page(7), 4) == load(other, page(9), 4) == b"seen"
        assert machine.frames.mapcount[file.mapping.pages[0]] == 3
        assert machine.frames.refcount[file.mapping.pages[0]] == 4

    @pytest.mark.parametrize("flags", [PRIVATE, SHARED])
    def test_past_the_end(self, machine: Machine, mm: MmStruct, flags: int) -> None:
        file, backing = machine.new_file(bytes(PAGE_SIZE + 1))
        mmap(mm, 4, RW, flags, at=BASE, file=file)
        load(mm, page(1))
        assert signal_of(lambda: load(mm, page(2))) == SIGBUS
        assert signal_of(lambda: store(mm, page(2), b"x")) == SIGBUS
        backing.data += bytes(PAGE_SIZE)
        store(mm, page(2), b"x")
        assert signal_of(lambda: load(mm, page(3))) == SIGBUS

    def test_a_write_to_a_page_that_the_file_has_lost(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(bytes(2 * PAGE_SIZE))
        mmap(mm, 2, RW, SHARED, at=BASE, file=file)
        load(mm, page(1))
        del backing.data[PAGE_SIZE:]
        assert signal_of(lambda: store(mm, page(1), b"x")) == SIGBUS
        assert not entry(mm, page(1)) & PTE_RW

    @pytest.mark.parametrize("read_first", [False, True])
    def test_a_write_for_which_the_file_system_has_no_room(
        self, machine: Machine, mm: MmStruct, read_first: bool
    ) -> None:
        file, backing = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        backing.without_room.add(0)
        if read_first:
            load(mm, BASE)
        assert signal_of(lambda: store(mm, BASE, b"x")) == SIGBUS
        assert not file.mapping.dirty
        assert not read_first or not entry(mm, BASE) & PTE_RW
        mmap(mm, 1, RW, PRIVATE, at=page(2), file=file)
        store(mm, page(2), b"a copy needs none")
        backing.without_room.clear()
        store(mm, BASE, b"x")
        assert set(file.mapping.dirty) == {0}

    def test_a_file_that_cannot_be_read(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        backing.fail = 5
        assert handle_mm_fault(mm, vma_at(mm, BASE), BASE, False) == VM_FAULT_SIGBUS
        assert handle_mm_fault(mm, vma_at(mm, BASE), BASE, True) == VM_FAULT_SIGBUS
        backing.fail = 0
        assert load(mm, BASE) == b"\0"

    def test_shared_anonymous_memory(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 3, RW, SHARED_ANON, at=BASE)
        store(mm, page(1), b"x")
        assert load(mm, BASE) == b"\0"
        assert entry(mm, BASE) & PTE_RW
        assert mm.rss.counts == [0, 0, 0, 2]
        assert not entry(mm, page(2))


class TestFaultAround:
    """A read of a file's page maps the cached ones around it: sixteen, aligned, inside VMA, leaf table and file."""

    def mapped(self, mm: MmStruct) -> list[int]:
        vma = next(iter(mm.vmas))
        entries = mm.page_table.walk.entries(vma.start, vma.end)
        return [int(number) for number in np.flatnonzero(entries)]

    @pytest.mark.parametrize(
        ("touched", "mapped"), [(0, range(16)), (15, range(16)), (16, range(16, 32)), (37, range(32, 40))]
    )
    def test_the_window(self, machine: Machine, mm: MmStruct, touched: int, mapped: range) -> None:
        file, _ = machine.new_file(bytes(64 * PAGE_SIZE))
        mmap(mm, 40, READ, SHARED, at=BASE, file=file)
        load(mm, page(touched))
        assert self.mapped(mm) == list(mapped)
        assert mm.rss.counts[Rss.FILE] == len(mapped)

    def test_it_is_aligned_by_address_and_starts_at_the_vma(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(64 * PAGE_SIZE))
        mmap(mm, 20, READ, SHARED, at=page(10), file=file, pgoff=3)
        load(mm, page(12))
        assert self.mapped(mm) == list(range(16))
        assert sorted(file.mapping.pages) == list(range(3, 19))

    def test_it_ends_with_the_leaf_table(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(64 * PAGE_SIZE))
        mmap(mm, 20, READ, SHARED, at=BASE + PMD_SIZE - 5 * PAGE_SIZE, file=file)
        load(mm, BASE + PMD_SIZE - 3 * PAGE_SIZE)
        assert self.mapped(mm) == list(range(5))
        load(mm, BASE + PMD_SIZE)
        assert self.mapped(mm) == list(range(20))

    def test_it_ends_with_the_file(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(5 * PAGE_SIZE - 7))
        mmap(mm, 16, READ, PRIVATE, at=BASE, file=file)
        load(mm, page(2))
        assert self.mapped(mm) == list(range(5))

    def test_it_leaves_entries_that_are_there(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"f" * 16 * PAGE_SIZE)
        mmap(mm, 16, RW, PRIVATE, at=BASE, file=file)
        store(mm, page(3), b"mine")
        load(mm, page(4))
        assert load(mm, page(3), 6) == b"mineff"
        assert mm.rss.counts == [15, 1, 0, 0]

    def test_shared_anonymous_memory_maps_only_what_is_there(self, mm: MmStruct) -> None:
        mmap(mm, 16, RW, SHARED_ANON, at=BASE)
        store(mm, page(3), b"x")
        store(mm, page(9), b"x")
        do_munmap(mm, page(14), PAGE_SIZE)
        load(mm, page(5))
        assert self.mapped(mm) == [3, 5, 9]

    def test_a_write_maps_one(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(16 * PAGE_SIZE))
        mmap(mm, 16, WRITE | READ, SHARED, at=BASE, file=file)
        store(mm, page(2), b"x")
        assert self.mapped(mm) == [2]
