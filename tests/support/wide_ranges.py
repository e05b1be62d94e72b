"""Address spaces with a wide range, or many VMAs, for tests of calls that go on in pieces; and what there is of one."""

from __future__ import annotations

from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Nr
from tests.support.in_process import Client
from tests.support.long_requests import call

BASE = 0x10_0000_0000
TABLES = 24
LENGTH = TABLES * PMD_SIZE
NONE, READ, RW = 0, Prot.READ.value, Prot.READ.value | Prot.WRITE.value
ANON = (Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE | Map.FIXED).value
NO_FD = (1 << 64) - 1


def one_vma(mm: MmStruct, who: Client) -> None:
    """A wide range that has been read, but for a few pages that have been written; VMAs on both sides."""
    assert call(who, Nr.MMAP, BASE - PMD_SIZE, LENGTH + 2 * PMD_SIZE, RW, ANON, NO_FD, 0).ret == BASE - PMD_SIZE
    do_mprotect(mm, BASE, LENGTH, READ)
    mm_populate(mm, BASE, BASE + LENGTH)
    do_mprotect(mm, BASE, LENGTH, RW)
    for table in range(0, TABLES, 5):
        assert call(who, Nr.STORE, BASE + table * PMD_SIZE + 7 * PAGE_SIZE, 1, data=b"x").ret == 1


def many_vmas(mm: MmStruct, who: Client) -> None:
    """Forty-eight VMAs, some of them with a page."""
    step = LENGTH // 48
    for number in range(48):
        vaddr = BASE + number * step
        prot = RW if number % 2 else READ
        assert call(who, Nr.MMAP, vaddr, step, prot, ANON, NO_FD, 0).ret == vaddr
        if number % 4 == 1:
            assert call(who, Nr.STORE, vaddr, 1, data=b"x").ret == 1


def state(mm: MmStruct) -> list[object]:
    """Return what there is of VMAs, and where an entry is."""
    vmas = [(vma.start, vma.end, vma.vm_flags, vma.pgoff, vma.anon_vma is None) for vma in mm.vmas]
    entries = mm.page_table.walk.entries(BASE - PMD_SIZE, BASE + LENGTH + PMD_SIZE)
    counters = mm.total_vm, mm.data_vm, mm.locked_vm, mm.map_count, mm.page_table.table_pages, list(mm.rss.counts)
    return [vmas, (entries != 0).tolist(), (entries & 3).tolist(), counters]


def mm_of(who: Client) -> MmStruct:
    assert who.thread is not None
    return who.thread.process.live_mm
