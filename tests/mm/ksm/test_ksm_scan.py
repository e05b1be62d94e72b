"""Pages with equal contents become one frame: who is merged, when, what is counted, and how a store undoes it.

Source: Linux v6.8 mm/ksm.c, Documentation/admin-guide/mm/ksm.rst.
"""

from __future__ import annotations

import pytest

from kerneld.mm.frames.frames import PG_ANON_EXCLUSIVE
from kerneld.mm.ksm.scan import ksm_do_scan
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rss import Rss
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from tests.support.ksm import counts, fill, mergeable, merged, scan, sysfs, text, write_sysfs
from tests.support.machine import Machine, advise, load, mmap, page, pfn_of, store


def test_equal_pages_of_two_address_spaces_become_one(machine: Machine, mm: MmStruct) -> None:
    other = machine.new_mm()
    mergeable(mm, "ab.")
    mergeable(other, "ca")
    free, resident = machine.frames.free_pages, mm.rss.counts[Rss.ANON]
    scan(machine)
    assert (counts(machine), machine.frames.free_pages) == ((0, 0, 0, 4), free)
    scan(machine)
    assert counts(machine) == (1, 1, 2, 0)
    assert pfn_of(mm, page(0)) == pfn_of(other, page(1))
    assert (machine.frames.free_pages, mm.rss.counts[Rss.ANON]) == (free + 1, resident)
    assert (text(mm, 3), text(other, 2)) == ("ab.", "ca")
    assert (merged(mm, 2), merged(other, 2)) == ("k-", "-k")
    assert (mm.ksm_merging_pages, mm.ksm_rmap_items) == (1, 2)
    assert sysfs(machine, "full_scans") == 2
    assert sysfs(machine, "pages_scanned") == 8
    assert sysfs(machine, "general_profit") == PAGE_SIZE - 4 * 64


def test_a_store_copies_and_the_others_keep_the_page(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aaa")
    scan(machine, 2)
    assert (merged(mm, 3), counts(machine)) == ("kkk", (1, 2, 0, 0))
    store(mm, page(1), b"x")
    assert (merged(mm, 3), text(mm, 3), machine.frames.vmstat["cow_ksm"]) == ("k-k", "axa", 1)
    assert machine.frames.flags_at[pfn_of(mm, page(1))] & PG_ANON_EXCLUSIVE
    scan(machine)
    assert counts(machine) == (1, 1, 0, 1)


def test_the_last_one_is_copied_too(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa")
    scan(machine, 2)
    before = pfn_of(mm, page(0))
    fill(mm, "bc")
    assert before not in (pfn_of(mm, page(0)), pfn_of(mm, page(1)))
    assert machine.frames.refcount_at[before] == 0


def test_a_page_that_changes_between_scans_is_not_merged(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "ab")
    scan(machine)
    fill(mm, "cc")
    scan(machine)
    assert counts(machine) == (0, 0, 0, 2)
    scan(machine)
    assert (merged(mm, 2), counts(machine)) == ("kk", (1, 1, 0, 0))


def test_a_new_page_joins_a_merged_one_in_its_first_scan(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa.")
    scan(machine, 2)
    fill(mm, "a", 2)
    scan(machine)
    assert (merged(mm, 3), counts(machine)) == ("kkk", (1, 2, 0, 0))


def test_the_unstable_tree_is_built_anew(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "abcdefgh")
    write_sysfs(machine, "smart_scan", 0)
    scan(machine, 3)
    fill(mm, "b", 7)
    scan(machine)
    assert counts(machine) == (0, 0, 7, 1)
    scan(machine)
    assert (merged(mm, 8), counts(machine)) == ("-k-----k", (1, 1, 6, 0))


def test_memory_that_is_not_mergeable_stays(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa")
    mmap(mm, 2, at=page(4))
    fill(mm, "aa", 4)
    scan(machine, 3)
    assert (merged(mm, 6), counts(machine)) == ("kk----", (1, 1, 0, 0))


def test_a_page_that_a_call_holds_is_not_merged(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa")
    scan(machine)
    pfn = pfn_of(mm, page(1))
    machine.frames.get_page(pfn)
    for _ in ksm_do_scan(ksm_of(machine.frames), machine.frames, 2, lambda mm: False):
        pass
    machine.frames.put_page(pfn)
    assert merged(mm, 2) == "--"
    scan(machine, 2)
    assert merged(mm, 2) == "kk"


def test_pages_that_fork_shares_are_merged_in_both(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "ab")
    child = machine.fork(mm)
    mergeable(child, "b", 4)
    scan(machine, 3)
    assert (merged(mm, 2), merged(child, 2), merged(child, 1, 4)) == ("-k", "-k", "k")
    store(child, page(1), b"x")
    assert (text(mm, 2), text(child, 2)) == ("ab", "ax")


def test_a_child_of_merged_pages(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aab")
    scan(machine, 2)
    child = machine.fork(mm)
    assert (merged(child, 3), child.ksm_merging_pages, counts(machine)) == ("kk-", 0, (1, 1, 1, 0))
    scan(machine)
    assert (child.ksm_merging_pages, counts(machine)[:2]) == (2, (1, 3))
    machine.exit(mm)
    assert (merged(child, 3), text(child, 3)) == ("kk-", "aab")
    scan(machine)
    assert counts(machine)[:2] == (1, 1)


def test_the_memory_of_an_ended_program_is_forgotten_by_the_next_scan(machine: Machine, mm: MmStruct) -> None:
    other = machine.new_mm()
    mergeable(mm, "ab")
    mergeable(other, "ab")
    scan(machine, 2)
    machine.exit(other)
    assert counts(machine) == (2, 2, 0, 0)
    scan(machine)
    assert counts(machine) == (2, 0, 0, 0)
    machine.exit(mm)
    scan(machine)
    assert (counts(machine), list(ksm_of(machine.frames).slots)) == ((0, 0, 0, 0), [])


def test_an_address_space_without_mergeable_memory_leaves_the_list(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa")
    scan(machine, 2)
    advise(mm, 0, 2, Madv.UNMERGEABLE)
    scan(machine)
    assert (mm.ksm_slot, mm.ksm_rmap_items, counts(machine)) == (None, 0, (0, 0, 0, 0))
    mergeable(mm, "aa", 4)
    assert mm.ksm_slot is not None


def test_unmapped_pages_are_forgotten(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aabb")
    scan(machine, 2)
    advise(mm, 1, 2, Madv.DONTNEED)
    scan(machine)
    assert (text(mm, 4), counts(machine), mm.ksm_rmap_items) == ("a..b", (2, 0, 0, 0), 2)


def test_pages_of_zeros_take_the_zero_page(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "00a")
    write_sysfs(machine, "use_zero_pages", "y")
    free = machine.frames.free_pages
    scan(machine, 2)
    assert (sysfs(machine, "ksm_zero_pages"), counts(machine)[:2]) == (2, (0, 0))
    assert (machine.frames.free_pages, mm.rss.counts[Rss.ANON], pfn_of(mm, page(0))) == (free + 2, 1, 1)
    child = machine.fork(mm)
    assert (sysfs(machine, "ksm_zero_pages"), child.rss.ksm_zero_pages) == (4, 2)
    store(mm, page(0), b"x")
    assert (sysfs(machine, "ksm_zero_pages"), mm.rss.ksm_zero_pages) == (3, 1)
    advise(mm, 1, 1, Madv.UNMERGEABLE)
    assert (sysfs(machine, "ksm_zero_pages"), load(mm, page(1))) == (2, b"\0")
    assert pfn_of(mm, page(1)) > 1
    machine.exit(child)
    assert sysfs(machine, "ksm_zero_pages") == 0


def test_a_scan_passes_over_pages_that_were_tried_in_vain(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "a")
    skipped = []
    for _ in range(14):
        before = sysfs(machine, "pages_skipped")
        scan(machine)
        skipped.append(sysfs(machine, "pages_skipped") - before)
    # Source: skip_age(): after four looks one scan is skipped, then 1, 2 …
    assert skipped == [0, 0, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("advice", [Madv.UNMERGEABLE, Madv.DONTNEED], ids=lambda advice: advice.name)
def test_many_entries_of_one_frame_go_at_once(machine: Machine, mm: MmStruct, advice: Madv) -> None:
    """One leaf table has a frame often, and each entry counts."""
    mergeable(mm, "a" * 200)
    scan(machine, 2)
    assert counts(machine) == (1, 199, 0, 0)
    child = machine.fork(mm)
    machine.check()
    advise(child, 0, 200, advice)
    machine.check()
    advise(mm, 50, 100, advice)
    assert merged(mm, 200) == "k" * 50 + "-" * 100 + "k" * 50
