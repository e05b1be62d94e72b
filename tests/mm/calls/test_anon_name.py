"""Names of anonymous memory: which mappings may have one, and what splits, merges, moves and forks with it."""

from __future__ import annotations

import errno

from kerneld.mm.calls.brk import do_brk
from kerneld.mm.calls.madvise import set_anon_name_in_pieces
from kerneld.mm.calls.mlock import do_mlock
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE
from tests.mm.calls.remapping import KEEP, MAYMOVE, TO, remap
from tests.support.errors import fails
from tests.support.machine import (
    BASE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    advise,
    layout,
    mmap,
    page,
    store,
    vma_at,
)


def give(mm: MmStruct, first: int, pages: int, name: str | None) -> None:
    """Name pages counted from BASE."""
    run_at_once(set_anon_name_in_pieces(mm, page(first), pages * PAGE_SIZE, name))


def names(mm: MmStruct) -> list[tuple[int, int, str]]:
    """Return each VMA as (first page from BASE, pages, name)."""
    return [((vma.start - BASE) >> PAGE_SHIFT, vma.nr_pages, vma.anon_name) for vma in mm.vmas]


def test_a_named_part_is_split_off_and_merges_back(mm: MmStruct) -> None:
    mmap(mm, 6, at=BASE)
    give(mm, 2, 2, "one")
    assert names(mm) == [(0, 2, ""), (2, 2, "[anon:one]"), (4, 2, "")]
    give(mm, 3, 2, "two")
    give(mm, 1, 1, "one")
    assert names(mm) == [(0, 1, ""), (1, 2, "[anon:one]"), (3, 2, "[anon:two]"), (5, 1, "")]
    give(mm, 0, 6, "")
    assert names(mm) == [(0, 6, "[anon:]")]
    give(mm, 0, 6, None)
    assert names(mm) == [(0, 6, "")]


def test_new_memory_beside_a_named_mapping_does_not_merge(mm: MmStruct) -> None:
    mmap(mm, 2, at=page(2))
    give(mm, 2, 2, "one")
    mmap(mm, 2, at=BASE)
    mmap(mm, 2, at=page(4))
    assert names(mm) == [(0, 2, ""), (2, 2, "[anon:one]"), (4, 2, "")]


def test_other_changes_keep_the_name_and_merge_by_it(mm: MmStruct) -> None:
    mmap(mm, 6, at=BASE)
    give(mm, 0, 3, "one")
    give(mm, 3, 3, "two")
    for change in (
        lambda: do_mprotect(mm, page(2), 2 * PAGE_SIZE, READ),
        lambda: advise(mm, 2, 2, Madv.DONTDUMP),
        lambda: do_mlock(mm, page(2), 2 * PAGE_SIZE, VM_LOCKED, privileged=True),
    ):
        change()
        parts = [(0, 2, "[anon:one]"), (2, 1, "[anon:one]"), (3, 1, "[anon:two]"), (4, 2, "[anon:two]")]
        assert names(mm) == parts
    do_mprotect(mm, page(2), 2 * PAGE_SIZE, RW)
    advise(mm, 2, 2, Madv.DODUMP)
    do_mlock(mm, BASE, 6 * PAGE_SIZE, VM_LOCKED, privileged=True)
    assert names(mm) == [(0, 3, "[anon:one]"), (3, 3, "[anon:two]")]


def test_mremap_takes_the_name_along(mm: MmStruct) -> None:
    mmap(mm, 2, at=BASE)
    give(mm, 0, 2, "one")
    store(mm, BASE, b"x")
    remap(mm, 0, 2, 3)
    assert names(mm) == [(0, 3, "[anon:one]")]
    mmap(mm, 1, at=page(9))
    remap(mm, 0, 1, 1, TO, page(8))
    assert names(mm) == [(1, 2, "[anon:one]"), (8, 1, "[anon:one]"), (9, 1, "")]
    remap(mm, 1, 1, 1, KEEP, page(20))
    assert (1, 2, "[anon:one]") in names(mm)
    assert (20, 1, "[anon:one]") in names(mm)


def test_mremap_merges_only_into_memory_of_that_name(mm: MmStruct) -> None:
    for first in (0, 4, 8):
        mmap(mm, 1, at=page(first))
    give(mm, 0, 1, "one")
    give(mm, 4, 1, "one")
    remap(mm, 0, 1, 1, MAYMOVE | TO, page(5))
    assert names(mm) == [(4, 2, "[anon:one]"), (8, 1, "")]
    remap(mm, 8, 1, 1, MAYMOVE | TO, page(6))
    assert names(mm) == [(4, 2, "[anon:one]"), (6, 1, "")]


def test_a_child_has_the_names(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 2, at=BASE)
    give(mm, 0, 1, "one")
    child = machine.fork(mm)
    assert names(child) == [(0, 1, "[anon:one]"), (1, 1, "")]
    give(child, 0, 1, None)
    assert names(mm) == [(0, 1, "[anon:one]"), (1, 1, "")]


def test_a_named_heap_grows_beside_its_named_part(mm: MmStruct) -> None:
    mm.start_brk = mm.brk = BASE
    do_brk(mm, page(2), privileged=False)
    give(mm, 0, 2, "one")
    do_brk(mm, page(3), privileged=False)
    assert names(mm) == [(0, 2, "[anon:one]"), (2, 1, "")]


def test_shared_memory_without_a_file_may_have_a_name(mm: MmStruct) -> None:
    mmap(mm, 2, RW, SHARED_ANON, at=BASE)
    give(mm, 0, 1, "one")
    assert names(mm) == [(0, 1, "[anon_shmem:one]"), (1, 1, "")]


def test_a_file_has_its_own_name(machine: Machine, mm: MmStruct) -> None:
    """The mappings before it are named all the same."""
    mmap(mm, 1, at=BASE)
    for first, flags in ((1, PRIVATE), (2, SHARED)):
        mmap(mm, 1, RW, flags, at=page(first), file=machine.new_file(bytes(PAGE_SIZE))[0])
        assert fails(errno.EBADF, give, mm, 0, 3, "one")
    assert [name for _, _, name in names(mm)] == ["[anon:one]", "", ""]


def test_ranges(mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    mmap(mm, 1, at=page(2))
    assert fails(errno.ENOMEM, give, mm, 0, 3, "one")
    assert names(mm) == [(0, 1, "[anon:one]"), (2, 1, "[anon:one]")]
    assert fails(errno.ENOMEM, give, mm, 3, 1, "one")
    give(mm, 3, 0, "nothing")
    for start, length in ((BASE + 1, 1), (BASE, (1 << 64) - 1), (page(1), (1 << 64) - PAGE_SIZE)):
        assert fails(errno.EINVAL, run_at_once, set_anon_name_in_pieces(mm, start, length, "one"))


def test_too_many_mappings(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 3, at=BASE)
    machine.sysctl.max_map_count = 1
    assert fails(errno.EAGAIN, give, mm, 1, 1, "one")
    assert layout(mm) == [(0, 3, RW)]
    assert vma_at(mm, BASE).anon_name == ""
