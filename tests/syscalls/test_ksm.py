"""KSM through requests: two programs' pages are merged between requests, and every view of memory shows it."""

from __future__ import annotations

import struct

from kerneld.fs.proc_page import KPF_KSM
from kerneld.mm.space.ksm import ksm_of
from shared.uapi.mman import Madv, Pr
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import ROOT, Program, World, page

EXCLUSIVE = 1 << 56
PAGES = 4


def merge_all(world: World) -> None:
    """Let ksmd run until two more full scans are over."""
    ksm = ksm_of(world.kernel.frames)
    ksm.settings.run, ksm.settings.sleep_millisecs = 1, 0
    until = ksm.scan.seqnr + 2
    while ksm.scan.seqnr < until:
        world.kernel.run_ksmd()


def read(reader: Program, path: str, offset: int = 0, length: int = PAGE_SIZE) -> bytes:
    return reader.answer(Nr.PROCREAD, offset, length, data=path.encode()).data


def field(reader: Program, path: str, name: str) -> int:
    lines = read(reader, path).decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.split()[0].rstrip(":") == name))


def with_pages(world: World) -> Program:
    """A program with pages, all alike but the last, which is its own."""
    program = world.attach(ROOT)
    program.mmap(PAGES, at=page(0))
    for number in range(PAGES - 1):
        program.store(page(number), b"same")
    program.store(page(PAGES - 1), str(program.pid).encode())
    return program


def test_the_views_of_merged_pages(world: World) -> None:
    one, two = with_pages(world), with_pages(world)
    assert one.call(Nr.MADVISE, page(0), PAGES * PAGE_SIZE, Madv.MERGEABLE) == 0
    assert two.call(Nr.PRCTL, Pr.SET_MEMORY_MERGE, 1) == 0
    merge_all(world)
    assert read(one, f"{two.pid}/ksm_merging_pages") == b"3\n"
    items, profit = PAGES, 3 * PAGE_SIZE - PAGES * 64
    assert read(one, "self/ksm_stat").decode() == (
        f"ksm_rmap_items {items}\nksm_zero_pages 0\nksm_merging_pages 3\nksm_process_profit {profit}\n"
    )
    assert field(one, "self/smaps_rollup", "KSM") == 3 * PAGE_SIZE >> 10
    assert field(one, "self/smaps_rollup", "Rss") == PAGES * PAGE_SIZE >> 10
    assert field(one, "self/smaps_rollup", "Pss") == 5  # its own page, and three sixths, in whole kB
    words = [struct.unpack("<Q", read(each, "self/pagemap", page(0) >> 9, 8))[0] for each in (one, two)]
    assert words[0] == words[1]
    assert not words[0] & EXCLUSIVE
    pfn = words[0] & (1 << 55) - 1
    assert struct.unpack("<Q", read(one, "kpageflags", pfn * 8, 8))[0] & 1 << KPF_KSM
    assert struct.unpack("<Q", read(one, "kpagecount", pfn * 8, 8))[0] == 6
    two.store(page(1), b"x")
    assert (one.load(page(1)), two.load(page(1)), two.load(page(1) + 1)) == (b"s", b"x", b"a")
    assert field(one, "vmstat", "cow_ksm") == 1


def test_a_call_breaks_what_is_merged_while_others_are_served(world: World) -> None:
    one, two = with_pages(world), with_pages(world)
    for each in (one, two):
        assert each.call(Nr.MADVISE, page(0), PAGES * PAGE_SIZE, Madv.MERGEABLE) == 0
    merge_all(world)
    assert one.call(Nr.MADVISE, page(0), PAGES * PAGE_SIZE, Madv.UNMERGEABLE) == 0
    assert (field(one, "self/smaps_rollup", "KSM"), field(two, "self/smaps_rollup", "KSM")) == (0, 12)
    assert two.call(Nr.MREMAP, page(0), PAGE_SIZE, PAGE_SIZE, 3, page(9)) == page(9)
    assert field(two, "self/smaps_rollup", "KSM") == 8
    assert two.load(page(9), 4) == b"same"
    assert two.call(Nr.PRCTL, Pr.SET_MEMORY_MERGE, 1) == 0
    assert two.call(Nr.PRCTL, Pr.SET_MEMORY_MERGE, 0) == 0
    assert field(two, "self/smaps_rollup", "KSM") == 0


def test_ksmd_rests_until_something_is_mergeable(world: World) -> None:
    ksm_of(world.kernel.frames).settings.run = 1
    program = with_pages(world)
    assert not world.kernel.ksmd.is_awake
    program.call(Nr.MADVISE, page(0), PAGE_SIZE, Madv.MERGEABLE)
    assert world.kernel.ksmd.is_awake
