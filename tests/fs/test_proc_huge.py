"""What /proc says of huge pages."""

from __future__ import annotations

import struct

import numpy as np

from kerneld.hw.paging import entry_pfn
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.fault.fault import handle_mm_fault
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from tests.fs.world import World

HUGE = PMD_SIZE >> PAGE_SHIFT
HEAD, TAIL, THP, ZERO_PAGE, ANON, MMAP = 15, 16, 22, 24, 12, 11


def map_huge(world: World) -> int:
    """Map 4 MiB that may be huge: written at first, then read; returns the address."""
    mm = world.me.live_mm
    addr = world.map_anonymous(3 * HUGE)
    addr += -addr & PMD_SIZE - 1
    do_madvise(mm, addr, 2 * PMD_SIZE, Madv.HUGEPAGE)
    vma = mm.vmas.lookup(addr)
    assert vma is not None
    assert handle_mm_fault(mm, vma, addr, True) == 0
    assert handle_mm_fault(mm, vma, addr + PMD_SIZE, False) == 0
    return addr


def smaps_row(world: World, addr: int, key: str) -> int:
    """Return a number of the mapping that starts at an address."""
    block = world.text("self/smaps").split(f"{addr:x}-")[1]
    return int(next(line for line in block.splitlines() if line.startswith(key + ":")).split()[1])


def test_smaps_meminfo_and_vmstat(world: World) -> None:
    addr = map_huge(world)
    assert [smaps_row(world, addr, key) for key in ("Rss", "AnonHugePages", "THPeligible")] == [2048, 2048, 1]
    assert world.rows("meminfo")["AnonHugePages"] == "2048 kB"
    assert world.rows("self/smaps_rollup")["AnonHugePages"] == "2048 kB"
    vmstat = dict(line.split() for line in world.text("vmstat").splitlines())
    assert (vmstat["nr_anon_transparent_hugepages"], vmstat["nr_anon_pages"]) == ("1", "512")
    assert (vmstat["thp_fault_alloc"], vmstat["thp_zero_page_alloc"], vmstat["thp_split_pmd"]) == ("1", "1", "0")
    do_madvise(world.me.live_mm, addr, PAGE_SIZE, Madv.DONTNEED)
    assert [smaps_row(world, addr, key) for key in ("Rss", "AnonHugePages")] == [2044, 0]
    assert world.rows("meminfo")["AnonHugePages"] == "0 kB"
    vmstat = dict(line.split() for line in world.text("vmstat").splitlines())
    assert vmstat["thp_split_pmd"] == "1"
    do_madvise(world.me.live_mm, addr, 2 * PMD_SIZE, Madv.NOHUGEPAGE)
    assert smaps_row(world, addr, "THPeligible") == 0


def test_pagemap_kpagecount_and_kpageflags(world: World) -> None:
    addr = map_huge(world)
    mm = world.me.live_mm
    pmd = mm.page_table.find_huge_pmd(addr)
    assert pmd is not None
    head = entry_pfn(mm.frames.ram.words[pmd], addr)
    words = world.read("self/pagemap", offset=addr >> PAGE_SHIFT << 3, length=16 * HUGE)
    pfns = [word & (1 << 55) - 1 for word in struct.unpack(f"={2 * HUGE}Q", words)]
    zero = mm.frames.huge.zero_pfn
    assert zero is not None
    assert pfns == [*range(head, head + HUGE), *range(zero, zero + HUGE)]
    child = world.fork(world.me, 77)
    counts = np.frombuffer(world.read("kpagecount", offset=head * 8, length=8 * HUGE), dtype=np.uint64)
    assert set(counts.tolist()) == {2}
    world.forget(child)

    def bits(pfn: int) -> set[int]:
        (word,) = struct.unpack("=Q", world.read("kpageflags", offset=pfn * 8, length=8))
        return {bit for bit in (HEAD, TAIL, THP, ZERO_PAGE, ANON, MMAP) if word & 1 << bit}

    assert (bits(head), bits(head + HUGE - 1)) == ({HEAD, THP, ANON, MMAP}, {TAIL, THP, ANON, MMAP})
    assert (bits(zero), bits(zero + 1)) == ({HEAD, THP, ZERO_PAGE}, {TAIL, THP, ZERO_PAGE})
    assert bits(1) == {ZERO_PAGE}
    do_madvise(mm, addr + 9 * PAGE_SIZE, PAGE_SIZE, Madv.COLD)
    assert bits(head + 1) == {ANON, MMAP}


def test_pagemap_of_a_huge_page_goes_by_its_first_page(world: World) -> None:
    """Bit 56 says of all 512 whether the first has one who maps it (fs/proc/task_mmu.c:pagemap_pmd_range())."""
    addr = map_huge(world)

    def exclusive() -> set[int]:
        words = world.read("self/pagemap", offset=addr >> PAGE_SHIFT << 3, length=8 * HUGE)
        return {word >> 56 & 1 for word in struct.unpack(f"={HUGE}Q", words)}

    assert exclusive() == {1}
    child = world.fork(world.me, 77)
    assert exclusive() == {0}
    do_madvise(child.live_mm, addr, PAGE_SIZE, Madv.DONTNEED)
    assert exclusive() == {1}
    do_madvise(child.live_mm, addr, PMD_SIZE, Madv.DONTNEED)
    do_madvise(world.me.live_mm, addr + PAGE_SIZE, PAGE_SIZE, Madv.DONTFORK)
    assert exclusive() == {1}
    world.forget(child)


def test_pagemap_takes_the_huge_zero_page_for_a_file(world: World) -> None:
    """It is no anonymous page, and of an entry of 2 MiB Linux asks no more; of the zero page's it asks nothing."""
    addr = map_huge(world) + PMD_SIZE
    (word,) = struct.unpack("=Q", world.read("self/pagemap", offset=addr >> PAGE_SHIFT << 3, length=8))
    assert word >> 56 == 0xA0


def test_kpageflags_of_tails_have_what_is_each_pages_own(world: World) -> None:
    """The state of a huge page is its head's, also when small entries map it; split up, each page has it."""
    addr = map_huge(world)
    mm = world.me.live_mm
    pmd = mm.page_table.find_huge_pmd(addr)
    assert pmd is not None
    head = entry_pfn(mm.frames.ram.words[pmd], addr)

    def bits(pfn: int) -> set[int]:
        (word,) = struct.unpack("=Q", world.read("kpageflags", offset=pfn * 8, length=8))
        return {bit for bit in range(64) if word & 1 << bit}

    uptodate, dirty, lru, swapbacked = 3, 4, 5, 14
    tail = bits(head + 7)
    assert tail & {2, uptodate, dirty, lru, 6, swapbacked, 18} == set()
    assert tail >= {TAIL, THP, ANON, MMAP}
    assert bits(head) >= {HEAD, THP, ANON, MMAP, uptodate, lru, swapbacked}
    assert dirty not in bits(head)
    do_madvise(mm, addr + PAGE_SIZE, PAGE_SIZE, Madv.DONTNEED)
    assert bits(head + 7) == tail
    assert bits(head) >= {HEAD, THP, dirty}
    do_madvise(mm, addr + 9 * PAGE_SIZE, PAGE_SIZE, Madv.COLD)
    assert {HEAD, TAIL, THP} & (bits(head) | bits(head + 7)) == set()
    assert bits(head + 7) >= {uptodate, dirty, lru, swapbacked, ANON, MMAP}
