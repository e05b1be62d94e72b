"""Windows of a file that a program maps by itself: each is what its read fault would map."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.hw.paging import PTE_PFN_MASK
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.truncate import truncate_pagecache
from shared.uapi.native import ADVANCE_TAKEN, ADVANCE_WORDS, NR_ADVANCES
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Vaddr
from tests.support.machine import PRIVATE, READ, RW, SHARED, Machine, access, checked, entry, mmap
from tests.tlb.advancing import PAGES, RAM, REASONS, TEXT, Stub, begun, seen

_WINDOWS = 3 + 4
"""The faults that bring TEXT: its first eight pages are no whole window."""
_OTHER = TEXT + (1024 << PAGE_SHIFT)


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(RAM))


@pytest.fixture
def stub(machine: Machine) -> Iterator[Stub]:
    stub = Stub(machine, begun(machine))
    yield stub
    stub.advances.end()


def present(mm: MmStruct, start: Vaddr = TEXT, pages: int = PAGES) -> list[int]:
    """Return the numbers of the pages of a mapping that have an entry."""
    there = []
    for number in range(pages):
        vaddr = start + (number << PAGE_SHIFT)
        if mm.page_table.find_pte(vaddr) is not None and entry(mm, vaddr):
            there.append(number)
    return there


def test_a_mapping_needs_one_request_for_each_leaf_table(stub: Stub) -> None:
    for number in range(PAGES):
        stub.read(TEXT + (number << PAGE_SHIFT))
    assert stub.windows == _WINDOWS - 2
    stub.book()
    assert stub.process.min_flt == _WINDOWS
    assert present(stub.mm) == list(range(PAGES))
    assert stub.mm.rss.counts[0] == PAGES
    assert not stub.tlb.check()


def test_a_window_is_booked_before_somebody_looks(stub: Stub) -> None:
    stub.read(TEXT + (44 << PAGE_SHIFT))
    before = present(stub.mm)
    assert stub.take_window(TEXT + (60 << PAGE_SHIFT))
    assert present(stub.mm) == before
    stub.all.recall()
    assert len(present(stub.mm)) == len(before) + 16
    assert not stub.take_window(TEXT + (75 << PAGE_SHIFT))


def test_a_recall_in_the_middle_maps_nothing_by_itself(stub: Stub) -> None:
    """The stub sees the recall, so it asks; or kerneld sees that the window is taken."""
    stub.read(TEXT + (44 << PAGE_SHIFT))
    vaddr = TEXT + (60 << PAGE_SHIFT)
    assert not stub.take_window(vaddr, when_busy=stub.all.recall)
    stub.read(vaddr)
    stub.book()
    stub.machine.check()
    assert stub.process.min_flt == 2
    assert not stub.tlb.check()


def test_only_the_windows_of_what_a_call_changes_are_recalled(stub: Stub) -> None:
    file = stub.mm.vmas.lookup(TEXT).file  # type: ignore[union-attr]
    mmap(stub.mm, PAGES, READ, PRIVATE, at=_OTHER, file=file)
    stub.read(TEXT + (44 << PAGE_SHIFT))
    stub.read(_OTHER)
    stub.call(lambda mm: do_mprotect(mm, _OTHER, PAGE_SIZE, RW), _OTHER, _OTHER + PAGE_SIZE)
    assert not stub.take_window(_OTHER + (40 << PAGE_SHIFT))
    assert stub.take_window(TEXT + (60 << PAGE_SHIFT))


@pytest.mark.parametrize("reason", REASONS)
def test_nothing_is_given_where_it_could_be_seen(stub: Stub, reason: str) -> None:
    with seen(stub, reason, TEXT):
        stub.read(TEXT + (44 << PAGE_SHIFT))
    assert not stub.all.live


@pytest.mark.parametrize(("prot", "flags"), [(READ, SHARED), (RW, PRIVATE)])
def test_nothing_is_given_of_a_mapping_that_others_or_a_write_may_change(stub: Stub, prot: int, flags: int) -> None:
    file = stub.mm.vmas.lookup(TEXT).file  # type: ignore[union-attr]
    mmap(stub.mm, PAGES, prot, flags, at=_OTHER, file=file)
    stub.read(_OTHER)
    assert not stub.all.live


def test_a_window_with_a_page_that_is_not_cached_is_asked_for(stub: Stub) -> None:
    mapping = stub.mm.vmas.lookup(TEXT).file.mapping  # type: ignore[union-attr]
    absent = 60
    mapping.drop_pages([absent])
    stub.read(TEXT + (44 << PAGE_SHIFT))
    assert not stub.take_window(TEXT + (59 << PAGE_SHIFT))
    assert stub.take_window(TEXT + (75 << PAGE_SHIFT))


def test_a_page_that_is_mapped_already_stays_as_it_is(stub: Stub) -> None:
    """Another entry of the window is there, by a call: the window leaves it, and maps the others."""
    mapping = stub.mm.vmas.lookup(TEXT).file.mapping  # type: ignore[union-attr]
    stub.read(TEXT + (44 << PAGE_SHIFT))
    access(stub.mm, TEXT + (60 << PAGE_SHIFT))
    assert stub.take_window(TEXT + (61 << PAGE_SHIFT))
    stub.book()
    stub.machine.check()
    assert entry(stub.mm, TEXT + (60 << PAGE_SHIFT)) & PTE_PFN_MASK == mapping.pages[60] << PAGE_SHIFT
    assert not stub.tlb.check()


def test_a_page_that_has_left_the_page_cache_is_not_mapped(stub: Stub) -> None:
    """That must not happen without a recall; a frame that is somebody else's by now is not mapped nevertheless."""
    mapping = stub.mm.vmas.lookup(TEXT).file.mapping  # type: ignore[union-attr]
    stub.read(TEXT + (44 << PAGE_SHIFT))
    truncate_pagecache(mapping, 60 << PAGE_SHIFT)
    assert stub.tlb.check(), "the check of the invariants sees it"
    assert stub.take_window(TEXT + (70 << PAGE_SHIFT))
    stub.book()
    assert 70 not in present(stub.mm)
    assert not stub.tlb.granted(TEXT + (70 << PAGE_SHIFT), 1)[0]


def test_what_the_program_says_of_other_windows_is_ignored(stub: Stub) -> None:
    stub.read(TEXT + (44 << PAGE_SHIFT))
    for row in range(2):
        stub.words[(NR_ADVANCES + row) * ADVANCE_WORDS + ADVANCE_TAKEN] = (1 << 64) - 1
    stub.book()
    stub.machine.check()
    assert present(stub.mm) == list(range(40, PAGES))


@pytest.mark.parametrize("is_first", [False, True])
def test_a_page_is_copied_from_the_page_cache(machine: Machine, is_first: bool) -> None:
    stub = Stub(machine, begun(machine), has_ring=is_first)
    file = stub.mm.vmas.lookup(TEXT).file  # type: ignore[union-attr]
    mmap(stub.mm, PAGES, RW, PRIVATE, at=_OTHER, file=file)
    for number in range(PAGES):
        stub.store(_OTHER + (number << PAGE_SHIFT), b"x")
    assert stub.asked == 2
    stub.book()
    machine.check()
    for number in range(PAGES):
        pfn = (entry(stub.mm, _OTHER + (number << PAGE_SHIFT)) & PTE_PFN_MASK) >> PAGE_SHIFT
        assert bytes(machine.ram.page(pfn)[:3]) == b"x" + bytes([number + 100]) * 2
    assert stub.mm.rss.counts[1] == PAGES
    stub.advances.end()
