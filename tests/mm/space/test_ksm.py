"""Mergeable memory: which VMAs get the flag, by advice and for a whole address space, and when they merge.

Source: Linux v6.8 mm/ksm.c: ksm_madvise(), ksm_enable_merge_any(), ksm_disable_merge_any(), ksm_add_vma().
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kerneld.mm.calls.brk import do_brk
from kerneld.mm.ksm.unmerge import set_merge_any
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.vm_flags import VM_MERGEABLE, VM_PFNMAP
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
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
    load,
    mmap,
    page,
    store,
    vma_at,
)


def merge_any(mm: MmStruct, wanted: bool) -> None:
    run_at_once(set_merge_any(mm, wanted))


def mergeable(mm: MmStruct) -> list[bool]:
    """Of each VMA, in order: whether its pages may be merged."""
    return [bool(vma.vm_flags & VM_MERGEABLE) for vma in mm.vmas]


def test_a_part_is_split_off_and_merges_back(mm: MmStruct) -> None:
    mmap(mm, 4, at=BASE)
    store(mm, page(1), b"x")
    advise(mm, 1, 2, Madv.MERGEABLE)
    assert (layout(mm), mergeable(mm)) == ([(0, 1, RW), (1, 2, RW), (3, 1, RW)], [False, True, False])
    advise(mm, 0, 4, Madv.MERGEABLE)
    assert (layout(mm), mergeable(mm)) == ([(0, 4, RW)], [True])
    advise(mm, 0, 4, Madv.UNMERGEABLE)
    assert (layout(mm), mergeable(mm), load(mm, page(1))) == ([(0, 4, RW)], [False], b"x")


def test_shared_memory_and_that_of_devices_ignore_the_advice(machine: Machine, mm: MmStruct) -> None:
    file, _ = machine.new_file(b"x" * 3 * PAGE_SIZE)
    mmap(mm, 1, flags=SHARED_ANON, at=page(0))
    mmap(mm, 1, flags=SHARED, at=page(1), file=file)
    mmap(mm, 1, READ, PRIVATE, at=page(2), file=file)
    mmap(mm, 2, at=page(3))
    advise(mm, 4, 1, Madv.DONTFORK)
    mm.set_vma_flags(vma_at(mm, page(4)), vma_at(mm, page(4)).vm_flags | VM_PFNMAP)
    advise(mm, 0, 5, Madv.MERGEABLE)
    assert mergeable(mm) == [False, False, True, True, False]


@pytest.mark.parametrize(
    "make",
    [
        lambda mm: mmap(mm, 1, at=page(4)),
        lambda mm: do_brk(mm, page(4) + 1, privileged=False),
    ],
    ids=["mmap", "brk"],
)
def test_a_new_vma_of_a_mergeable_address_space(mm: MmStruct, make: Callable[[MmStruct], object]) -> None:
    """It is tried without the flag first: so it does not merge with a neighbour that has it."""
    mmap(mm, 2, at=page(2))
    mm.start_brk = mm.brk = page(4)
    merge_any(mm, True)
    make(mm)
    assert (layout(mm), mergeable(mm)) == ([(2, 2, RW), (4, 1, RW)], [True, True])


def test_a_new_vma_that_merges_takes_the_flags_of_its_neighbour(mm: MmStruct) -> None:
    mmap(mm, 2, at=page(0))
    merge_any(mm, True)
    advise(mm, 0, 2, Madv.UNMERGEABLE)
    mmap(mm, 1, at=page(2))
    assert (layout(mm), mergeable(mm)) == ([(0, 3, RW)], [False])


def test_shared_memory_of_a_mergeable_address_space(mm: MmStruct) -> None:
    merge_any(mm, True)
    mmap(mm, 1, flags=SHARED_ANON, at=page(0))
    assert mergeable(mm) == [False]


def test_for_all_and_for_none_again(mm: MmStruct) -> None:
    mmap(mm, 3, at=BASE)
    mmap(mm, 1, flags=SHARED_ANON, at=page(5))
    advise(mm, 1, 1, Madv.MERGEABLE)
    merge_any(mm, False)
    assert mergeable(mm) == [False, True, False, False]  # it was not for all: nothing to take back
    merge_any(mm, True)
    merge_any(mm, True)
    assert (mm.merge_any, mergeable(mm)) == (True, [True, True, True, False])
    merge_any(mm, False)
    assert (mm.merge_any, mergeable(mm)) == (False, [False, False, False, False])
    assert layout(mm)[:3] == [(0, 1, RW), (1, 1, RW), (2, 1, RW)]


def test_a_child_is_as_its_parent(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    merge_any(mm, True)
    child = machine.fork(mm)
    mmap(child, 1, at=page(4))
    assert (child.merge_any, mergeable(child)) == (True, [True, True])
