"""Stacks: a fault below one lets it grow, up to its limit and no nearer than the guard gap to what lies below."""

from __future__ import annotations

import errno
from signal import SIGSEGV

from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.stack import expand_stack
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import STACK_GUARD_GAP_BYTES
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import Rlimit
from tests.support.machine import (
    ANON,
    BASE,
    NONE,
    RW,
    Machine,
    entry,
    errno_of,
    grows_down,
    layout,
    load,
    mmap,
    page,
    signal_of,
    store,
)

TOP = BASE + (64 << 20)


def test_it_grows_to_the_page_that_is_touched(mm: MmStruct) -> None:
    vma = grows_down(mm, TOP - PAGE_SIZE, 1)
    store(mm, TOP - 10 * PAGE_SIZE + 5, b"deep")
    assert (vma.start, vma.end) == (TOP - 10 * PAGE_SIZE, TOP)
    assert vma.pgoff == vma.start // PAGE_SIZE
    assert (mm.stack_vm, mm.total_vm) == (10, 10)
    assert load(mm, TOP - 10 * PAGE_SIZE + 5, 4) == b"deep"
    assert not entry(mm, TOP - 5 * PAGE_SIZE)


def test_a_read_grows_it_too(mm: MmStruct) -> None:
    vma = grows_down(mm, TOP - PAGE_SIZE, 1)
    assert load(mm, TOP - 3 * PAGE_SIZE) == b"\0"
    assert vma.nr_pages == 3


def test_its_limit(mm: MmStruct) -> None:
    vma = grows_down(mm, TOP - PAGE_SIZE, 1)
    mm.rlimits.soft[Rlimit.STACK] = 8 * PAGE_SIZE
    assert signal_of(lambda: store(mm, TOP - 9 * PAGE_SIZE, b"x")) == SIGSEGV
    assert vma.nr_pages == 1
    store(mm, TOP - 8 * PAGE_SIZE, b"x")
    assert vma.nr_pages == 8


def test_other_limits(mm: MmStruct) -> None:
    vma = grows_down(mm, TOP - PAGE_SIZE, 1)
    mm.rlimits.soft[Rlimit.AS] = 2 * PAGE_SIZE
    assert errno_of(lambda: expand_stack(mm, vma, TOP - 3 * PAGE_SIZE)) == errno.ENOMEM
    expand_stack(mm, vma, TOP - 2 * PAGE_SIZE)


def test_growth_of_locked_memory_is_limited_and_faults_in_what_is_asked_for(mm: MmStruct) -> None:
    mmap(mm, 1, RW, ANON | Map.GROWSDOWN.value | Map.LOCKED.value, at=TOP - PAGE_SIZE)
    mm.charge_to(1000, is_superuser=False)
    mm.rlimits.soft[Rlimit.MEMLOCK] = 4 * PAGE_SIZE
    assert signal_of(lambda: store(mm, TOP - 5 * PAGE_SIZE, b"x")) == SIGSEGV
    store(mm, TOP - 4 * PAGE_SIZE, b"x")
    assert (mm.locked_vm, mm.rss.counts[1]) == (4, 2)
    mm.charge_to(0, is_superuser=True)
    store(mm, TOP - 5 * PAGE_SIZE, b"x")
    assert (mm.locked_vm, mm.rss.counts[1]) == (5, 3)


def test_the_guard_gap_below(mm: MmStruct) -> None:
    vma = grows_down(mm, TOP - PAGE_SIZE, 1)
    below = TOP - (4 << 20)
    mmap(mm, 1, at=below - PAGE_SIZE)
    assert signal_of(lambda: store(mm, below + STACK_GUARD_GAP_BYTES - PAGE_SIZE, b"x")) == SIGSEGV
    assert vma.nr_pages == 1
    store(mm, below + STACK_GUARD_GAP_BYTES, b"x")
    assert vma.start == below + STACK_GUARD_GAP_BYTES
    do_mprotect(mm, below - PAGE_SIZE, PAGE_SIZE, NONE)
    store(mm, below + PAGE_SIZE, b"x")
    assert vma.start == below + PAGE_SIZE


def test_a_stack_below_keeps_no_gap_above_it(mm: MmStruct) -> None:
    upper = grows_down(mm, page(8), 1)
    lower = grows_down(mm, page(0), 4)
    store(mm, page(4), b"x")
    assert (upper.start, lower.end) == (page(4), page(4))
    assert [(at, pages) for at, pages, _ in layout(mm)] == [(0, 4), (4, 5)]


def test_only_a_stack_grows(mm: MmStruct) -> None:
    mmap(mm, 1, at=page(8))
    vma = next(iter(mm.vmas))
    assert signal_of(lambda: store(mm, page(7), b"x")) == SIGSEGV
    assert errno_of(lambda: expand_stack(mm, vma, page(7))) == errno.EFAULT


def test_not_below_the_lowest_address(machine: Machine, mm: MmStruct) -> None:
    vma = grows_down(mm, 0x20000, 1)
    assert errno_of(lambda: expand_stack(mm, vma, 0xF000)) == errno.EPERM
    expand_stack(mm, vma, 0x10000)
    machine.check()


def test_a_child_has_the_grown_stack(machine: Machine, mm: MmStruct) -> None:
    grows_down(mm, TOP - PAGE_SIZE, 1)
    store(mm, TOP - 3 * PAGE_SIZE, b"parent")
    child = machine.fork(mm)
    store(child, TOP - 6 * PAGE_SIZE, b"child")
    assert load(child, TOP - 3 * PAGE_SIZE, 6) == b"parent"
    assert (mm.stack_vm, child.stack_vm) == (3, 6)


def test_a_growth_that_is_refused_leaves_an_anon_vma(mm: MmStruct) -> None:
    """v6.8's expand_downwards() makes the anon_vma first: later merges see it. Below the guard gap it makes none."""
    vma = grows_down(mm, TOP - PAGE_SIZE, 1)
    below = TOP - (4 << 20)
    mmap(mm, 1, at=below - PAGE_SIZE)
    assert errno_of(lambda: expand_stack(mm, vma, below + PAGE_SIZE)) == errno.ENOMEM
    assert vma.anon_vma is None
    mm.rlimits.soft[Rlimit.STACK] = PAGE_SIZE
    assert errno_of(lambda: expand_stack(mm, vma, TOP - 2 * PAGE_SIZE)) == errno.ENOMEM
    assert vma.anon_vma is not None
