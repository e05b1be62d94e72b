"""Huge pages of real processes: the shadow table's 4 KiB entries are right throughout, and nothing leaks."""

from __future__ import annotations

from shared.uapi.mman import Madv
from tests.e2e.watch import PAGE, START, Watch
from tests.support.client import Client

HUGE = 512
ANON_FIXED, RW = 0x32, 3


def test_a_huge_page_is_512_entries_until_its_end(inspector: Client, target: Client) -> None:
    watch = Watch(inspector, target, pages=2 * HUGE).begin()
    p = target.p
    p.mmap(START, 2 * HUGE * PAGE, RW, ANON_FIXED)
    p.madvise(START, 2 * HUGE * PAGE, Madv.HUGEPAGE)
    p.mem.store(START + 5 * PAGE, b"huge")
    assert watch.letters() == "M" * HUGE + "A" * HUGE
    pfns = watch.pfns()
    assert pfns[:HUGE] == [*range(pfns[0], pfns[0] + HUGE)]
    assert "AnonHugePages:      2048 kB" in p.read_proc("self/smaps_rollup").decode()
    p.mem.load(START + HUGE * PAGE, 1)
    assert watch.letters() == "M" * 2 * HUGE
    assert watch.is_true()

    child = target.fork()
    child.p.mem.store(START + 5 * PAGE, b"mine")
    assert watch.pfns()[:HUGE] == pfns[:HUGE]
    p.mem.store(START + 6 * PAGE, b"parent")
    changed = watch.pfns()
    assert [index for index in range(HUGE) if changed[index] != pfns[index]] == [6]
    assert (p.mem.load(START + 5 * PAGE, 4), child.p.mem.load(START + 5 * PAGE, 4)) == (b"huge", b"mine")
    child.close()

    p.munmap(START + 100 * PAGE, PAGE)
    assert watch.letters() == "M" * 100 + "." + "M" * (2 * HUGE - 101)
    assert watch.is_true()
    p.mprotect(START + HUGE * PAGE, PAGE, 0)
    assert watch.is_true()
    p.madvise(START + 200 * PAGE, 2 * PAGE, Madv.DONTNEED)
    assert watch.letters()[198:204] == "MMAAMM"
    p.munmap(START, 2 * HUGE * PAGE)
    assert watch.letters() == "." * 2 * HUGE
    inspector.p.shadowpt_close()
