"""Compares the model that a record makes with the machine that was recorded: everything, bit for bit."""

from __future__ import annotations

import numpy as np

from kerneld.mm.files.filemap import AddressSpace as PageCache
from kerneld.mm.frames.frames import PG_SWAPCACHE
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pagewalk import Leaf
from kerneld.shadowpt.describe import describe
from kerneld.syscalls.kernel import Kernel
from kerneld.trace.probes.pgtable import tables_of
from shared.recording.address_space import AddressSpace
from shared.recording.machine import PCP, TAKEN, Machine
from shared.recording.physical import free_blocks, swap_users
from shared.recording.shadow import shadow_entries
from shared.trace.event import PRESENT, PSE, run_of
from shared.trace.state_events import Level
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, TASK_SIZE, Vaddr
from shared.uapi.shadowpt import MAX_SPT_RANGE


def entries_there(mm: MmStruct) -> dict[int, int]:
    """Return by page every entry that is not empty, that of 2 MiB as 512 equal ones."""
    found: dict[int, int] = {}
    for run in mm.page_table.walk.runs(0, TASK_SIZE):
        if isinstance(run, Leaf) and run.huge:
            first = run.start // PMD_SIZE * 512
            found.update(dict.fromkeys(range(first, first + 512), mm.page_table._words[run.low]))
        else:
            words = mm.page_table.walk.read(run)
            pages = run.vaddrs() >> np.uint64(PAGE_SHIFT)
            there = np.flatnonzero(words)
            found.update(zip(pages[there].tolist(), words[there].tolist(), strict=True))
    return found


def entries_known(mm: AddressSpace) -> dict[int, int]:
    """Return the same of the model."""
    found: dict[int, int] = {}
    for run in mm.runs():
        first = run.vaddr >> PAGE_SHIFT
        is_huge = run.entry & PRESENT and run.entry & PSE
        entries = [run.entry] * run.nr_pages if is_huge else run_of(run.entry, run.nr_pages)
        found.update(zip(range(first, first + run.nr_pages), entries, strict=True))
    return found


def check_mm(known: AddressSpace, mm: MmStruct, *, described: bool = True) -> None:
    """Compare one address space; the shadow page tables of all its VMAs take longest, and are left out on request."""
    assert {
        vma.start: (vma.end, vma.vm_flags, vma.pgoff, vma.file.mapping.number if vma.file else 0) for vma in mm.vmas
    } == {start: vma[1:] for start, vma in known.vmas.items()}
    there = entries_known(known), entries_there(mm)
    assert there[0] == there[1], _first_difference(*there)
    if described:
        check_described(known, mm)
    if not mm.page_table.table_pages:
        return
    tables = list(tables_of(mm))
    placed = {(level, vaddr): pfn for level, vaddr, pfn in tables if level != Level.DEPOSITED}
    assert placed == known.tables, sorted(placed.items() ^ known.tables.items())
    assert sorted(pfn for level, _, pfn in tables if level == Level.DEPOSITED) == sorted(known.deposited)


def check_described(known: AddressSpace, mm: MmStruct) -> None:
    """Compare the shadow page table that the model gives for each VMA, and a page around it, with the kernel's."""
    for vma in mm.vmas:
        start, end = max(vma.start - PAGE_SIZE, 0), min(vma.end, vma.start + MAX_SPT_RANGE) + PAGE_SIZE
        flags, pfns = describe(mm, Vaddr(start), Vaddr(end))
        rows = shadow_entries(known, start, end)
        assert [row[2] for row in rows] == flags.tolist(), hex(start)
        assert [row[1] for row in rows] == pfns.tolist(), hex(start)


def _first_difference(known: dict[int, int], there: dict[int, int]) -> str:
    page = min(page for page in known.keys() | there.keys() if known.get(page) != there.get(page))
    return f"page {page << PAGE_SHIFT:#x}: known {known.get(page, 0):#x}, there {there.get(page, 0):#x}"


def check(machine: Machine, kernel: Kernel) -> None:
    """Compare the whole machine. An assertion fails where the model has something else."""
    assert machine.is_whole
    living = {pid: task for pid, task in machine.tasks.items() if task.exit_signal is None}
    assert living.keys() == kernel.processes.keys()
    for pid, process in kernel.processes.items():
        mm = process.live_mm
        assert (living[pid].comm, living[pid].mm) == (process.comm, mm.number)
        known = machine.mms[mm.number]
        assert (known.start_brk, known.brk, known.start_stack) == (mm.start_brk, mm.brk, mm.start_stack)
        assert known.rss == mm.rss.counts
    mms = {mm.number: mm for mm in [*kernel.table.address_spaces(), *kernel.dying.mms]}
    assert machine.mms.keys() == mms.keys()
    for number, one in mms.items():
        check_mm(machine.mms[number], one)
    check_frames(machine, kernel)
    check_shadow(machine, kernel)


def check_frames(machine: Machine, kernel: Kernel) -> None:
    """Compare frames, page cache and swap."""
    frames = kernel.frames
    buddy = frames.buddy
    states = np.frombuffer(bytes(machine.frames), np.uint8)
    assert np.array_equal(states != TAKEN, buddy.is_free())
    assert np.flatnonzero(states == PCP).tolist() == sorted(buddy.pcp)
    heads = np.flatnonzero(buddy.head_order)
    orders = (buddy.head_order[heads] - 1).tolist()
    assert free_blocks(machine) == list(zip(heads.tolist(), orders, strict=True))
    cached, swapped = {}, {}
    for mapping in list(frames._mappings.values()):
        if isinstance(mapping, PageCache):
            cached.update({pfn: (mapping.number, index) for index, pfn in mapping.pages.items()})
            swapped.update({(mapping.number, index): slot for index, slot in mapping.swapped.items()})
    assert machine.cached == cached
    assert machine.shmem_slots == swapped
    in_swap_cache = np.flatnonzero(frames.has(slice(None), PG_SWAPCACHE)).tolist()
    assert machine.swap_cache == {pfn: int(frames.swap_slot[pfn]) for pfn in in_swap_cache}
    used = np.flatnonzero(frames.swap.count | frames.swap.cache).tolist()
    assert swap_users(machine) == {slot: int(frames.swap.count[slot]) for slot in used}


def check_shadow(machine: Machine, kernel: Kernel) -> None:
    """Compare the shadow page table."""
    session, known = kernel.shadowpt._session, machine.shadow
    assert (session is None) == (known is None)
    if session is not None and known is not None:
        assert (known.start, known.end, known.target) == (session.start, session.end, session.target.pid)
        assert known.flags.tolist() == session.table._flags.tolist()
        assert known.pfns.tolist() == session.table._pfns.tolist()
