"""The models of `test_model` and `test_thp_model` on a machine short of memory: nothing that is written is ever lost.

Most of RAM is locked by a process that does nothing, so that the address spaces of the model never fit: each call may
reclaim any page of any of them. Between calls everything is thrown out, or a part of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.limits import TransparentHugepage
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE
from tests.mm.huge_model import COUNT as HUGE_COUNT
from tests.mm.huge_model import PAGES as HUGE_PAGES
from tests.mm.huge_model import PLACE as HUGE_PLACE
from tests.mm.huge_model import HugeAddressSpaces, Space
from tests.mm.model import ARENA, COUNT, PAGES, PLACE, WHO, AddressSpaces
from tests.support.effort import examples
from tests.support.huge_machine import HugeMachine
from tests.support.machine import ANON, BASE, RW, Machine, failure, mmap

pytestmark = pytest.mark.slow

RAM_BYTES = 4 << 20
HUGE_RAM_BYTES = 8 << 20
HUGE_ADVICE = st.sampled_from(
    [Madv.DONTNEED, Madv.COLD, Madv.PAGEOUT, Madv.WILLNEED, Madv.HUGEPAGE, Madv.NOHUGEPAGE, Madv.COLLAPSE]
)
LEFT_PAGES = 140
"""What the model has, with its page tables, above the minimum that is kept free."""


class AddressSpacesUnderPressure(AddressSpaces):
    """The rules of the model, and those of reclaim."""

    def new_machine(self) -> Machine:
        machine = Machine(RAM_BYTES, 8 << 20, reclaims=True)
        hog = machine.new_mm()
        count = machine.frames.free_pages - machine.frames.watermark_min - LEFT_PAGES
        mmap(hog, count, RW, ANON | Map.LOCKED.value, privileged=True)
        assert machine.frames.free_pages < machine.frames.watermark_min + LEFT_PAGES
        return machine

    @rule()
    def throw_all_out(self) -> None:
        self.machine.reclaim_all()

    @rule(count=st.integers(1, 64))
    def throw_some_out(self, count: int) -> None:
        self.machine.vmscan.try_to_free_pages(count)

    @rule()
    def background(self) -> None:
        self.machine.vmscan.wakeup_kswapd()

    @rule(who=WHO, place=PLACE, count=COUNT, advice=st.sampled_from([Madv.PAGEOUT, Madv.WILLNEED]))
    def advise_reclaim(self, who: int, place: int, count: int, advice: int) -> None:
        space = self.pick(who)
        pages = min(count, PAGES - place)
        failure(lambda: do_madvise(space.mm, (ARENA + place) << PAGE_SHIFT, pages * PAGE_SIZE, advice))

    @rule(who=WHO, place=PLACE, count=COUNT, advice=st.sampled_from([Madv.DONTNEED, Madv.COLD]))
    def madvise(self, who: int, place: int, count: int, advice: int) -> None:
        """Without MADV_FREE: what was freed may be lost here, and that is tested for itself."""
        super().madvise(who, place, count, advice)


class HugeAddressSpacesUnderPressure(HugeAddressSpaces):
    """The rules of the model of huge pages, which never fit into RAM all at once, and those of reclaim."""

    def new_machine(self) -> HugeMachine:
        return HugeMachine(HUGE_RAM_BYTES, TransparentHugepage.ALWAYS, swap_bytes=64 << 20, reclaims=True)

    @rule()
    def throw_all_out(self) -> None:
        self.machine.reclaim_all()

    @rule(count=st.integers(1, 2000))
    def throw_some_out(self, count: int) -> None:
        self.machine.vmscan.try_to_free_pages(count)

    def check_kept(self, space: Space, mapped: npt.NDArray[np.bool_]) -> None:
        """What has been written is in memory or in the swap file."""
        entries = space.mm.page_table.walk.entries(BASE, BASE + (HUGE_PAGES << PAGE_SHIFT))
        assert (entries[space.values != 0] != 0).all()

    @rule(who=WHO, place=HUGE_PLACE, count=HUGE_COUNT, advice=HUGE_ADVICE)
    def madvise(self, who: int, place: int, count: int, advice: Madv) -> None:
        """Without MADV_FREE, as above."""
        super().madvise(who, place, count, advice)


TestAddressSpacesUnderPressure = AddressSpacesUnderPressure.TestCase
TestAddressSpacesUnderPressure.settings = settings(max_examples=examples(20), stateful_step_count=40, deadline=None)

TestHugeAddressSpacesUnderPressure = HugeAddressSpacesUnderPressure.TestCase
TestHugeAddressSpacesUnderPressure.settings = settings(max_examples=examples(15), stateful_step_count=30, deadline=None)
