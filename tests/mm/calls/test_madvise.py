"""madvise: what each advice does to flags and pages, row by row; `test_madvise_errors.py` has what is refused."""

from __future__ import annotations

import errno
from signal import SIGBUS

import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_RW
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.frames.frames import ZERO_PFN
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_LOCKONFAULT,
    VM_NOHUGEPAGE,
    VM_RAND_READ,
    VM_SEQ_READ,
    VM_WIPEONFORK,
)
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
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
    advise,
    entry,
    layout,
    load,
    mmap,
    page,
    pfn_of,
    signal_of,
    store,
    vma_at,
)

ALL_FLAGS = (
    VM_DONTCOPY | VM_DONTDUMP | VM_HUGEPAGE | VM_NOHUGEPAGE | VM_RAND_READ | VM_SEQ_READ | VM_WIPEONFORK
)  # fmt: skip
LOCKED = ANON | Map.LOCKED.value


class TestFlags:
    """Advice that only sets and clears VM_ flags."""

    @pytest.mark.parametrize(
        ("before", "advice", "after"),
        [
            ([], Madv.RANDOM, VM_RAND_READ),
            ([Madv.SEQUENTIAL], Madv.RANDOM, VM_RAND_READ),
            ([Madv.RANDOM], Madv.SEQUENTIAL, VM_SEQ_READ),
            ([Madv.RANDOM], Madv.NORMAL, 0),
            ([Madv.SEQUENTIAL], Madv.NORMAL, 0),
            ([], Madv.DONTFORK, VM_DONTCOPY),
            ([Madv.DONTFORK], Madv.DOFORK, 0),
            ([], Madv.WIPEONFORK, VM_WIPEONFORK),
            ([Madv.WIPEONFORK], Madv.KEEPONFORK, 0),
            ([], Madv.DONTDUMP, VM_DONTDUMP),
            ([Madv.DONTDUMP], Madv.DODUMP, 0),
            ([], Madv.HUGEPAGE, VM_HUGEPAGE),
            ([Madv.HUGEPAGE], Madv.NOHUGEPAGE, VM_NOHUGEPAGE),
            ([Madv.NOHUGEPAGE], Madv.HUGEPAGE, VM_HUGEPAGE),
            ([Madv.DONTDUMP], Madv.RANDOM, VM_DONTDUMP | VM_RAND_READ),
        ],
    )
    def test_row(self, mm: MmStruct, before: list[Madv], advice: Madv, after: int) -> None:
        mmap(mm, 2, at=BASE)
        for earlier in before:
            advise(mm, 0, 2, earlier)
        advise(mm, 0, 2, advice)
        assert vma_at(mm, BASE).vm_flags & ALL_FLAGS == after
        assert layout(mm) == [(0, 2, RW)]

    def test_a_part_is_split_off_and_merges_back(self, mm: MmStruct) -> None:
        mmap(mm, 6, at=BASE)
        store(mm, page(3), b"x")
        advise(mm, 2, 2, Madv.DONTFORK)
        assert layout(mm) == [(0, 2, RW), (2, 2, RW), (4, 2, RW)]
        advise(mm, 1, 2, Madv.DONTFORK)
        assert layout(mm) == [(0, 1, RW), (1, 3, RW), (4, 2, RW)]
        advise(mm, 0, 6, Madv.DOFORK)
        assert layout(mm) == [(0, 6, RW)]
        assert load(mm, page(3)) == b"x"

    def test_what_is_so_already_is_not_split(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        machine.sysctl.max_map_count = 1
        advise(mm, 1, 1, Madv.NORMAL)
        assert layout(mm) == [(0, 3, RW)]

    def test_fork_does_as_they_say(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        for number in range(3):
            store(mm, page(number), b"x")
        advise(mm, 0, 1, Madv.DONTFORK)
        advise(mm, 1, 1, Madv.WIPEONFORK)
        child = machine.fork(mm)
        assert layout(child) == [(1, 1, RW), (2, 1, RW)]
        assert (load(child, page(1)), load(child, page(2))) == (b"\0", b"x")
        assert vma_at(child, page(1)).vm_flags & VM_WIPEONFORK


class TestDontNeed:
    """The entries go."""

    def test_anonymous_memory_reads_zero_again(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        mm_populate(mm, BASE, page(4))
        free = mm.frames.free_pages
        advise(mm, 1, 2, Madv.DONTNEED)
        assert [bool(entry(mm, page(number))) for number in range(4)] == [True, False, False, True]
        assert mm.frames.free_pages == free + 2
        assert load(mm, page(1)) == b"\0"
        assert layout(mm) == [(0, 4, RW)]

    def test_a_private_copy_of_a_file_is_lost(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"file" * 1024)
        mmap(mm, 1, RW, PRIVATE, at=BASE, file=file)
        store(mm, BASE, b"mine")
        advise(mm, 0, 1, Madv.DONTNEED)
        assert load(mm, BASE, 4) == b"file"

    @pytest.mark.parametrize("kind", ["file", "anonymous"])
    def test_shared_memory_keeps_what_was_written(self, machine: Machine, mm: MmStruct, kind: str) -> None:
        if kind == "file":
            mmap(mm, 1, RW, SHARED, at=BASE, file=machine.new_file(bytes(PAGE_SIZE))[0])
        else:
            mmap(mm, 1, RW, SHARED_ANON, at=BASE)
        store(mm, BASE, b"kept")
        advise(mm, 0, 1, Madv.DONTNEED)
        assert entry(mm, BASE) == 0
        assert load(mm, BASE, 4) == b"kept"

    def test_the_dirty_page_is_written_back_later(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        store(mm, BASE, b"kept")
        advise(mm, 0, 1, Madv.DONTNEED)
        machine.exit(mm)
        assert backing.data[:4] == b"kept"

    def test_memory_without_rights_too(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        store(mm, BASE, b"x")
        do_mprotect(mm, BASE, PAGE_SIZE, NONE)
        advise(mm, 0, 1, Madv.DONTNEED)
        assert entry(mm, BASE) == 0

    def test_dontneed_locked_is_for_all(self, mm: MmStruct) -> None:
        mmap(mm, 2, RW, LOCKED, at=BASE)
        mmap(mm, 1, at=page(2))
        store(mm, page(2), b"x")
        advise(mm, 0, 3, Madv.DONTNEED_LOCKED)
        assert [entry(mm, page(number)) for number in range(3)] == [0, 0, 0]
        assert mm.locked_vm == 2

    def test_a_huge_range(self, mm: MmStruct) -> None:
        mmap(mm, 1200, at=BASE)
        mm_populate(mm, BASE, page(1200))
        advise(mm, 100, 1000, Madv.DONTNEED)
        assert mm.rss.counts[1] == 200


class TestFreeAndCold:
    """Pages that may go: of no program's concern until memory is short."""

    def test_free_makes_pages_clean_and_old(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        mm_populate(mm, BASE, page(2))
        store(mm, BASE, b"x")
        advise(mm, 0, 2, Madv.FREE)
        assert not entry(mm, BASE) & (PTE_ACCESSED | PTE_DIRTY)
        assert entry(mm, BASE) & PTE_RW
        assert load(mm, BASE) == b"x"
        store(mm, BASE, b"y")
        assert load(mm, BASE) == b"y"

    def test_cold_makes_pages_old_and_keeps_them_dirty(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        store(mm, BASE, b"x")
        pfn = pfn_of(mm, BASE)
        advise(mm, 0, 1, Madv.COLD)
        assert entry(mm, BASE) & (PTE_ACCESSED | PTE_DIRTY) == PTE_DIRTY
        assert (pfn_of(mm, BASE), load(mm, BASE)) == (pfn, b"x")

    @pytest.mark.parametrize("advice", [Madv.FREE, Madv.COLD])
    def test_the_zero_page_and_empty_entries_are_left_alone(self, mm: MmStruct, advice: Madv) -> None:
        mmap(mm, 3, at=BASE)
        load(mm, page(1))
        before = entry(mm, page(1))
        advise(mm, 0, 3, advice)
        assert [entry(mm, page(number)) for number in range(3)] == [0, before, 0]
        assert pfn_of(mm, page(1)) == ZERO_PFN

    def test_cold_only_where_it_was_said(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        mm_populate(mm, BASE, page(3))
        advise(mm, 1, 1, Madv.COLD)
        assert [bool(entry(mm, page(number)) & PTE_ACCESSED) for number in range(3)] == [True, False, True]

    @pytest.mark.parametrize("flags", [PRIVATE, SHARED])
    def test_pageout_of_a_file_unmaps_what_nobody_else_maps(self, machine: Machine, mm: MmStruct, flags: int) -> None:
        file, _ = machine.new_file(b"a" * PAGE_SIZE + b"b" * PAGE_SIZE)
        other = machine.new_mm()
        mmap(mm, 2, READ, flags, at=BASE, file=file)
        mmap(other, 1, READ, flags, at=BASE, file=file)
        load(mm, BASE)
        load(other, BASE)
        advise(mm, 0, 2, Madv.PAGEOUT)
        assert bool(entry(mm, BASE))
        assert not entry(mm, page(1))
        assert load(mm, page(1)) == b"b"

    @pytest.mark.parametrize("flags", [PRIVATE, SHARED])
    @pytest.mark.parametrize("may", [True, False])
    def test_pageout_asks_whose_the_file_is_not_how_it_is_open(
        self, machine: Machine, mm: MmStruct, flags: int, may: bool
    ) -> None:
        """Source: Linux v6.8 mm/madvise.c:can_do_file_pageout()."""
        file, _ = machine.new_file(bytes(PAGE_SIZE), writable=not may)
        mmap(mm, 1, READ, flags, at=BASE, file=file)
        load(mm, BASE)
        do_madvise(mm, BASE, PAGE_SIZE, Madv.PAGEOUT, lambda _: may)
        assert bool(entry(mm, BASE)) is not may

    def test_nothing_is_lost_by_pageout(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        store(mm, BASE, b"x")
        advise(mm, 0, 2, Madv.PAGEOUT)
        assert load(mm, BASE) == b"x"


class TestWillNeed:
    """The host's cache has the file."""

    def test_a_file(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 2, READ, PRIVATE, at=BASE, file=file)
        advise(mm, 0, 2, Madv.WILLNEED)
        assert entry(mm, BASE) == 0

    def test_shared_anonymous_memory(self, mm: MmStruct) -> None:
        mmap(mm, 1, RW, SHARED_ANON, at=BASE)
        advise(mm, 0, 1, Madv.WILLNEED)
        assert entry(mm, BASE) == 0


class TestRemove:
    """A hole is punched into the file, for everybody."""

    def test_every_mapping_reads_zeros(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * 3 * PAGE_SIZE)
        other = machine.new_mm()
        mmap(mm, 3, RW, SHARED, at=BASE, file=file)
        mmap(other, 2, READ, SHARED, at=page(8), file=file, pgoff=1)
        load(other, page(8))
        store(mm, page(1), b"dirty")
        advise(mm, 1, 1, Madv.REMOVE)
        assert (entry(mm, page(1)), entry(other, page(8))) == (0, 0)
        assert load(other, page(8), 5) == bytes(5)
        assert (load(mm, BASE), load(mm, page(2))) == (b"x", b"x")
        assert backing.data == b"x" * PAGE_SIZE + bytes(PAGE_SIZE) + b"x" * PAGE_SIZE

    def test_private_copies_stay(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"x" * PAGE_SIZE)
        mmap(mm, 1, RW, SHARED, at=BASE, file=file)
        mmap(mm, 1, RW, PRIVATE, at=page(8), file=file)
        mmap(mm, 1, RW, PRIVATE, at=page(16), file=file)
        store(mm, page(8), b"mine")
        load(mm, page(16))
        advise(mm, 0, 1, Madv.REMOVE)
        assert load(mm, page(8), 4) == b"mine"
        assert load(mm, page(16), 4) == bytes(4)

    def test_shared_anonymous_memory_gives_its_frames_back(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 4, RW, SHARED_ANON, at=BASE)
        mm_populate(mm, BASE, page(4))
        free = machine.frames.free_pages
        advise(mm, 0, 3, Madv.REMOVE)
        assert machine.frames.free_pages == free + 3
        assert load(mm, BASE) == b"\0"

    def test_past_the_end_of_the_file(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(b"x" * PAGE_SIZE)
        mmap(mm, 3, RW, SHARED, at=BASE, file=file)
        advise(mm, 1, 2, Madv.REMOVE)
        assert len(backing.data) == PAGE_SIZE
        assert signal_of(lambda: load(mm, page(1))) == SIGBUS


class TestPopulate:
    """Pages are faulted in, without an access."""

    def test_read_maps_the_zero_page(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        advise(mm, 0, 3, Madv.POPULATE_READ)
        assert {pfn_of(mm, page(number)) for number in range(3)} == {ZERO_PFN}

    def test_write_gives_frames(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        advise(mm, 0, 3, Madv.POPULATE_READ)
        advise(mm, 0, 3, Madv.POPULATE_WRITE)
        assert mm.rss.counts[1] == 3
        assert all(entry(mm, page(number)) & PTE_RW for number in range(3))

    def test_write_breaks_the_sharing_of_a_fork(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        store(mm, BASE, b"x")
        child = machine.fork(mm)
        do_madvise(child, BASE, 2 * PAGE_SIZE, Madv.POPULATE_WRITE)
        assert pfn_of(child, BASE) != pfn_of(mm, BASE)
        assert load(child, BASE) == b"x"

    def test_write_makes_a_shared_file_dirty(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(2 * PAGE_SIZE))
        mmap(mm, 2, RW, SHARED, at=BASE, file=file)
        advise(mm, 0, 2, Madv.POPULATE_READ)
        assert set(file.mapping.dirty) == set()
        advise(mm, 1, 1, Madv.POPULATE_WRITE)
        assert set(file.mapping.dirty) == {1}

    def test_across_leaf_tables_and_mappings(self, mm: MmStruct) -> None:
        start = BASE + PMD_SIZE - 2 * PAGE_SIZE
        mmap(mm, 2, at=start)
        mmap(mm, 2, READ | 4, at=start + 2 * PAGE_SIZE)
        do_madvise(mm, start, 4 * PAGE_SIZE, Madv.POPULATE_READ)
        assert all(pfn_of(mm, start + number * PAGE_SIZE) for number in range(4))

    @pytest.mark.parametrize("advice", [Madv.POPULATE_READ, Madv.POPULATE_WRITE])
    def test_a_hole_is_told_of_when_all_behind_it_is_populated(self, mm: MmStruct, advice: Madv) -> None:
        for number in (1, 3, 4):
            mmap(mm, 1, at=page(number))
        with pytest.raises(SysError) as error:
            advise(mm, 0, 6, advice)
        assert error.value.errno == errno.ENOMEM
        assert all(pfn_of(mm, page(number)) for number in (1, 3, 4))

    def test_what_cannot_be_populated_ends_it_behind_a_hole_too(self, mm: MmStruct) -> None:
        for number, prot in ((1, RW), (2, NONE), (4, RW)):
            mmap(mm, 1, prot, at=page(number))
        with pytest.raises(SysError) as error:
            advise(mm, 0, 5, Madv.POPULATE_READ)
        assert error.value.errno == errno.EINVAL
        assert pfn_of(mm, page(1))
        assert not pfn_of(mm, page(4))

    def test_locked_on_fault_memory_too(self, mm: MmStruct) -> None:
        """Unlike mlock's own populating."""
        mmap(mm, 1, at=BASE)
        vma = vma_at(mm, BASE)
        mm.set_vma_flags(vma, vma.vm_flags | VM_LOCKED | VM_LOCKONFAULT)
        advise(mm, 0, 1, Madv.POPULATE_WRITE)
        assert mm.rss.counts[1] == 1


def test_nothing_to_advise(mm: MmStruct) -> None:
    """A length of 0 is good for any known advice, mapped or not; PROT_NONE memory can be advised."""
    for advice in (Madv.DONTNEED, Madv.DONTFORK, Madv.POPULATE_WRITE, Madv.REMOVE, Madv.WILLNEED):
        advise(mm, 0, 0, advice)
    mmap(mm, 1, NONE, at=BASE)
    advise(mm, 0, 1, Madv.DONTFORK)
    assert vma_at(mm, BASE).vm_flags & VM_DONTCOPY
