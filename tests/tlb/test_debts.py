"""An agent that answers late: what it has not dropped yet goes to nobody else, and is not taken for finished."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pytest

from kerneld.hw.paging import PTE_DIRTY
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.files.file import File
from kerneld.mm.frames.frames import PG_DIRTY, PG_SWAPCACHE
from kerneld.mm.ksm.scan import ksm_do_scan
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.writeback import do_msync
from kerneld.tlb.debts import Debts
from kerneld.tlb.record import RECORD
from kerneld.tlb.tlb import Tlb
from shared.uapi.mman import Madv, Map, Ms
from shared.uapi.page import PAGE_SIZE, Pfn, Vaddr
from tests.support.machine import BASE, RW, Machine, advise, checked, entry, load, mmap, page, pfn_of, store

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct


class LateAgent:
    """An agent that acknowledges its orders when the test says so."""

    def __init__(self) -> None:
        self.acknowledged = self.ordered = 0
        self.is_late, self.is_dismissed = True, False

    def order(self, record: bytes) -> bool:
        self.ordered = RECORD.unpack_from(record)[2]
        if not self.is_late:
            self.acknowledged = self.ordered
        return not self.is_late

    def dismiss(self) -> None:
        self.is_dismissed = True


class Scene:
    """A program that runs, with four written pages that it may write to, and a late agent."""

    def __init__(self, machine: Machine, file: File | None = None) -> None:
        self.machine = machine
        self.frames = machine.frames
        self.mm = machine.new_mm()
        self.agent = LateAgent()
        self.unsettled: set[MmStruct] = set()
        self.debts = Debts(machine.frames, self.unsettled)
        self.tlb = Tlb(self.mm, lambda _: None, self.agent, self.debts)
        view = self.tlb.enter(1)
        mmap(self.mm, 4, RW, Map.SHARED if file else Map.PRIVATE, at=BASE, file=file)
        for number in range(4):
            store(self.mm, page(number), b"a")
            self.tlb.grant_page(page(number))
        view.take()

    def program_writes(self, pfn: Pfn, data: bytes) -> None:
        """Write as the program does by a mapping of the host's that has not gone yet."""
        self.frames.ram.frames_np[pfn].view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)

    def answer(self) -> None:
        """Let the agent acknowledge all."""
        self.agent.acknowledged = self.agent.ordered
        self.debts.settle(self.agent)
        assert self.frames.loans is None
        assert not self.unsettled

    def end(self) -> None:
        """End the program, and its agent."""
        if self.mm in self.machine.mms:
            self.machine.exit(self.mm)
        self.answer()


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


@pytest.fixture
def scene(machine: Machine) -> Iterator[Scene]:
    scene = Scene(machine)
    yield scene
    scene.end()


def free_frames(machine: Machine) -> set[int]:
    return set(machine.frames.buddy.is_free().nonzero()[0].tolist())


@pytest.mark.parametrize("count", [1, 4])
def test_frames_that_are_unmapped_go_to_nobody_else_before_the_agent_has_answered(
    machine: Machine, scene: Scene, count: int
) -> None:
    pfns = {pfn_of(scene.mm, page(number)) for number in range(count)}
    do_munmap(scene.mm, BASE, count * PAGE_SIZE)
    assert scene.unsettled == {scene.mm}
    assert not pfns & free_frames(machine)
    machine.check()
    scene.answer()
    assert pfns <= free_frames(machine)


def test_a_frame_that_is_freed_later_goes_to_nobody_else_either(machine: Machine, scene: Scene) -> None:
    """It loses its mapping, and is freed when its last user, another process, ends."""
    child = machine.fork(scene.mm)
    pfn = pfn_of(scene.mm, BASE)
    do_munmap(scene.mm, BASE, PAGE_SIZE)
    machine.exit(child)
    assert pfn not in free_frames(machine)
    machine.check()
    scene.answer()
    assert pfn in free_frames(machine)


def test_an_order_that_is_carried_out_leaves_a_later_one(machine: Machine, scene: Scene) -> None:
    first, second = pfn_of(scene.mm, page(0)), pfn_of(scene.mm, page(1))
    do_munmap(scene.mm, page(0), PAGE_SIZE)
    do_munmap(scene.mm, page(1), PAGE_SIZE)
    scene.agent.acknowledged = 1
    scene.debts.settle(scene.agent)
    assert (first in free_frames(machine), second in free_frames(machine)) == (True, False)
    assert scene.unsettled
    scene.answer()


def test_a_page_is_not_written_to_swap_while_the_program_may_change_it(machine: Machine, scene: Scene) -> None:
    pfn = pfn_of(scene.mm, BASE)
    advise(scene.mm, 0, 1, Madv.PAGEOUT)
    assert machine.frames.flags_at[pfn] & (PG_SWAPCACHE | PG_DIRTY) == PG_SWAPCACHE | PG_DIRTY
    scene.program_writes(pfn, b"last")
    machine.check()
    scene.answer()
    assert machine.reclaim_all() >= 1
    assert load(scene.mm, BASE, 4) == b"last"


def test_ksm_does_not_merge_a_page_that_the_program_may_change(machine: Machine, scene: Scene) -> None:
    do_madvise(scene.mm, BASE, 4 * PAGE_SIZE, Madv.MERGEABLE)

    def scan() -> int:
        for _ in range(12):  # A page that was not merged is left out now and then.
            for _ in ksm_do_scan(ksm_of(machine.frames), machine.frames, 9, lambda _: False):
                pass
        return len({pfn_of(scene.mm, page(number)) for number in range(4)})

    assert scan() == 4
    machine.check()
    scene.answer()
    scene.agent.is_late = False
    assert scan() == 1


def test_a_page_of_a_file_that_the_program_may_change_stays_dirty(machine: Machine) -> None:
    file, backing = machine.new_file(b"x" * 4 * PAGE_SIZE)
    scene = Scene(machine, file)
    pfn = pfn_of(scene.mm, BASE)
    do_msync(scene.mm, BASE, PAGE_SIZE, Ms.SYNC)
    assert not entry(scene.mm, BASE) & PTE_DIRTY
    scene.program_writes(pfn, b"late")
    scene.answer()
    do_msync(scene.mm, BASE, PAGE_SIZE, Ms.SYNC)
    assert bytes(backing.data[:4]) == b"late"
    assert 0 not in file.mapping.dirty
    scene.end()


def test_the_frames_of_a_process_that_ends_are_kept(machine: Machine, scene: Scene) -> None:
    """Nobody waits for its agent any more."""
    pfns = {pfn_of(scene.mm, page(number)) for number in range(4)}
    [view] = scene.tlb.views
    view.leave()
    machine.exit(scene.mm)
    assert scene.agent.is_dismissed
    assert not scene.unsettled
    assert not pfns & free_frames(machine)
    machine.check()
    scene.answer()
    assert pfns <= free_frames(machine)


def test_who_has_asked_waits_until_the_agent_has_answered_or_its_program_has_ended(
    machine: Machine, scene: Scene
) -> None:
    do_munmap(scene.mm, page(0), PAGE_SIZE)
    first, again = scene.debts.take_wait(), scene.debts.take_wait()
    assert (first.is_over, again.is_over) == (False, True)
    scene.answer()
    assert first.is_over
    do_munmap(scene.mm, page(1), PAGE_SIZE)
    second, third = scene.debts.take_wait(), scene.debts.wait_for(scene.mm)
    machine.exit(scene.mm)
    assert (second.is_over, third.is_over) == (True, True)
    scene.answer()


def test_who_needs_memory_does_not_wait_for_those_from_whom_it_is_taken(machine: Machine, scene: Scene) -> None:
    def reclaim(vaddr: Vaddr) -> None:
        advise(scene.mm, (vaddr - BASE) // PAGE_SIZE, 1, Madv.PAGEOUT)

    scene.debts.unasked(reclaim)(page(0))
    assert scene.unsettled
    assert not scene.debts.fresh
    reclaim(page(1))
    assert scene.debts.fresh
    scene.answer()
