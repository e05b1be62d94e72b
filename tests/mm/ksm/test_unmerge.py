"""Merged pages get frames of their own again, by a call or because they move; and what other calls do to them.

Source: Linux v6.8 mm/ksm.c: break_ksm(), unmerge_and_remove_all_rmap_items(), and the callers of ksm_madvise().
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_RW, pte_present
from kerneld.mm.calls.mlock import do_mlock, do_munlock
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.frames.frames import PG_KSM, PG_UNEVICTABLE
from kerneld.mm.ksm.items import drop_items
from kerneld.mm.ksm.unmerge import set_merge_any
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.space.rss import Rss
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv, Mremap, Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.huge_machine import HUGE, HugeMachine
from tests.support.ksm import counts, fill, mergeable, merged, scan, sysfs, text, write_sysfs
from tests.support.machine import RW, Machine, advise, checked, entry, errno_of, load, mmap, page, pfn_of, store

MAYMOVE, FIXED = Mremap.MAYMOVE.value, Mremap.FIXED.value


@pytest.fixture
def swapping() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


def test_advice_breaks_a_part(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aaab")
    scan(machine, 2)
    advise(mm, 1, 1, Madv.UNMERGEABLE)
    assert (merged(mm, 4), text(mm, 4)) == ("k-k-", "aaab")
    assert not entry(mm, page(1)) & PTE_RW  # it is exclusive; the next store needs no copy
    scan(machine, 3)
    assert (merged(mm, 4), counts(machine)[:2]) == ("k-k-", (1, 1))


def test_advice_without_memory(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aab")
    scan(machine, 2)
    with machine.failing_allocation(1) as failed:
        assert errno_of(lambda: advise(mm, 0, 3, Madv.UNMERGEABLE)) == errno.EAGAIN
    assert (failed, merged(mm, 3)) == ([1], "-k-")
    advise(mm, 0, 3, Madv.UNMERGEABLE)
    assert merged(mm, 3) == "---"


def test_prctl_breaks_all_or_nothing_changes(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 3, at=page(0))
    fill(mm, "aab")
    run_at_once(set_merge_any(mm, True))
    scan(machine, 2)
    assert merged(mm, 3) == "kk-"
    with machine.failing_allocation(1):
        assert errno_of(lambda: run_at_once(set_merge_any(mm, False))) == errno.ENOMEM
    assert mm.merge_any
    run_at_once(set_merge_any(mm, False))
    assert (merged(mm, 3), text(mm, 3), mm.merge_any) == ("---", "aab", False)


def test_a_write_to_run_breaks_everything(machine: Machine, mm: MmStruct) -> None:
    other = machine.new_mm()
    mergeable(mm, "a" * 30)
    mergeable(other, "ab0")
    write_sysfs(machine, "use_zero_pages", "1")
    write_sysfs(machine, "run", 1)
    scan(machine, 2)
    machine.exit(other)
    write_sysfs(machine, "run", 2)
    machine.check()
    assert (merged(mm, 30), counts(machine), mm.ksm_rmap_items) == ("-" * 30, (0, 0, 0, 0), 0)
    assert (sysfs(machine, "full_scans"), sysfs(machine, "ksm_zero_pages")) == (0, 0)
    write_sysfs(machine, "run", 1)
    scan(machine, 2)
    assert counts(machine) == (1, 29, 0, 0)


def test_a_write_to_run_without_memory_stops(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa")
    scan(machine, 2)
    with machine.failing_allocation(1), pytest.raises(SysError):
        write_sysfs(machine, "run", 2)
    assert sysfs(machine, "run") == 0


def test_a_moved_page_is_broken_first(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa")
    scan(machine, 2)
    do_mremap(mm, page(1), PAGE_SIZE, PAGE_SIZE, MAYMOVE | FIXED, page(9), privileged=False)
    assert (merged(mm, 2), merged(mm, 1, 9), text(mm, 1, 9)) == ("k-", "-", "a")
    scan(machine, 2)
    assert (merged(mm, 1, 9), counts(machine)[:2]) == ("k", (1, 1))


def test_unmapped_and_mapped_anew(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aaa")
    scan(machine, 2)
    do_munmap(mm, page(1), PAGE_SIZE)
    mergeable(mm, "b", 1)
    scan(machine, 2)
    assert (text(mm, 3), merged(mm, 3), counts(machine)) == ("aba", "k-k", (1, 1, 1, 0))


def test_rights_change(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa")
    scan(machine, 2)
    do_mprotect(mm, page(0), 2 * PAGE_SIZE, Prot.READ.value)
    do_mprotect(mm, page(0), 2 * PAGE_SIZE, RW)
    machine.check()
    store(mm, page(0), b"x")
    assert (text(mm, 2), merged(mm, 2)) == ("xa", "-k")


def test_locked_pages_are_merged_and_counted(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aaaa")
    do_mlock(mm, page(0), 3 * PAGE_SIZE, VM_LOCKED, privileged=True)
    scan(machine, 2)
    pfn, frames = pfn_of(mm, page(0)), machine.frames
    assert (merged(mm, 4), frames.flags_at[pfn] & PG_UNEVICTABLE != 0, frames.mlock_more[pfn]) == ("kkkk", True, 2)
    store(mm, page(0), b"x")
    assert frames.mlock_more[pfn] == 1
    do_munlock(mm, page(0), 3 * PAGE_SIZE)
    assert not frames.flags_at[pfn] & PG_UNEVICTABLE


def test_swapped_out_and_in(swapping: Machine) -> None:
    """A merged page that leaves memory is a usual page for the first who wants it back; others get copies.

    The child has the pages at the same places as its parent: there it needs no copy.
    """
    mm, other = swapping.new_mm(), swapping.new_mm()
    mergeable(mm, "aaab")
    mergeable(other, "ba")
    scan(swapping, 2)
    assert swapping.reclaim_all() == 2
    assert mm.rss.counts[Rss.SWAP] == 4
    assert other.rss.counts[Rss.SWAP] == 2
    child = swapping.fork(mm)
    swapping.check()
    for each, contents in ((mm, "aaab"), (other, "ba"), (child, "aaab")):
        assert "".join(load(each, page(number)).decode() for number in range(len(contents))) == contents
        swapping.check()
    assert merged(mm, 4) == "----"
    assert swapping.frames.vmstat["ksm_swpin_copy"] == 6
    scan(swapping, 2)
    assert (merged(mm, 4), merged(other, 2), counts(swapping)[:2]) == ("kkkk", "kk", (2, 8))


def test_a_merged_page_in_the_swap_cache_is_mapped_again(swapping: Machine) -> None:
    mm = swapping.new_mm()
    mergeable(mm, "aa")
    scan(swapping, 2)
    pfn = pfn_of(mm, page(0))
    swapping.frames.get_page(pfn)
    swapping.reclaim_all()
    assert pte_present(entry(mm, page(0)))  # a page that a call holds stays
    swapping.frames.put_page(pfn)
    assert merged(mm, 2) == "kk"


def test_a_page_that_its_parent_merged_stays_if_the_walk_does_not_find_it(swapping: Machine) -> None:
    mm = swapping.new_mm()
    mergeable(mm, "aa")
    scan(swapping, 2)
    child = swapping.fork(mm)
    swapping.exit(mm)
    ksm = swapping.frames.ksm
    assert ksm is not None
    # The parent's items go; the child's pages have not been scanned yet.
    slot = next(slot for slot in ksm.slots if slot.mm is mm)
    drop_items(ksm, swapping.frames, slot, 0, 2)
    assert swapping.reclaim_all() == 0
    swapping.check()
    assert (merged(child, 2), text(child, 2)) == ("kk", "aa")
    store(child, page(0), b"x")
    assert text(child, 2) == "xa"


def test_huge_pages_are_split_where_they_are_merged() -> None:
    for machine in checked(HugeMachine(ram_bytes=32 << 20)):
        mm = machine.new_mm()
        mmap(mm, 2 * HUGE, at=page(0))
        advise(mm, 0, 2 * HUGE, Madv.MERGEABLE)
        contents = "a" + "0" * (HUGE - 2) + "b"
        fill(mm, contents[0])
        store(mm, page(HUGE - 1), b"b" * PAGE_SIZE)
        mmap(mm, 1, at=page(3 * HUGE))
        advise(mm, 3 * HUGE, 1, Madv.MERGEABLE)
        fill(mm, "b", 3 * HUGE)
        scan(machine)
        assert machine.frames.huge.entire_mapcount
        scan(machine, 2)
        assert not machine.frames.huge.entire_mapcount
        assert (merged(mm, 1), merged(mm, 1, HUGE - 1), merged(mm, 1, 3 * HUGE)) == ("-", "k", "k")
        # A frame serves 256 pages at most, so there are two frames of zeros. Of the two pages of zeros that were
        # compared first, the second is merged only now: the huge page was split instead.
        assert counts(machine)[:2] == (3, HUGE - 3)
        assert (sysfs(machine, "stable_node_chains"), sysfs(machine, "stable_node_dups")) == (1, 2)


def test_every_failing_allocation_of_a_store(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa")
    scan(machine, 2)
    with machine.failing_allocation(0) as failed, pytest.raises(Exception, match="9"):
        store(mm, page(0), b"x")
    assert failed == [1]
    machine.check()
    assert (merged(mm, 2), machine.frames.flags_at[pfn_of(mm, page(0))] & PG_KSM != 0) == ("kk", True)
