"""Protection keys as memory management knows them: which are taken, and which key a VMA and its entries have."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from kerneld.errors import KernelBug
from kerneld.hw.paging import PTE_NX, PTE_PKEY_MASK, PTE_PKEY_SHIFT, PTE_PRESENT, PTE_PROTNONE, PTE_PSE, pte_pkey
from kerneld.hw.processor import INIT_PKRU
from kerneld.mm.calls.brk import do_brk
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mmap import do_mmap
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.calls.stack import expand_stack
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pkeys import pkey_alloc, pkey_free, vma_pkey
from shared.uapi.mman import Madv, Map, Mremap, Pkey, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import (
    ANON,
    BASE,
    EXEC,
    NONE,
    READ,
    RW,
    SHARED_ANON,
    Machine,
    checked,
    entry,
    errno_of,
    failure,
    grows_down,
    load,
    mmap,
    page,
    store,
    vma_at,
)


@pytest.fixture(params=[0, 16 << 20])
def swapping(request: pytest.FixtureRequest) -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=request.param))


def pkru(mm: MmStruct) -> int:
    return mm.frames.processor.pkru


def protect(mm: MmStruct, first: int, count: int, prot: int, pkey: int = -1) -> None:
    do_mprotect(mm, page(first), count * PAGE_SIZE, prot, pkey)


def keys(mm: MmStruct) -> list[tuple[int, int, int]]:
    """Return each VMA as (first page from BASE, pages, key)."""
    return [((vma.start - BASE) // PAGE_SIZE, vma.nr_pages, vma_pkey(vma)) for vma in mm.vmas]


class TestAlloc:
    """pkey_alloc and pkey_free."""

    def test_the_lowest_free_one_until_all_are_taken(self, mm: MmStruct) -> None:
        assert [pkey_alloc(mm, 0, 0) for _ in range(15)] == list(range(1, 16))
        assert errno_of(lambda: pkey_alloc(mm, 0, 0)) == errno.ENOSPC
        for key in (9, 4):
            pkey_free(mm, key)
        assert [pkey_alloc(mm, 0, 0), pkey_alloc(mm, 0, 0)] == [4, 9]
        assert failure(lambda: pkey_alloc(mm, 0, 0)) == errno.ENOSPC

    @pytest.mark.parametrize(("flags", "rights"), [(1, 0), (1 << 40, 0), (0, 4), (0, 1 << 32), (2, 7)])
    def test_what_it_does_not_know(self, mm: MmStruct, flags: int, rights: int) -> None:
        """Asked before whether a key is left."""
        for _ in range(15):
            pkey_alloc(mm, 0, 0)
        assert errno_of(lambda: pkey_alloc(mm, flags, rights)) == errno.EINVAL

    @pytest.mark.parametrize(("rights", "bits"), [(0, 0), (Pkey.DISABLE_ACCESS, 1), (Pkey.DISABLE_WRITE, 2), (3, 3)])
    def test_pkru_says_what_was_asked_for(self, mm: MmStruct, rights: int, bits: int) -> None:
        mm.frames.processor.wrpkru(0xFFFF_FFF0)
        assert pkey_alloc(mm, 0, rights) == 1
        assert pkru(mm) == 0xFFFF_FFF0 | bits << 2

    @pytest.mark.parametrize("key", [1, 15, 16, 31, -1, -2, 1 << 30])
    def test_what_is_not_taken_cannot_be_given_back(self, mm: MmStruct, key: int) -> None:
        assert errno_of(lambda: pkey_free(mm, key)) == errno.EINVAL

    def test_free_leaves_memory_and_pkru_as_they_are(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        key = pkey_alloc(mm, 0, 0)
        protect(mm, 0, 1, RW, key)
        before = pkru(mm)
        pkey_free(mm, key)
        assert (pkru(mm), vma_pkey(vma_at(mm, BASE))) == (before, key)
        assert errno_of(lambda: protect(mm, 0, 1, RW, key)) == errno.EINVAL

    def test_key_0_is_taken_and_can_be_given_back(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        protect(mm, 0, 1, RW, 0)
        pkey_free(mm, 0)
        assert errno_of(lambda: pkey_free(mm, 0)) == errno.EINVAL
        assert errno_of(lambda: protect(mm, 0, 1, RW, 0)) == errno.EINVAL
        assert pkey_alloc(mm, 0, 0) == 0

    def test_a_child_has_its_own(self, machine: Machine, mm: MmStruct) -> None:
        pkey_alloc(mm, 0, 0)
        mmap(mm, 1, EXEC, at=BASE)
        child = machine.fork(mm)
        assert (child.pkey_allocation_map, child.execute_only_pkey) == (0b111, 2)
        assert (pkey_alloc(child, 0, 0), pkey_alloc(mm, 0, 0)) == (3, 3)


class TestExecuteOnly:
    """The key of memory that is only executable."""

    def test_the_first_such_memory_takes_it(self, mm: MmStruct) -> None:
        pkey_alloc(mm, 0, 0)
        mmap(mm, 1, EXEC, at=BASE)
        mmap(mm, 1, EXEC | READ, at=page(2))
        mmap(mm, 1, EXEC, at=page(4))
        assert keys(mm) == [(0, 1, 2), (2, 1, 0), (4, 1, 2)]
        assert (mm.execute_only_pkey, pkru(mm)) == (2, INIT_PKRU & ~0xC)
        assert pkey_alloc(mm, 0, 0) == 3

    @pytest.mark.parametrize("prot", [EXEC | Prot.SEM, EXEC | READ, EXEC | RW, NONE, EXEC | 0x100])
    def test_only_exec_alone(self, mm: MmStruct, prot: int) -> None:
        mmap(mm, 1, int(prot), at=BASE)
        assert (keys(mm), mm.execute_only_pkey) == ([(0, 1, 0)], -1)

    def test_it_is_no_programs_own(self, mm: MmStruct) -> None:
        mmap(mm, 1, EXEC, at=BASE)
        assert errno_of(lambda: pkey_free(mm, 1)) == errno.EINVAL
        assert errno_of(lambda: protect(mm, 0, 1, EXEC, 1)) == errno.EINVAL

    def test_pkru_denies_it_again_where_the_program_had_allowed_it(self, mm: MmStruct) -> None:
        mmap(mm, 1, EXEC, at=BASE)
        mm.frames.processor.wrpkru(0x8)  # WD, and not AD: it may be read
        mmap(mm, 1, EXEC, at=page(2))
        assert pkru(mm) == 0x4
        mm.frames.processor.wrpkru(0xC)  # denied: nothing to do
        protect(mm, 2, 1, EXEC)
        assert pkru(mm) == 0xC

    def test_without_a_free_key_it_has_key_0(self, mm: MmStruct) -> None:
        for _ in range(15):
            pkey_alloc(mm, 0, 0)
        mmap(mm, 1, EXEC, at=BASE)
        assert (keys(mm), mm.execute_only_pkey) == ([(0, 1, 0)], -1)
        protect(mm, 0, 1, RW, 7)
        protect(mm, 0, 1, EXEC)
        assert keys(mm) == [(0, 1, 7)]

    def test_key_0_given_back_is_the_lowest_free_one(self, mm: MmStruct) -> None:
        pkey_free(mm, 0)
        mmap(mm, 1, EXEC, at=BASE)
        assert (mm.execute_only_pkey, pkru(mm)) == (0, INIT_PKRU | 1)

    @pytest.mark.parametrize(
        ("at", "pages", "flags"),
        [
            (BASE, 0, ANON),
            (BASE + 1, 1, ANON | Map.FIXED),
            (BASE, 1 << 40, ANON),
            (BASE, 1, ANON | Map.FIXED_NOREPLACE),
        ],
    )
    def test_what_fails_before_it_is_asked_for_takes_none(self, mm: MmStruct, at: int, pages: int, flags: int) -> None:
        """Linux v6.8 mm/mmap.c:do_mmap(): length, place and EEXIST come first."""
        mmap(mm, 1, at=BASE)
        assert failure(lambda: _mmap_at(mm, at, pages, flags))
        assert (mm.execute_only_pkey, mm.pkey_allocation_map) == (-1, 1)

    @pytest.mark.parametrize("flags", [Map.ANONYMOUS, SHARED_ANON | Map.GROWSDOWN])
    def test_what_fails_behind_it_has_taken_it(self, mm: MmStruct, flags: int) -> None:
        assert errno_of(lambda: _mmap_at(mm, 0, 1, flags)) == errno.EINVAL
        assert (mm.execute_only_pkey, mm.pkey_allocation_map) == (1, 3)


def _mmap_at(mm: MmStruct, at: int, pages: int, flags: int) -> int:
    return do_mmap(mm, at, pages * PAGE_SIZE, EXEC, int(flags), None, 0, privileged=False)


class TestMprotect:
    """Which key a VMA has then."""

    def test_a_key_is_taken_as_it_is(self, mm: MmStruct) -> None:
        mmap(mm, 1, EXEC, at=BASE)
        protect(mm, 0, 1, EXEC, 0)
        assert keys(mm) == [(0, 1, 0)]

    def test_a_plain_one_keeps_each_vmas_own(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        first, second = pkey_alloc(mm, 0, 0), pkey_alloc(mm, 0, 0)
        protect(mm, 0, 2, RW, first)
        protect(mm, 2, 2, RW, second)
        protect(mm, 1, 2, READ)
        assert keys(mm) == [(0, 1, first), (1, 1, first), (2, 1, second), (3, 1, second)]
        protect(mm, 0, 4, EXEC)
        assert keys(mm) == [(0, 4, 3)]
        protect(mm, 0, 4, RW)
        assert keys(mm) == [(0, 4, 0)]

    def test_exec_alone_among_the_rights_that_grow(self, mm: MmStruct) -> None:
        grows_down(mm, BASE, 2)
        protect(mm, 1, 1, EXEC | Prot.GROWSDOWN)
        assert keys(mm) == [(0, 2, 1)]
        mmap(mm, 1, at=page(4))
        protect(mm, 4, 1, EXEC | Prot.SEM)
        assert vma_pkey(vma_at(mm, page(4))) == 0

    def test_a_freed_key_that_becomes_the_execute_only_one(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        protect(mm, 0, 1, RW, pkey_alloc(mm, 0, 0))
        pkey_free(mm, 1)
        mmap(mm, 1, EXEC, at=page(2))
        assert keys(mm) == [(0, 1, 1), (2, 1, 1)]
        protect(mm, 0, 1, READ)
        assert vma_pkey(vma_at(mm, BASE)) == 1

    @pytest.mark.parametrize(
        ("start", "length", "prot", "key", "expected"),
        [
            pytest.param(BASE, 0, READ, 99, 0, id="no length: whatever the key"),
            pytest.param(BASE + 1, 0, READ, 99, errno.EINVAL, id="not aligned"),
            pytest.param(BASE, (1 << 64) - BASE, READ, 99, errno.ENOMEM, id="wraps, before the key"),
            pytest.param(BASE, 1, 0x100, -1, errno.EINVAL, id="unknown bits"),
            pytest.param(page(9), 1, READ, 9, errno.EINVAL, id="the key before the hole"),
            pytest.param(BASE, 1, READ, -2, errno.EINVAL, id="below -1"),
            pytest.param(BASE, 1, READ, 16, errno.EINVAL, id="above all"),
            pytest.param(page(9), 1, READ, -1, errno.ENOMEM, id="a hole, with -1"),
            pytest.param(page(9), 1, READ, 0, errno.ENOMEM, id="a hole, with a key"),
        ],
    )
    def test_errors_in_order(self, mm: MmStruct, start: int, length: int, prot: int, key: int, expected: int) -> None:
        mmap(mm, 1, at=BASE)
        assert failure(lambda: do_mprotect(mm, start, length, prot, key)) == expected

    def test_a_hole_at_the_start_takes_no_key(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(1))
        assert failure(lambda: protect(mm, 0, 2, EXEC)) == errno.ENOMEM
        assert mm.execute_only_pkey == -1
        assert failure(lambda: protect(mm, 1, 2, EXEC)) == errno.ENOMEM
        assert (mm.execute_only_pkey, keys(mm)) == (1, [(1, 1, 1)])


class TestVmas:
    """The key is part of a VMA's flags."""

    def test_other_keys_do_not_merge(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        key = pkey_alloc(mm, 0, 0)
        protect(mm, 1, 1, RW, key)
        assert keys(mm) == [(0, 1, 0), (1, 1, key), (2, 1, 0)]
        protect(mm, 1, 1, RW, 0)
        assert keys(mm) == [(0, 3, 0)]

    def test_new_memory_beside_one_with_a_key(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(1))
        protect(mm, 1, 1, RW, pkey_alloc(mm, 0, 0))
        mmap(mm, 1, at=page(0))
        mmap(mm, 1, at=page(2))
        assert keys(mm) == [(0, 1, 0), (1, 1, 1), (2, 1, 0)]

    def test_mremap_keeps_it(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        protect(mm, 0, 2, RW, pkey_alloc(mm, 0, 0))
        store(mm, BASE, b"x")
        flags = (Mremap.MAYMOVE | Mremap.FIXED | Mremap.DONTUNMAP).value
        do_mremap(mm, BASE, 2 * PAGE_SIZE, 2 * PAGE_SIZE, flags, page(8), privileged=False)
        assert keys(mm) == [(0, 2, 1), (8, 2, 1)]
        assert (pte_pkey(entry(mm, page(8))), load(mm, page(8))) == (1, b"x")
        do_mremap(mm, page(8), 2 * PAGE_SIZE, 4 * PAGE_SIZE, 0, 0, privileged=False)
        assert keys(mm) == [(0, 2, 1), (8, 4, 1)]

    def test_a_stack_keeps_it_as_it_grows(self, mm: MmStruct) -> None:
        vma = grows_down(mm, page(16), 1)
        protect(mm, 16, 1, RW, pkey_alloc(mm, 0, 0))
        expand_stack(mm, vma, page(14))
        assert keys(mm) == [(14, 3, 1)]

    def test_a_heap_with_a_key_grows_by_a_vma_with_key_0(self, mm: MmStruct) -> None:
        mm.start_brk = mm.brk = BASE
        assert do_brk(mm, page(2), privileged=False) == page(2)
        protect(mm, 0, 2, RW, pkey_alloc(mm, 0, 0))
        assert do_brk(mm, page(3), privileged=False) == page(3)
        assert keys(mm) == [(0, 2, 1), (2, 1, 0)]

    def test_a_child_has_the_parents(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        store(mm, BASE, b"x")
        protect(mm, 0, 2, RW, pkey_alloc(mm, 0, 0))
        child = machine.fork(mm)
        assert keys(child) == keys(mm) == [(0, 2, 1)]
        assert pte_pkey(entry(child, BASE)) == 1


class TestEntries:
    """Bits 59 to 62 of what is present are the VMA's key, always."""

    def test_of_a_fresh_page_and_the_zero_page(self, mm: MmStruct) -> None:
        mmap(mm, 3, at=BASE)
        key = pkey_alloc(mm, 0, 0)
        protect(mm, 0, 3, RW, key)
        load(mm, BASE)
        store(mm, page(1), b"x")
        for number in (0, 1):
            assert entry(mm, page(number)) & (PTE_PKEY_MASK | PTE_NX) == key << PTE_PKEY_SHIFT | PTE_NX
        assert entry(mm, page(2)) == 0

    def test_mprotect_replaces_them(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=BASE)
        store(mm, BASE, b"x")
        before = entry(mm, BASE)
        protect(mm, 0, 1, RW, pkey_alloc(mm, 0, 0))
        assert entry(mm, BASE) == before | 1 << PTE_PKEY_SHIFT
        protect(mm, 0, 1, RW, 0)
        assert entry(mm, BASE) == before

    def test_memory_without_rights_has_them_too(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        store(mm, BASE, b"x")
        protect(mm, 0, 1, NONE, pkey_alloc(mm, 0, 0))
        assert entry(mm, BASE) & (PTE_PROTNONE | PTE_PRESENT | PTE_PKEY_MASK) == PTE_PROTNONE | 1 << PTE_PKEY_SHIFT

    def test_of_a_page_that_comes_from_swap(self, swapping: Machine) -> None:
        mm = swapping.new_mm()
        mmap(mm, 4, at=BASE)
        for number in range(4):
            store(mm, page(number), b"x")
        key = pkey_alloc(mm, 0, 0)
        swapping.reclaim_all()
        protect(mm, 0, 4, READ, key)
        for number in range(4):
            assert load(mm, page(number)) == b"x"
            assert pte_pkey(entry(mm, page(number))) == key

    def test_of_a_file_and_the_pages_around(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(b"x" * 4 * PAGE_SIZE)
        mmap(mm, 4, READ, Map.SHARED.value, at=BASE, file=file)
        protect(mm, 0, 4, READ, pkey_alloc(mm, 0, 0))
        load(mm, page(1))
        assert [pte_pkey(entry(mm, page(number))) for number in range(4)] == [1] * 4

    def test_of_a_huge_page_whole_split_and_collapsed(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, PMD_SIZE // PAGE_SIZE, at=BASE)
        do_madvise(mm, BASE, PMD_SIZE, Madv.HUGEPAGE, lambda _file: True)
        store(mm, BASE, b"x")
        key = pkey_alloc(mm, 0, 0)
        do_mprotect(mm, BASE, PMD_SIZE, RW, key)
        at = mm.page_table.find_pmd(BASE)
        assert at is not None
        huge = machine.ram.words[at]
        assert (huge & PTE_PSE != 0, pte_pkey(huge)) == (True, key)
        protect(mm, 5, 1, RW, 0)
        assert [pte_pkey(entry(mm, page(number))) for number in (4, 5, 6, 511)] == [key, 0, key, key]
        protect(mm, 5, 1, RW, key)
        do_madvise(mm, BASE, PMD_SIZE, Madv.COLLAPSE, lambda _file: True)
        assert pte_pkey(entry(mm, page(5))) == key

    def test_the_invariant_tells_of_another(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE)
        store(mm, BASE, b"x")
        at = mm.page_table.find_pte(BASE)
        assert at is not None
        machine.ram.words[at] |= 2 << PTE_PKEY_SHIFT
        with pytest.raises(KernelBug, match="another protection key"):
            machine.check()
        machine.ram.words[at] &= ~PTE_PKEY_MASK
