"""mprotect: errors in order, what is changed before one, and the rights of entries that are there."""

from __future__ import annotations

import errno
from signal import SIGSEGV

import pytest

from kerneld.hw.paging import PF_INSTR, PTE_ACCESSED, PTE_DIRTY, PTE_NX, PTE_PRESENT, PTE_PROTNONE, PTE_RW
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.frames.frames import ZERO_PFN
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_ACCOUNT
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import Rlimit
from tests.support.machine import (
    ANON,
    BASE,
    EXEC,
    NONE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    WRITE,
    Machine,
    access,
    entry,
    errno_of,
    grows_down,
    layout,
    load,
    mmap,
    page,
    pfn_of,
    signal_of,
    store,
    vma_at,
)

DOWN, UP = Prot.GROWSDOWN.value, Prot.GROWSUP.value


def protect(mm: MmStruct, first: int, count: int, prot: int) -> None:
    do_mprotect(mm, page(first), count * PAGE_SIZE, prot)


class TestErrors:
    """Linux's order."""

    @pytest.mark.parametrize(
        ("start", "length", "prot", "expected"),
        [
            pytest.param(BASE, 0, DOWN | UP, errno.EINVAL, id="both ways of growing"),
            pytest.param(BASE + 1, 0, READ, errno.EINVAL, id="not aligned, although the length is 0"),
            pytest.param(BASE, (1 << 64) - BASE, 0x100, errno.ENOMEM, id="wraps, before unknown bits"),
            pytest.param(BASE, PAGE_SIZE, 0x100, errno.EINVAL, id="unknown bits, before the hole"),
            pytest.param(BASE, PAGE_SIZE, READ, errno.ENOMEM, id="nothing there"),
            pytest.param(page(3), 2 * PAGE_SIZE, READ, errno.ENOMEM, id="starts in a hole"),
            pytest.param(page(4), PAGE_SIZE, READ | DOWN, errno.EINVAL, id="does not grow down"),
            pytest.param(page(4), PAGE_SIZE, READ | UP, errno.EINVAL, id="does not grow up"),
            pytest.param(page(3), 2 * PAGE_SIZE, READ | UP, errno.ENOMEM, id="a hole, before growing up"),
        ],
    )
    def test_arguments(self, mm: MmStruct, start: int, length: int, prot: int, expected: int) -> None:
        mmap(mm, 2, at=page(4))
        assert errno_of(lambda: do_mprotect(mm, start, length, prot)) == expected
        assert layout(mm) == [(4, 2, RW)]

    def test_no_length_is_fine_wherever_it_is(self, mm: MmStruct) -> None:
        do_mprotect(mm, BASE, 0, 0x100)
        assert layout(mm) == []

    def test_what_lies_before_a_hole_is_changed(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=page(0))
        mmap(mm, 3, at=page(4))
        assert errno_of(lambda: protect(mm, 1, 5, READ)) == errno.ENOMEM
        assert layout(mm) == [(0, 1, RW), (1, 2, READ), (4, 3, RW)]

    def test_what_lies_before_a_forbidden_part_is_changed(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(4 * PAGE_SIZE), writable=False)
        mmap(mm, 2, READ, at=page(0))
        mmap(mm, 2, READ, SHARED, at=page(2), file=file)
        mmap(mm, 2, READ, at=page(4))
        assert errno_of(lambda: protect(mm, 0, 6, RW)) == errno.EACCES
        assert layout(mm) == [(0, 2, RW), (2, 2, READ), (4, 2, READ)]
        protect(mm, 2, 2, READ | EXEC)

    def test_over_the_data_limit(self, mm: MmStruct) -> None:
        mmap(mm, 4, READ, at=page(0))
        mm.rlimits.soft[Rlimit.DATA] = PAGE_SIZE
        assert errno_of(lambda: protect(mm, 0, 2, RW)) == errno.ENOMEM
        protect(mm, 0, 1, RW)


class TestEntries:
    """Entries that are there when the rights change."""

    def test_no_write_any_more(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        store(mm, page(0), b"kept")
        pfn = pfn_of(mm, page(0))
        protect(mm, 0, 2, READ)
        assert not entry(mm, page(0)) & PTE_RW
        assert entry(mm, page(0)) & PTE_DIRTY
        assert signal_of(lambda: store(mm, page(0), b"x")) == SIGSEGV
        assert load(mm, page(0), 4) == b"kept"
        assert pfn_of(mm, page(0)) == pfn

    def test_none_and_back_keeps_the_page(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=page(0))
        store(mm, page(0), b"kept")
        load(mm, page(1))
        pfn = pfn_of(mm, page(0))
        protect(mm, 0, 3, NONE)
        assert entry(mm, page(0)) & (PTE_PRESENT | PTE_PROTNONE) == PTE_PROTNONE
        assert signal_of(lambda: load(mm, page(0))) == SIGSEGV
        assert not entry(mm, page(2))
        protect(mm, 0, 3, RW)
        assert (load(mm, page(0), 4), pfn_of(mm, page(0)), pfn_of(mm, page(1))) == (b"kept", pfn, ZERO_PFN)
        store(mm, page(1), b"x")
        assert pfn_of(mm, page(1)) != ZERO_PFN

    @pytest.mark.parametrize("mapping", [ANON, SHARED_ANON])
    def test_an_old_page_stays_old(self, mm: MmStruct, mapping: int) -> None:
        mmap(mm, 2, RW, mapping, at=BASE)
        store(mm, page(0), b"a")
        store(mm, page(1), b"b")
        do_madvise(mm, BASE, PAGE_SIZE, Madv.COLD)
        for prot in (NONE, READ, RW):
            protect(mm, 0, 2, prot)
            assert [bool(entry(mm, page(number)) & PTE_ACCESSED) for number in range(2)] == [False, True]

    def test_ones_own_page_is_writable_again_at_once(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=page(0))
        store(mm, page(0), b"x")
        load(mm, page(1))
        protect(mm, 0, 2, READ)
        protect(mm, 0, 2, RW)
        assert entry(mm, page(0)) & PTE_RW
        assert not entry(mm, page(1)) & PTE_RW

    def test_a_page_shared_by_fork_is_not(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(0))
        store(mm, page(0), b"ours")
        child = machine.fork(mm)
        for each in (mm, child):
            protect(each, 0, 1, READ)
            protect(each, 0, 1, RW)
            assert not entry(each, page(0)) & PTE_RW
        store(child, page(0), b"mine")
        assert load(mm, page(0), 4) == b"ours"

    def test_a_shared_file_page_is_writable_again_only_while_it_is_dirty(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(2 * PAGE_SIZE))
        mmap(mm, 2, RW, SHARED, at=page(0), file=file)
        load(mm, page(0))
        store(mm, page(1), b"x")
        protect(mm, 0, 2, READ)
        assert not entry(mm, page(1)) & PTE_RW
        protect(mm, 0, 2, RW)
        assert not entry(mm, page(0)) & PTE_RW
        assert entry(mm, page(1)) & PTE_RW

    def test_a_private_file_page_is_copied_only_by_a_write(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"file" * 1024)
        mmap(mm, 1, READ, PRIVATE, at=page(0), file=file)
        load(mm, page(0))
        protect(mm, 0, 1, RW)
        assert not entry(mm, page(0)) & PTE_RW
        store(mm, page(0), b"mine")
        assert load(mm, page(0), 8) == b"minefile"

    def test_shared_anonymous_memory_is_writable_at_once(self, mm: MmStruct) -> None:
        mmap(mm, 1, READ, SHARED_ANON, at=page(0))
        load(mm, page(0))
        protect(mm, 0, 1, RW)
        assert entry(mm, page(0)) & PTE_RW

    def test_execution(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(0))
        store(mm, page(0), b"\xc3")
        assert entry(mm, page(0)) & PTE_NX
        assert signal_of(lambda: access(mm, page(0), PF_INSTR)) == SIGSEGV
        protect(mm, 0, 1, READ | EXEC)
        assert access(mm, page(0), PF_INSTR) == pfn_of(mm, page(0)) * PAGE_SIZE
        assert signal_of(lambda: store(mm, page(0), b"x")) == SIGSEGV

    def test_write_alone_can_be_read_too_on_this_processor(self, mm: MmStruct) -> None:
        mmap(mm, 1, WRITE, at=page(0))
        store(mm, page(0), b"x")
        assert load(mm, page(0)) == b"x"

    def test_over_many_pages(self, mm: MmStruct) -> None:
        mmap(mm, 40, RW, ANON | Map.POPULATE.value, at=page(0))
        protect(mm, 3, 30, READ)
        writable = [number for number in range(40) if entry(mm, page(number)) & PTE_RW]
        assert writable == [0, 1, 2, *range(33, 40)]


def test_untouched_memory_that_becomes_read_only_is_promised_no_more(mm: MmStruct) -> None:
    mmap(mm, 4, at=page(0))
    store(mm, page(3), b"x")
    protect(mm, 0, 1, READ)
    assert vma_at(mm, page(0)).vm_flags & VM_ACCOUNT
    mmap(mm, 1, at=page(8))
    protect(mm, 8, 1, READ)
    assert not vma_at(mm, page(8)).vm_flags & VM_ACCOUNT


def test_from_the_start_of_a_stack(mm: MmStruct) -> None:
    grows_down(mm, page(4), 4)
    protect(mm, 6, 1, READ | DOWN)
    assert layout(mm) == [(4, 3, READ), (7, 1, RW)]


def test_locked_memory_that_becomes_writable_is_faulted_in(mm: MmStruct) -> None:
    mmap(mm, 2, READ, ANON | Map.LOCKED.value, at=page(0))
    assert pfn_of(mm, page(0)) == ZERO_PFN
    protect(mm, 0, 2, RW)
    assert all(pfn_of(mm, page(number)) > ZERO_PFN for number in range(2))
    assert entry(mm, page(1)) & PTE_RW
