"""madvise: what is refused and in which order, and what has been done when a range has a hole or a wrong VMA.

Source: Linux v6.8 mm/madvise.c:do_madvise(), madvise_walk_vmas(), madvise_populate().
"""

from __future__ import annotations

import errno

import pytest

from kerneld.hw.paging import PTE_ACCESSED
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.vm_flags import VM_DONTCOPY
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from tests.support.machine import (
    ANON,
    BASE,
    NONE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    WRITE,
    Machine,
    advise,
    entry,
    errno_of,
    layout,
    mmap,
    page,
    store,
    vma_at,
)

LOCKED = ANON | Map.LOCKED.value
FLAG_ADVICE = [
    Madv.NORMAL, Madv.RANDOM, Madv.DONTFORK, Madv.KEEPONFORK, Madv.DODUMP, Madv.HUGEPAGE, Madv.MERGEABLE,
    Madv.UNMERGEABLE,
]  # fmt: skip
PAGE_ADVICE = [Madv.DONTNEED, Madv.DONTNEED_LOCKED, Madv.FREE, Madv.COLD, Madv.PAGEOUT, Madv.REMOVE]
POPULATE = [Madv.POPULATE_READ, Madv.POPULATE_WRITE]
EVERY = [*FLAG_ADVICE, *PAGE_ADVICE, *POPULATE]


class TestArguments:
    """Before any VMA is looked at."""

    @pytest.mark.parametrize("advice", [5, 6, 7, 26, 99, 103, -1, 1 << 40])
    def test_unknown_advice(self, mm: MmStruct, advice: int) -> None:
        assert errno_of(lambda: advise(mm, 0, 0, advice)) == errno.EINVAL

    @pytest.mark.parametrize("advice", [Madv.HWPOISON, Madv.SOFT_OFFLINE])
    def test_what_is_not_built_in(self, mm: MmStruct, advice: int) -> None:
        mmap(mm, 1, at=BASE)
        assert errno_of(lambda: advise(mm, 0, 1, advice)) == errno.EINVAL

    @pytest.mark.parametrize("advice", EVERY)
    def test_range(self, mm: MmStruct, advice: int) -> None:
        assert errno_of(lambda: do_madvise(mm, BASE + 1, 0, advice)) == errno.EINVAL
        assert errno_of(lambda: do_madvise(mm, BASE, (1 << 64) - 1, advice)) == errno.EINVAL
        assert errno_of(lambda: do_madvise(mm, BASE, (1 << 64) - BASE, advice)) == errno.EINVAL

    @pytest.mark.parametrize("advice", EVERY)
    def test_nothing_there(self, mm: MmStruct, advice: int) -> None:
        assert errno_of(lambda: advise(mm, 0, 1, advice)) == errno.ENOMEM
        assert errno_of(lambda: do_madvise(mm, TASK_SIZE, PAGE_SIZE, advice)) == errno.ENOMEM


class TestHoles:
    """They are passed over and reported at the end; populating stops at one."""

    @pytest.mark.parametrize(
        ("first", "count"), [(0, 4), (1, 2), (1, 4), (0, 2), (3, 4)], ids=["between", "before", "all", "end", "after"]
    )
    def test_what_is_mapped_has_been_advised(self, mm: MmStruct, first: int, count: int) -> None:
        """Pages 1, 3 and 4 are mapped in [0, 5): whichever of them the range holds have been done."""
        for number in (1, 3, 4):
            mmap(mm, 1, READ if number == 4 else RW, at=page(number))
        advised = {number for number in (1, 3, 4) if first <= number < first + count}
        assert errno_of(lambda: advise(mm, first, count, Madv.DONTFORK)) == errno.ENOMEM
        assert {number for number in (1, 3, 4) if vma_at(mm, page(number)).vm_flags & VM_DONTCOPY} == advised

    def test_populate_goes_on_behind_it(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(0))
        mmap(mm, 1, at=page(2))
        assert errno_of(lambda: advise(mm, 0, 3, Madv.POPULATE_WRITE)) == errno.ENOMEM
        assert [bool(entry(mm, page(number))) for number in range(3)] == [True, False, True]

    def test_a_refusal_after_a_hole_wins(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(0))
        mmap(mm, 1, RW, LOCKED, at=page(2))
        mmap(mm, 1, READ, at=page(3))
        store(mm, page(0), b"x")
        assert errno_of(lambda: advise(mm, 0, 4, Madv.DONTNEED)) == errno.EINVAL
        assert not entry(mm, page(0))
        assert entry(mm, page(2))


class TestRefused:
    """By the VMA's kind; what lies before it has been advised."""

    @pytest.mark.parametrize("advice", [Madv.DONTNEED, Madv.FREE, Madv.COLD, Madv.PAGEOUT, Madv.REMOVE])
    def test_locked_memory(self, mm: MmStruct, advice: int) -> None:
        mmap(mm, 1, RW, LOCKED, at=BASE)
        before = entry(mm, BASE)
        assert errno_of(lambda: advise(mm, 0, 1, advice)) == errno.EINVAL
        assert entry(mm, BASE) == before

    @pytest.mark.parametrize("flags", [PRIVATE, SHARED])
    def test_free_of_files(self, machine: Machine, mm: MmStruct, flags: int) -> None:
        mmap(mm, 1, RW, flags, at=BASE, file=machine.new_file(bytes(PAGE_SIZE))[0])
        assert errno_of(lambda: advise(mm, 0, 1, Madv.FREE)) == errno.EINVAL

    def test_free_of_shared_anonymous_memory(self, mm: MmStruct) -> None:
        mmap(mm, 1, RW, SHARED_ANON, at=BASE)
        assert errno_of(lambda: advise(mm, 0, 1, Madv.FREE)) == errno.EINVAL

    def test_wipeonfork_of_files_and_shared_memory(self, machine: Machine, mm: MmStruct) -> None:
        file, _ = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, RW, PRIVATE, at=page(0), file=file)
        mmap(mm, 1, RW, SHARED, at=page(1), file=file)
        mmap(mm, 1, RW, SHARED_ANON, at=page(2))
        for number in range(3):
            assert errno_of(lambda: advise(mm, number, 1, Madv.WIPEONFORK)) == errno.EINVAL  # noqa: B023
            advise(mm, number, 1, Madv.KEEPONFORK)

    def test_remove(self, machine: Machine, mm: MmStruct) -> None:
        readonly, _ = machine.new_file(bytes(PAGE_SIZE), writable=False)
        file, backing = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, RW, ANON, at=page(0))
        mmap(mm, 1, RW, PRIVATE, at=page(1), file=file)
        mmap(mm, 1, READ, SHARED, at=page(2), file=readonly)
        mmap(mm, 1, READ, SHARED, at=page(3), file=file)
        codes = [errno_of(lambda: advise(mm, number, 1, Madv.REMOVE)) for number in range(3)]  # noqa: B023
        assert codes == [errno.EINVAL, errno.EACCES, errno.EACCES]
        advise(mm, 3, 1, Madv.REMOVE)  # Only that it may become writable counts.
        backing.fail = errno.EOPNOTSUPP
        assert errno_of(lambda: advise(mm, 3, 1, Madv.REMOVE)) == errno.EOPNOTSUPP

    def test_what_lies_before_has_been_advised(self, mm: MmStruct) -> None:
        mmap(mm, 1, at=page(0))
        mmap(mm, 1, RW, LOCKED, at=page(1))
        mmap(mm, 1, at=page(2))
        mm_populate(mm, page(0), page(3))
        assert errno_of(lambda: advise(mm, 0, 3, Madv.COLD)) == errno.EINVAL
        accessed = [bool(entry(mm, page(number)) & PTE_ACCESSED) for number in range(3)]
        assert accessed == [False, True, True]

    def test_too_many_mappings(self, machine: Machine, mm: MmStruct) -> None:
        """ENOMEM becomes EAGAIN, and what a first split made stays."""
        mmap(mm, 3, at=BASE)
        machine.sysctl.max_map_count = 1
        assert errno_of(lambda: advise(mm, 1, 1, Madv.DONTFORK)) == errno.EAGAIN
        assert layout(mm) == [(0, 3, RW)]
        machine.sysctl.max_map_count = 2
        assert errno_of(lambda: advise(mm, 1, 1, Madv.DONTFORK)) == errno.EAGAIN
        assert layout(mm) == [(0, 1, RW), (1, 2, RW)]
        advise(mm, 1, 2, Madv.DONTFORK)


class TestPopulate:
    """Source: Linux v6.8 mm/madvise.c:madvise_populate(): EINVAL for missing rights, EFAULT where a fault fails."""

    @pytest.mark.parametrize(
        ("prot", "advice", "expected"),
        [
            (NONE, Madv.POPULATE_READ, errno.EINVAL),
            (NONE, Madv.POPULATE_WRITE, errno.EINVAL),
            (READ, Madv.POPULATE_WRITE, errno.EINVAL),
            (WRITE, Madv.POPULATE_READ, errno.EINVAL),
        ],
    )
    def test_no_right(self, mm: MmStruct, prot: int, advice: int, expected: int) -> None:
        mmap(mm, 2, at=BASE)
        do_mprotect(mm, page(1), PAGE_SIZE, prot)
        assert errno_of(lambda: advise(mm, 0, 2, advice)) == expected
        assert [bool(entry(mm, page(number))) for number in range(2)] == [True, False]

    @pytest.mark.parametrize("advice", POPULATE)
    def test_past_the_end_of_a_file(self, machine: Machine, mm: MmStruct, advice: int) -> None:
        mmap(mm, 3, RW, SHARED, at=BASE, file=machine.new_file(b"x")[0])
        assert errno_of(lambda: advise(mm, 0, 3, advice)) == errno.EFAULT
        assert [bool(entry(mm, page(number))) for number in range(3)] == [True, False, False]

    def test_a_file_that_cannot_be_read(self, machine: Machine, mm: MmStruct) -> None:
        file, backing = machine.new_file(bytes(PAGE_SIZE))
        mmap(mm, 1, READ, PRIVATE, at=BASE, file=file)
        backing.fail = errno.EIO
        assert errno_of(lambda: advise(mm, 0, 1, Madv.POPULATE_READ)) == errno.EFAULT

    def test_no_frame(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 4, at=BASE)
        with machine.failing_allocation(0):
            assert errno_of(lambda: advise(mm, 0, 4, Madv.POPULATE_WRITE)) == errno.ENOMEM
        advise(mm, 0, 4, Madv.POPULATE_WRITE)
