"""Where a mapping goes: hints, MAP_32BIT, 2 MiB boundaries, the search from above and then from below.

Source: Linux v6.8 mm/mmap.c:get_unmapped_area(), arch/x86/kernel/sys_x86_64.c, and mm/huge_memory.c:
__thp_get_unmapped_area().
"""

from __future__ import annotations

import errno
from dataclasses import replace
from functools import partial

import pytest

from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.check.invariants import check_mm
from kerneld.mm.space.mm import MMAP_BASE, MmStruct
from kerneld.mm.space.unmapped_area import TASK_UNMAPPED_BASE, get_unmapped_area, round_hint_to_min
from kerneld.mm.space.vma import STACK_GUARD_GAP_BYTES
from shared.uapi.mman import Map, Mremap, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE, TASK_SIZE
from tests.support.machine import (
    ANON,
    BASE,
    NONE,
    READ,
    RW,
    Machine,
    Signal,
    errno_of,
    failure,
    grows_down,
    load,
    mmap,
    page,
)

FIXED, BIT32 = Map.FIXED.value, Map.BIT32.value
LOWEST = 0x1_0000
GIB2, GIB1 = 0x8000_0000, 0x4000_0000


def area(mm: MmStruct, pages: int, hint: int = 0, flags: int = 0, **how: bool) -> int:
    return get_unmapped_area(mm, hint, pages * PAGE_SIZE, flags, **how)


def fill(mm: MmStruct, start: int, end: int) -> None:
    mmap(mm, (end - start) // PAGE_SIZE, NONE, at=start)


class TestHint:
    """Taken where it is free, else passed over."""

    def test_free(self, mm: MmStruct) -> None:
        assert area(mm, 2, BASE) == BASE
        assert area(mm, 1, TASK_SIZE - PAGE_SIZE) == TASK_SIZE - PAGE_SIZE

    @pytest.mark.parametrize("hint", [page(-1), page(0), page(3)])
    def test_occupied(self, mm: MmStruct, hint: int) -> None:
        mmap(mm, 4, at=BASE)
        assert area(mm, 2, hint) == MMAP_BASE - 2 * PAGE_SIZE

    def test_beside_another(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        assert area(mm, 2, page(-2)) == page(-2)
        assert area(mm, 2, page(4)) == page(4)

    def test_in_the_guard_gap_of_a_stack(self, mm: MmStruct) -> None:
        grows_down(mm, BASE, 1)
        edge = BASE - STACK_GUARD_GAP_BYTES
        assert area(mm, 1, edge - PAGE_SIZE) == edge - PAGE_SIZE
        assert area(mm, 1, edge) == MMAP_BASE - PAGE_SIZE

    def test_past_user_space(self, mm: MmStruct) -> None:
        assert area(mm, 2, TASK_SIZE - PAGE_SIZE) == MMAP_BASE - 2 * PAGE_SIZE
        assert area(mm, 1, 1 << 60) == MMAP_BASE - PAGE_SIZE

    def test_rounded_to_what_may_be_mapped(self, mm: MmStruct) -> None:
        assert [round_hint_to_min(mm, hint) for hint in (0, 1, 4095)] == [0, 0, 0]
        assert [round_hint_to_min(mm, hint) for hint in (4096, 0xFFFF)] == [LOWEST, LOWEST]
        assert round_hint_to_min(mm, BASE + 4095) == BASE

    def test_a_security_module_rounds_hints_further_up_and_refuses_no_more(self, mm: MmStruct) -> None:
        """Source: Linux v6.8 security/min_addr.c."""
        mm.sysctl = replace(mm.sysctl, mmap_min_addr=PAGE_SIZE, lsm_mmap_min_addr=LOWEST)
        assert round_hint_to_min(mm, PAGE_SIZE) == LOWEST
        assert area(mm, 1, PAGE_SIZE, Map.FIXED.value) == PAGE_SIZE


class TestFixed:
    """No search: only what may not be is refused."""

    def test_over_another(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        assert area(mm, 2, BASE, FIXED) == BASE

    def test_order_of_errors(self, mm: MmStruct) -> None:
        assert errno_of(lambda: area(mm, 1 << 40, 1, FIXED)) == errno.ENOMEM
        assert errno_of(lambda: area(mm, 1, TASK_SIZE + 1, FIXED)) == errno.ENOMEM
        assert errno_of(lambda: area(mm, 1, 1, FIXED)) == errno.EINVAL
        assert errno_of(lambda: area(mm, 1, LOWEST - PAGE_SIZE, FIXED)) == errno.EPERM
        assert area(mm, 1, LOWEST - PAGE_SIZE, FIXED, raw_io=True) == LOWEST - PAGE_SIZE
        assert area(mm, 1, LOWEST, FIXED) == LOWEST


class TestLow:
    """MAP_32BIT: between one and two GiB, from below."""

    def test_from_below(self, mm: MmStruct) -> None:
        assert area(mm, 1, 0, BIT32) == GIB1
        mmap(mm, 3, at=GIB1)
        mmap(mm, 3, at=GIB1 + 4 * PAGE_SIZE)
        assert area(mm, 1, 0, BIT32) == GIB1 + 3 * PAGE_SIZE
        assert area(mm, 2, 0, BIT32) == GIB1 + 7 * PAGE_SIZE

    def test_a_mapping_across_the_lower_bound(self, mm: MmStruct) -> None:
        mmap(mm, 4, at=GIB1 - 2 * PAGE_SIZE)
        assert area(mm, 1, 0, BIT32) == GIB1 + 2 * PAGE_SIZE

    def test_the_guard_gap_of_a_stack_is_kept(self, mm: MmStruct) -> None:
        grows_down(mm, GIB1 + STACK_GUARD_GAP_BYTES + PAGE_SIZE, 2)
        assert area(mm, 1, 0, BIT32) == GIB1
        assert area(mm, 2, 0, BIT32) == GIB1 + STACK_GUARD_GAP_BYTES + 3 * PAGE_SIZE

    def test_full(self, mm: MmStruct) -> None:
        fill(mm, GIB1, GIB2 - PAGE_SIZE)
        assert area(mm, 1, 0, BIT32) == GIB2 - PAGE_SIZE
        assert errno_of(lambda: area(mm, 2, 0, BIT32)) == errno.ENOMEM
        assert errno_of(lambda: area(mm, (GIB2 - GIB1) // PAGE_SIZE + 1, 0, BIT32)) == errno.ENOMEM

    def test_a_hint_below_it_is_taken_and_none_above(self, mm: MmStruct) -> None:
        """As arch_get_unmapped_area(): the hint is held against the end of the area only."""
        assert area(mm, 1, 0x1000_0000, BIT32) == 0x1000_0000
        assert area(mm, 1, GIB2 - PAGE_SIZE, BIT32) == GIB2 - PAGE_SIZE
        assert area(mm, 2, GIB2 - PAGE_SIZE, BIT32) == GIB1
        assert area(mm, 1, BASE, BIT32) == GIB1


class TestFromAbove:
    """Below mmap_base, as high as it fits."""

    def test_the_highest_gap(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=MMAP_BASE - 2 * PAGE_SIZE)
        mmap(mm, 2, at=MMAP_BASE - 5 * PAGE_SIZE)
        assert area(mm, 1) == MMAP_BASE - 3 * PAGE_SIZE
        assert area(mm, 2) == MMAP_BASE - 7 * PAGE_SIZE

    def test_what_straddles_the_top(self, mm: MmStruct) -> None:
        mmap(mm, 2, at=MMAP_BASE - PAGE_SIZE)
        assert area(mm, 1) == MMAP_BASE - 2 * PAGE_SIZE

    def test_a_stack_above_keeps_its_gap(self, mm: MmStruct) -> None:
        grows_down(mm, MMAP_BASE - PAGE_SIZE, 1)
        assert area(mm, 1) == MMAP_BASE - 2 * PAGE_SIZE - STACK_GUARD_GAP_BYTES

    def test_a_gap_below_what_may_be_mapped_is_no_gap(self, mm: MmStruct) -> None:
        """The search goes down to the second page, and what it finds under mmap_min_addr is EPERM, as in Linux."""
        fill(mm, LOWEST, MMAP_BASE)
        assert errno_of(lambda: area(mm, 1)) == errno.EPERM
        assert area(mm, 1, raw_io=True) == LOWEST - PAGE_SIZE


class TestFromBelow:
    """When nothing is left under mmap_base."""

    def test_above_the_base(self, mm: MmStruct) -> None:
        fill(mm, PAGE_SIZE * 16, MMAP_BASE)
        assert area(mm, 16) == MMAP_BASE
        fill(mm, MMAP_BASE, MMAP_BASE + 8 * PAGE_SIZE)
        assert area(mm, 16) == MMAP_BASE + 8 * PAGE_SIZE

    def test_from_a_third_of_user_space(self, mm: MmStruct) -> None:
        fill(mm, TASK_UNMAPPED_BASE + 16 * PAGE_SIZE, MMAP_BASE)
        fill(mm, LOWEST, TASK_UNMAPPED_BASE)
        assert area(mm, 17) == MMAP_BASE
        assert area(mm, 16) == TASK_UNMAPPED_BASE

    def test_nothing_at_all(self, mm: MmStruct) -> None:
        fill(mm, 16 * PAGE_SIZE, TASK_SIZE - PAGE_SIZE)
        assert errno_of(lambda: area(mm, 15)) == errno.EPERM  # What is left lies below mmap_min_addr.
        assert errno_of(lambda: area(mm, 16)) == errno.ENOMEM
        assert errno_of(lambda: area(mm, (TASK_SIZE >> 12) + 1)) == errno.ENOMEM


class TestHugeBoundary:
    """Anonymous private memory of 2 MiB and more."""

    PAGES = PMD_SIZE // PAGE_SIZE

    def test_only_from_that_size_on(self, mm: MmStruct) -> None:
        assert area(mm, self.PAGES - 1, pmd_aligned=True) == MMAP_BASE - PMD_SIZE + PAGE_SIZE
        assert area(mm, self.PAGES, pmd_aligned=True) % PMD_SIZE == 0
        assert area(mm, self.PAGES) == MMAP_BASE - PMD_SIZE

    def test_a_free_hint_is_taken_as_it_is(self, mm: MmStruct) -> None:
        assert area(mm, self.PAGES, page(3), pmd_aligned=True) == page(3)

    def test_a_hint_without_room_for_the_padding_is_none(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=BASE + PMD_SIZE + 8 * PAGE_SIZE)
        found = area(mm, self.PAGES, page(3), pmd_aligned=True)
        assert found != page(3)
        assert found % PMD_SIZE == 0
        assert area(mm, self.PAGES, page(3)) == page(3)

    def test_without_room_for_the_padding_it_is_not_aligned(self, mm: MmStruct) -> None:
        top = MMAP_BASE - PMD_SIZE
        fill(mm, LOWEST, top)
        fill(mm, MMAP_BASE, TASK_SIZE - PAGE_SIZE)
        assert area(mm, self.PAGES, pmd_aligned=True) == top

    def test_what_mmap_asks_for(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PMD_SIZE))
        assert mmap(mm, self.PAGES, RW, Map.SHARED.value | Map.ANONYMOUS.value) == MMAP_BASE - PMD_SIZE
        file.mapping.is_shmem = True
        assert mmap(mm, self.PAGES, RW, Map.PRIVATE.value, file=file) == MMAP_BASE - 2 * PMD_SIZE
        file.mapping.is_shmem = False
        assert mmap(mm, self.PAGES, RW, Map.PRIVATE.value, file=file) % PMD_SIZE == 0
        assert mmap(mm, self.PAGES) % PMD_SIZE == 0


class TestReserved:
    """Where a native program's stub lies: no mapping that can be accessed gets there, by whatever way."""

    LOW, HIGH = BASE + (1 << 30), BASE + (2 << 30)

    @pytest.fixture
    def mm(self, mm: MmStruct) -> MmStruct:
        mm.reserved = self.LOW, self.HIGH
        return mm

    def test_fixed(self, mm: MmStruct) -> None:
        assert area(mm, 1, self.LOW - PAGE_SIZE, FIXED) == self.LOW - PAGE_SIZE
        assert area(mm, 1, self.HIGH, FIXED) == self.HIGH

    @pytest.mark.parametrize(
        ("place", "pages"), [(LOW - PAGE_SIZE, 2), (LOW, 1), (HIGH - PAGE_SIZE, 1), (BASE, 1 << 20)]
    )
    def test_fixed_in_it(self, mm: MmStruct, place: int, pages: int) -> None:
        assert errno_of(lambda: area(mm, pages, place, FIXED)) == errno.ENOMEM

    @pytest.mark.parametrize("access", [READ, Prot.WRITE.value, Prot.EXEC.value])
    def test_memory_without_access_may_lie_there(self, mm: MmStruct, access: int) -> None:
        place, inside = self.LOW - PAGE_SIZE, self.LOW + 4 * PAGE_SIZE
        assert mmap(mm, 10, NONE, ANON | FIXED, at=place) == place
        assert errno_of(lambda: do_mprotect(mm, place, 2 * PAGE_SIZE, access)) == errno.ENOMEM
        do_mprotect(mm, place, PAGE_SIZE, access)
        assert errno_of(lambda: mmap(mm, 1, access, ANON | FIXED, at=inside)) == errno.ENOMEM
        source = mmap(mm, 1, access)
        how = (Mremap.MAYMOVE | Mremap.FIXED).value
        for old, expected in ((place, errno.ENOMEM), (source, errno.ENOMEM), (inside, 0)):
            to = self.LOW + 20 * PAGE_SIZE
            remap = partial(do_mremap, mm, old, PAGE_SIZE, PAGE_SIZE, how, to, privileged=False)
            assert failure(remap) == expected
        check_mm(mm)

    def test_a_hint_is_passed_over(self, mm: MmStruct) -> None:
        assert area(mm, 2, self.LOW - PAGE_SIZE) == MMAP_BASE - 2 * PAGE_SIZE
        assert area(mm, 2, self.HIGH) == self.HIGH

    def test_the_search_goes_round_it(self, mm: MmStruct) -> None:
        fill(mm, self.HIGH, MMAP_BASE)
        assert area(mm, 4) == self.LOW - 4 * PAGE_SIZE
        fill(mm, LOWEST, self.LOW)
        assert area(mm, 16) == MMAP_BASE

    @pytest.mark.parametrize("top", [LOW - (1 << 29), LOW, LOW + (1 << 29)])
    def test_the_search_begins_below_it(self, mm: MmStruct, top: int) -> None:
        """With a limit of the stack's size that is large, or none, the top of the mmap area is far below the stack."""
        mm.mmap_base = top
        assert area(mm, 4) == min(top, self.LOW) - 4 * PAGE_SIZE

    def test_a_stack_does_not_grow_into_it(self, mm: MmStruct) -> None:
        grows_down(mm, self.HIGH + PAGE_SIZE, 1)
        load(mm, self.HIGH)
        with pytest.raises(Signal):
            load(mm, self.HIGH - PAGE_SIZE)


class TestBottomUp:
    """The layout of ADDR_COMPAT_LAYOUT: arch_get_unmapped_area() alone."""

    @pytest.fixture(autouse=True)
    def _layout(self, mm: MmStruct) -> None:
        mm.is_bottom_up = True

    def test_the_lowest_gap_that_is_large_enough(self, mm: MmStruct) -> None:
        assert area(mm, 1) == TASK_UNMAPPED_BASE
        fill(mm, TASK_UNMAPPED_BASE + 2 * PAGE_SIZE, TASK_UNMAPPED_BASE + 3 * PAGE_SIZE)
        assert area(mm, 2) == TASK_UNMAPPED_BASE
        assert area(mm, 3) == TASK_UNMAPPED_BASE + 3 * PAGE_SIZE

    def test_a_boundary_is_where_it_is(self, mm: MmStruct) -> None:
        """A search from the top would go to the next one."""
        boundary = TASK_UNMAPPED_BASE + (-TASK_UNMAPPED_BASE & (PMD_SIZE - 1))
        assert area(mm, 512, pmd_aligned=True) == boundary
        fill(mm, TASK_UNMAPPED_BASE, boundary)
        assert area(mm, 512, pmd_aligned=True) == boundary

    def test_nothing_below_the_start_but_by_a_hint(self, mm: MmStruct) -> None:
        fill(mm, TASK_UNMAPPED_BASE, TASK_SIZE)
        assert errno_of(lambda: area(mm, 1)) == errno.ENOMEM
        assert area(mm, 1, BASE) == BASE
