"""The shadow of a real MmStruct, however its primitives have changed it, is what each page's VMA and entry say."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneld.hw.paging import PTE_NX, PTE_PRESENT, PTE_PROTNONE, PTE_RW, PTE_USER, make_pte, make_swap_pte, pte_present
from kerneld.hw.ram import Ram
from kerneld.mm.frames.frames import PG_ANON, ZERO_PFN, Frames
from kerneld.mm.frames.swap import SwapFile
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import exit_mmap
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_READ, VM_WRITE
from kerneld.shadowpt.describe import describe, describe_page
from kerneld.shadowpt.session import ShadowPt
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.effort import examples
from tests.support.fake_shadowpt import FakeProcess, HostMemory, read_rows

NR_PAGES = 24
START = 0x4000_0000 + PMD_SIZE - NR_PAGES // 2 * PAGE_SIZE
"""The range lies across two leaf tables."""
END = START + NR_PAGES * PAGE_SIZE
MARGIN = 4
"""Pages on either side of the range that change too."""
PAGE = st.integers(-MARGIN, NR_PAGES + MARGIN - 1)
RIGHTS = (PTE_PRESENT | PTE_USER, PTE_PRESENT | PTE_USER | PTE_RW, PTE_PROTNONE | PTE_NX)


class Machine:
    """A real address space and memory, with the changes that a test makes to them."""

    def __init__(self) -> None:
        self.ram = Ram(8 << 20)
        self.frames = Frames(self.ram, SwapFile(1 << 20))
        self.mm = self.new_mm()
        self.shadowpt = ShadowPt(self.ram)
        self.opener = FakeProcess(os.getpid())
        self.target = FakeProcess(4242, self.mm)
        self.memory = HostMemory(1)
        _, self.fds = self.shadowpt.open(self.opener, self.target, START, END, self.memory.address)

    def new_mm(self) -> MmStruct:
        return MmStruct(self.frames, Rlimits(), Sysctl())

    def map(self, first: int, count: int) -> None:
        start = START + first * PAGE_SIZE
        end = min(start + count * PAGE_SIZE, END + MARGIN * PAGE_SIZE)
        self.unmap(first, count)
        vma = Vma(start, end, VM_READ | VM_WRITE, start // PAGE_SIZE)
        self.mm.insert_vma(vma)

    def unmap(self, first: int, count: int) -> None:
        start = START + first * PAGE_SIZE
        end = start + count * PAGE_SIZE
        for edge in (start, end):
            vma = self.mm.vmas.lookup(edge)
            if vma is not None and vma.start < edge:
                self.mm.split_vma(vma, edge)
        for vma in list(self.mm.vmas.overlapping(start, end)):
            self.mm.pages.zap_range(vma.start, vma.end)
            self.mm.remove_vma(vma)

    def fault(self, page: int, rights: int) -> None:
        vaddr = START + page * PAGE_SIZE
        if self.mm.vmas.lookup(vaddr) is None:
            return
        pte = self.mm.page_table.ensure_pte(vaddr)
        pfn = self.frames.alloc_page(PG_ANON)
        if not pte_present(self.ram.words[pte]):
            self.zap(page)
            self.mm.pages.set_pte(pte, vaddr, make_pte(pfn, rights), pfn)
        else:
            self.mm.pages.replace_pte(pte, vaddr, make_pte(pfn, rights), pfn)

    def read_fault(self, page: int) -> None:
        vaddr = START + page * PAGE_SIZE
        self.zap(page)
        if self.mm.vmas.lookup(vaddr) is not None:
            self.mm.pages.set_zero_pte(
                self.mm.page_table.ensure_pte(vaddr), vaddr, make_pte(ZERO_PFN, PTE_PRESENT | 1 << 9)
            )

    def zap(self, page: int) -> None:
        vaddr = START + page * PAGE_SIZE
        self.mm.pages.zap_range(vaddr, vaddr + PAGE_SIZE)

    def swap_out(self, page: int) -> None:
        self.zap(page)
        vaddr = START + page * PAGE_SIZE
        if self.mm.vmas.lookup(vaddr) is not None:
            slots = self.frames.swap.get_swap_pages(1)
            entries = make_swap_pte(slots.astype(np.uint64))
            [leaf] = self.mm.page_table.ensure_leaves(vaddr, vaddr + PAGE_SIZE)
            self.mm.pages.share_swap_ptes(leaf, entries)

    def expected(self) -> list[tuple[int, int, int]]:
        rows = []
        for vaddr in range(START, END, PAGE_SIZE):
            pte = self.mm.page_table.find_pte(vaddr)
            entry = self.ram.words[pte] if pte is not None else 0
            mapped = entry & (PTE_PRESENT | PTE_PROTNONE) != 0
            flags = 3 if self.mm.vmas.lookup(vaddr) is not None else 0
            rows.append((vaddr, entry >> 12 & 0xFF_FFFF_FFFF if mapped else 0, flags | (4 if mapped else 0)))
        return rows

    def rows(self) -> list[tuple[int, int, int]]:
        return read_rows(self.fds[0], NR_PAGES)

    def close(self) -> None:
        self.shadowpt.opener_gone(self.opener)
        self.memory.close()
        for fd in self.fds:
            os.close(fd)
        if not self.target.ended:
            exit_mmap(self.mm)
        self.frames.swap.close()


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine()
    yield made
    made.close()


CHANGE = st.one_of(
    st.tuples(st.sampled_from(["map", "unmap"]), PAGE, st.integers(1, NR_PAGES)),
    st.tuples(st.just("fault"), PAGE, st.sampled_from(RIGHTS)),
    st.tuples(st.sampled_from(["read_fault", "zap", "swap_out"]), PAGE),
)


@pytest.mark.slow
@settings(max_examples=examples(40), deadline=None)
@given(calls=st.lists(st.lists(CHANGE, max_size=12), max_size=12))
def test_the_shadow_is_a_function_of_the_address_space(calls: list[list[tuple[object, ...]]]) -> None:
    machine = Machine()
    try:
        machine.map(0, NR_PAGES)
        machine.shadowpt.start(machine.opener)
        for changes in calls:
            for name, *arguments in changes:
                getattr(machine, str(name))(*arguments)
            machine.shadowpt.flush()
            assert machine.rows() == machine.expected()
    finally:
        machine.close()


@settings(max_examples=examples(25), deadline=None)
@given(changes=st.lists(CHANGE, max_size=30))
def test_one_page_is_described_as_in_a_range(changes: list[tuple[object, ...]]) -> None:
    machine = Machine()
    try:
        for name, *arguments in changes:
            getattr(machine, str(name))(*arguments)
        flags, pfns = describe(machine.mm, START, END)
        pages = [describe_page(machine.mm, vaddr) for vaddr in range(START, END, PAGE_SIZE)]
        assert pages == list(zip(flags.tolist(), pfns.tolist(), strict=True))
    finally:
        machine.close()


def test_the_targets_end_while_all_is_still_mapped(machine: Machine) -> None:
    machine.map(0, NR_PAGES)
    machine.fault(3, PTE_PRESENT)
    machine.shadowpt.start(machine.opener)
    machine.target.ended = True
    machine.target.mm = None
    exit_mmap(machine.mm)
    machine.shadowpt.flush()
    assert machine.rows() == [(vaddr, 0, 0) for vaddr in range(START, END, PAGE_SIZE)]


def test_execve_then_the_old_address_space_goes(machine: Machine) -> None:
    machine.map(0, NR_PAGES)
    machine.shadowpt.start(machine.opener)
    old, machine.mm = machine.mm, machine.new_mm()
    machine.map(2, 3)
    machine.fault(2, PTE_PRESENT)
    for notifier in list(old.notifiers):
        notifier.exec_mmap(machine.mm)
    machine.target.mm = machine.mm
    exit_mmap(old)
    machine.shadowpt.flush()
    assert machine.rows() == machine.expected()
    machine.fault(4, PTE_PRESENT)
    machine.shadowpt.flush()
    assert machine.rows() == machine.expected()


def test_page_contents_are_the_frames_bytes(machine: Machine) -> None:
    machine.map(0, NR_PAGES)
    machine.fault(5, PTE_PRESENT)
    _, pfns = describe(machine.mm, START, END)
    pfn = int(pfns[5])
    contents = bytes(range(256)) * 16
    machine.ram.write(pfn * PAGE_SIZE, contents)
    assert machine.shadowpt.page_contents(pfn) == contents
