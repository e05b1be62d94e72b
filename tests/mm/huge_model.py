"""Random calls and accesses with huge pages everywhere, against a model that knows pages of 4 KiB and nothing else.

The model is two arrays by page: rights and value. It has no VMA, no frame, no entry and no huge page. After every
step the machine's invariants hold, what the notifications made of a shadow is what is there, and a page that has been
written is mapped (nothing here swaps). RAM is short, so huge pages are sometimes not to be had; at the end it is all
free again.
"""

from __future__ import annotations

import errno
from signal import SIGKILL, SIGSEGV

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS
from shared.uapi.mman import Madv, Mremap
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from tests.support.huge_machine import HUGE, HugeMachine, frames_of, huge
from tests.support.machine import ANON, BASE, NONE, READ, RW, WRITE, failure, load, mmap, store

PAGES = 4 * HUGE
RAM_BYTES = 20 << 20
MAX_MMS = 3

WHO = st.integers(0, MAX_MMS - 1)
PLACE = st.one_of(
    st.integers(0, 3).map(lambda number: number * HUGE),
    st.sampled_from([1, 100, HUGE - 1, HUGE + 1, 2 * HUGE - 1, 2 * HUGE + 256, PAGES - 1]),
)
COUNT = st.one_of(
    st.integers(1, 4).map(lambda number: number * HUGE),
    st.sampled_from([1, 2, 256, HUGE - 1, HUGE + 1, 2 * HUGE - 100]),
)
NUMBER = st.sampled_from(
    sorted({edge + step for edge in range(0, PAGES, HUGE) for step in (0, 1, 100, 256, 511)} | {PAGES - 1})
)
PROT = st.sampled_from([RW, RW, RW, READ, NONE])
ADVICE = st.sampled_from([Madv.DONTNEED, Madv.DONTNEED, Madv.COLD, Madv.HUGEPAGE, Madv.NOHUGEPAGE, Madv.POPULATE_READ])


UNMAPPED = -1
Pages = npt.NDArray[np.int64]


class Space:
    """One process: the real address space, and the model of it: rights (or UNMAPPED) and value of each page."""

    def __init__(self, mm: MmStruct, prots: Pages, values: Pages) -> None:
        self.mm = mm
        self.prots = prots
        self.values = values

    def unmap(self, place: int, count: int) -> None:
        self.prots[place : place + count] = UNMAPPED
        self.values[place : place + count] = 0


def at(number: int) -> int:
    return BASE + (number << PAGE_SHIFT)


class HugeAddressSpaces(RuleBasedStateMachine):
    """The rules; `who` picks among the processes that live."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = self.new_machine()
        self.spaces = [Space(self.machine.new_mm(), np.full(PAGES, UNMAPPED), np.zeros(PAGES, dtype=np.int64))]

        self.mmap(0, 0, PAGES, RW, written=False)

    def new_machine(self) -> HugeMachine:
        return HugeMachine(RAM_BYTES, TransparentHugepage.ALWAYS)

    def pick(self, who: int) -> Space:
        return self.spaces[who % len(self.spaces)]

    @rule(who=WHO, place=PLACE, count=COUNT, prot=PROT, written=st.booleans())
    def map(self, who: int, place: int, count: int, prot: int, written: bool) -> None:
        self.mmap(who, place, count, prot, written)

    def mmap(self, who: int, place: int, count: int, prot: int, written: bool) -> None:
        space = self.pick(who)
        count = min(count, PAGES - place)
        mmap(space.mm, count, prot, ANON, at=at(place))
        space.prots[place : place + count] = prot
        space.values[place : place + count] = 0
        if written and prot & WRITE:
            for number in range(place, place + count, 300):
                self.write(who, number, number + 1)

    @rule(who=WHO, flags=st.sampled_from([RW, RW, READ]))
    def map_anew(self, who: int, flags: int) -> None:
        """A mapping over everything: what was cut up is gone, and huge pages come again."""
        self.mmap(who, 0, PAGES, flags, written=flags == RW)

    @rule(who=WHO, place=PLACE, count=COUNT)
    def munmap(self, who: int, place: int, count: int) -> None:
        space = self.pick(who)
        count = min(count, PAGES - place)
        do_munmap(space.mm, at(place), count * PAGE_SIZE)
        space.unmap(place, count)

    @rule(who=WHO, place=PLACE, count=COUNT, prot=PROT)
    def mprotect(self, who: int, place: int, count: int, prot: int) -> None:
        space = self.pick(who)
        count = min(count, PAGES - place)
        mapped = self.mapped(space, place, count)
        ended = failure(lambda: do_mprotect(space.mm, at(place), count * PAGE_SIZE, prot))
        assert ended == (errno.ENOMEM if mapped < count else 0)
        space.prots[place : place + mapped] = prot

    @staticmethod
    def mapped(space: Space, place: int, count: int) -> int:
        """Return how many pages lie before the first hole."""
        holes = np.flatnonzero(space.prots[place : place + count] == UNMAPPED)
        return int(holes[0]) if len(holes) else count

    @rule(who=WHO, place=PLACE, count=COUNT, advice=ADVICE)
    def madvise(self, who: int, place: int, count: int, advice: Madv) -> None:
        space = self.pick(who)
        count = min(count, PAGES - place)
        ended = failure(lambda: do_madvise(space.mm, at(place), count * PAGE_SIZE, advice))
        if advice is Madv.DONTNEED:
            assert ended == (errno.ENOMEM if self.mapped(space, place, count) < count else 0)
            space.values[place : place + count] = 0

    @rule(who=WHO, number=st.integers(0, 3))
    def collapse(self, who: int, number: int) -> None:
        failure(lambda: do_madvise(self.pick(who).mm, huge(number), PMD_SIZE, Madv.COLLAPSE))

    @rule(who=WHO, number=st.integers(0, 3), to=st.integers(0, 3), count=st.integers(1, 2))
    def move_whole(self, who: int, number: int, to: int, count: int) -> None:
        self.move(who, number * HUGE, count * HUGE, to * HUGE)

    @rule(who=WHO, place=PLACE, count=COUNT, to=PLACE)
    def mremap(self, who: int, place: int, count: int, to: int) -> None:
        self.move(who, place, count, to)

    def move(self, who: int, place: int, count: int, to: int) -> None:
        """Move what lies in one VMA to where it does not overlap."""
        space = self.pick(who)
        count = min(count, PAGES - place, PAGES - to)
        if place < to + count and to < place + count:
            return
        flags = (Mremap.MAYMOVE | Mremap.FIXED).value
        vma = space.mm.vmas.lookup(at(place))
        whole = vma is not None and vma.end >= at(place + count)
        length = count * PAGE_SIZE
        ended = failure(lambda: do_mremap(space.mm, at(place), length, length, flags, at(to), privileged=False))
        assert ended in ((0, errno.ENOMEM) if whole else (errno.EFAULT,))
        if vma is None:
            return
        space.unmap(to, count)
        if not ended:
            for pages in (space.prots, space.values):
                pages[to : to + count] = pages[place : place + count]
            space.unmap(place, count)

    @rule(who=WHO, number=NUMBER)
    def load(self, who: int, number: int) -> None:
        self.compare(self.pick(who), number)

    def compare(self, space: Space, number: int) -> None:
        prot, value = int(space.prots[number]), int(space.values[number])
        ended = failure(lambda: load(space.mm, at(number), 4))
        if prot in (UNMAPPED, NONE):
            assert ended == SIGSEGV
        elif ended:
            assert ended == SIGKILL
            assert not value
        else:
            assert load(space.mm, at(number), 4) == value.to_bytes(4, "little")

    @rule(who=WHO, number=NUMBER, value=st.integers(1, (1 << 32) - 1))
    def store(self, who: int, number: int, value: int) -> None:
        self.write(who, number, value)

    def write(self, who: int, number: int, value: int) -> None:
        space = self.pick(who)
        prot = int(space.prots[number])
        ended = failure(lambda: store(space.mm, at(number), value.to_bytes(4, "little")))
        if prot == UNMAPPED or not prot & WRITE:
            assert ended == SIGSEGV
        elif not ended:
            space.values[number] = value
        else:
            assert ended == SIGKILL
            assert self.machine.frames.free_pages < 4

    @rule(who=WHO, place=PLACE, count=COUNT)
    def populate(self, who: int, place: int, count: int) -> None:
        mm_populate(self.pick(who).mm, at(place), at(min(place + count, PAGES)))

    @precondition(lambda self: len(self.spaces) < MAX_MMS)
    @rule(who=WHO)
    def fork(self, who: int) -> None:
        parent = self.pick(who)
        ended = failure(lambda: self.machine.fork(parent.mm))
        if ended:
            assert ended == errno.ENOMEM
        else:
            self.spaces.append(Space(self.machine.mms[-1], parent.prots.copy(), parent.values.copy()))

    @precondition(lambda self: len(self.spaces) > 1)
    @rule(who=WHO)
    def exit(self, who: int) -> None:
        space = self.pick(who)
        self.spaces.remove(space)
        self.machine.exit(space.mm)

    @invariant()
    def all_is_consistent(self) -> None:
        self.machine.check()
        for space in self.spaces:
            covered = np.full(PAGES, UNMAPPED)
            for vma in space.mm.vmas:
                covered[vma.start - BASE >> PAGE_SHIFT : vma.end - BASE >> PAGE_SHIFT] = vma.vm_flags & VM_ACCESS_FLAGS
            assert np.array_equal(covered, space.prots)
            frames = np.array(frames_of(space.mm, at(0), at(PAGES)))
            self.check_kept(space, frames != 0)
            mapped = frames != 0
            assert np.array_equal(self.machine.ram.frames_np[frames[mapped], 0], space.values[mapped].astype(np.uint64))

    def check_kept(self, space: Space, mapped: npt.NDArray[np.bool_]) -> None:
        """What has been written is in memory."""
        assert mapped[space.values != 0].all()

    def teardown(self) -> None:
        for space in self.spaces:
            for number in range(0, PAGES, 50):
                self.compare(space, number)
        self.machine.check()
        self.machine.close()
