"""Every allocation of a frame made to fail in turn: the caller gets ENOMEM or VM_FAULT_OOM, nothing breaks or leaks."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from signal import SIGKILL, SIGSEGV

import pytest

from kerneld.errors import SysError
from kerneld.mm.calls.brk import do_brk
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.machine import (
    ANON,
    BASE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    Machine,
    Signal,
    entry,
    failure,
    grows_down,
    load,
    mmap,
    page,
    store,
)

Step = Callable[[], object]


class Program:
    """A short life that meets every kind of allocation; each step stands alone, so that one may fail."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.mm = machine.new_mm()
        self.child: MmStruct | None = None
        self.file, self.backing = machine.new_file(b"file" * 1024 * 20)
        self.mm.start_brk = self.mm.brk = BASE + (8 << 30)
        grows_down(self.mm, BASE + (4 << 30), 1)

    def steps(self) -> list[Step]:
        mm, file = self.mm, self.file
        far = BASE + PMD_SIZE - 2 * PAGE_SIZE
        return [
            partial(mmap, mm, 20, at=page(0)),
            partial(load, mm, page(0)),
            partial(store, mm, page(0), b"x"),
            partial(store, mm, page(1), b"x"),
            partial(mmap, mm, 20, RW, PRIVATE, at=page(32), file=file),
            partial(load, mm, page(33)),
            partial(store, mm, page(33), b"x"),
            partial(store, mm, page(51), b"x"),
            partial(mmap, mm, 20, RW, SHARED, at=page(64), file=file),
            partial(store, mm, page(80), b"x"),
            partial(mmap, mm, 4, RW, SHARED_ANON, at=page(96)),
            partial(store, mm, page(97), b"x"),
            partial(load, mm, page(98)),
            partial(mmap, mm, 6, RW, ANON | Map.POPULATE.value, at=far),
            partial(store, mm, BASE + (4 << 30) - 5 * PAGE_SIZE, b"x"),
            partial(do_brk, mm, mm.start_brk + 3 * PAGE_SIZE, privileged=False),
            partial(store, mm, mm.start_brk + PAGE_SIZE, b"x"),
            self.fork,
            partial(self.in_child, page(0)),
            partial(self.in_child, page(33)),
            partial(self.in_child, page(64)),
            partial(self.in_child, page(99)),
            partial(store, mm, page(1), b"y"),
            partial(do_mprotect, mm, page(3), 10 * PAGE_SIZE, READ),
            partial(mm_populate, mm, page(0), page(20)),
            partial(mmap, mm, 30, RW, ANON | Map.LOCKED.value, at=far),
            partial(do_munmap, mm, page(10), 60 * PAGE_SIZE),
        ]

    def fork(self) -> None:
        self.child = self.machine.fork(self.mm)

    def in_child(self, vaddr: int) -> None:
        if self.child is not None:
            store(self.child, vaddr, b"child")


def run(number: int | None) -> tuple[int, int, set[int]]:
    """Run the program with the allocation of this number failing, and this one only.

    Returns the number of allocations made, of those that failed, and how steps ended.
    """
    machine = Machine(4 << 20)
    program = Program(machine)
    made = 0
    ended: set[int] = set()
    failed = 0

    def hook(_count: int) -> None:
        nonlocal made, failed
        made += 1
        if number is not None and made == number:
            failed += 1
            raise SysError(errno.ENOMEM)

    machine.frames.alloc_hook = hook
    for step in program.steps():
        result = failure(step)
        machine.check()
        ended.add(result)
    machine.frames.alloc_hook = None
    machine.close()
    return made, failed, ended


@pytest.mark.slow
def test_every_allocation_in_turn() -> None:
    total, failed, ended = run(None)
    assert (failed, ended) == (0, {0})
    assert total > 30
    for number in range(1, total + 1):
        _, failed, ended = run(number)
        assert failed == 1
        # Nothing but these; a page that could not be populated is not told to anyone.
        assert ended <= {0, errno.ENOMEM, SIGKILL, SIGSEGV}


@pytest.mark.parametrize("number", range(0, 60, 3))
def test_from_one_on_none_succeeds_and_all_is_well_again_later(machine: Machine, number: int) -> None:
    program = Program(machine)
    with machine.failing_allocation(number):
        for step in program.steps():
            failure(step)
            machine.check()
    for step in program.steps()[:9]:
        step()
    assert load(program.mm, page(0)) == load(program.mm, page(1)) == b"x"
    assert load(program.mm, page(34), 4) == b"file"


class TestOneAtATime:
    """What the caller is told."""

    @pytest.mark.parametrize("number", range(4))
    def test_a_store(self, machine: Machine, mm: MmStruct, number: int) -> None:
        mmap(mm, 1, at=BASE)
        with machine.failing_allocation(number), pytest.raises(Signal) as caught:
            store(mm, BASE, b"x")
        assert caught.value.signo == SIGKILL
        assert not entry(mm, BASE)
        store(mm, BASE, b"x")

    def test_a_new_address_space(self, machine: Machine) -> None:
        with machine.failing_allocation(0), pytest.raises(SysError) as caught:
            machine.new_mm()
        assert caught.value.errno == errno.ENOMEM

    def test_populate_tells_nobody_and_does_what_it_can(self, machine: Machine, mm: MmStruct) -> None:
        held = machine.frames.alloc_pages(machine.frames.free_pages - 10)
        start = mmap(mm, 20, RW, ANON | Map.POPULATE.value, at=BASE)
        assert [at for at in range(20) if entry(mm, start + at * PAGE_SIZE)] == list(range(7))
        machine.frames.put_pages(held)

    def test_a_locked_heap_that_finds_no_frames(self, machine: Machine, mm: MmStruct) -> None:
        mm.start_brk = mm.brk = BASE
        mm.def_flags = VM_LOCKED
        with machine.failing_allocation(0):
            assert do_brk(mm, BASE + PAGE_SIZE, privileged=False) == BASE + PAGE_SIZE
        assert not entry(mm, BASE)

    def test_munmap_and_mprotect_need_none(self, machine: Machine, mm: MmStruct) -> None:
        mmap(mm, 6, RW, ANON | Map.POPULATE.value, at=BASE)
        with machine.failing_allocation(0) as failed:
            do_mprotect(mm, page(1), PAGE_SIZE, READ)
            do_munmap(mm, page(3), PAGE_SIZE)
        assert failed == []
