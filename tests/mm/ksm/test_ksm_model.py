"""Random calls, stores, reclaim and scans: the contents are those of a model, and every invariant holds after each."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable

import pytest

from kerneld.errors import SysError
from kerneld.mm.calls.mlock import do_mlock, do_munlock
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.ksm.scan import ksm_do_scan
from kerneld.mm.ksm.unmerge import set_merge_any
from kerneld.mm.limits import TransparentHugepage
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.pace import run_at_once
from kerneld.mm.vm_flags import VM_LOCKED
from shared.uapi.mman import Madv, Mremap, Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.huge_machine import HUGE, HugeMachine
from tests.support.ksm import sysfs, write_sysfs
from tests.support.machine import RW, Machine, advise, load, mmap, page, store

PAGES = 24
CONTENTS = "aaabbc0"
ADVICE = (Madv.MERGEABLE, Madv.UNMERGEABLE, Madv.DONTNEED_LOCKED, Madv.COLD, Madv.PAGEOUT, Madv.COLLAPSE)
MAYMOVE, FIXED = Mremap.MAYMOVE.value, Mremap.FIXED.value
SETTINGS = (
    ("use_zero_pages", 1), ("use_zero_pages", 0), ("smart_scan", 0), ("run", 2), ("run", 1), ("max_page_sharing", 3),
    ("stable_node_chains_prune_millisecs", 0),
)  # fmt: skip


class Space:
    """An address space, and what each of its pages should be: a letter, or None without a mapping."""

    def __init__(self, mm: MmStruct, pages: dict[int, str]) -> None:
        self.mm, self.pages = mm, pages


class Play:
    """One random play on one machine."""

    def __init__(self, machine: Machine, seed: int, *, base: int = 0) -> None:
        self.machine, self.rng, self.base = machine, random.Random(seed), base
        self.spaces = [Space(machine.new_mm(), {}) for _ in range(2)]
        self.most_sharing = 0
        """The most pages that shared a merged frame at a time."""

    def step(self) -> None:
        """Do one thing, and check everything."""
        space = self.rng.choice(self.spaces)
        first = self.rng.randrange(PAGES) + self.base
        count = self.rng.randint(1, PAGES // 3)
        acts: list[Callable[[Space, int, int], None]] = [
            self.store, self.store, self.store, self.map, self.unmap, self.advise, self.advise, self.scan, self.scan,
            self.scan, self.fork, self.exit, self.reclaim, self.move, self.lock, self.set, self.protect, self.any,
        ]  # fmt: skip
        with contextlib.suppress(SysError):
            self.rng.choice(acts)(space, first, count)
        for each in self.spaces:
            for number in self.rng.sample(sorted(each.pages), min(3, len(each.pages))):
                byte = load(each.mm, page(number))
                assert byte == (b"\0" if each.pages[number] == "0" else each.pages[number].encode())
        self.machine.check()
        self.most_sharing = max(self.most_sharing, sysfs(self.machine, "pages_sharing"))

    def store(self, space: Space, first: int, count: int) -> None:
        for number in range(first, first + count):
            if number in space.pages:
                space.pages[number] = self.rng.choice(CONTENTS)
                data = b"\0" if space.pages[number] == "0" else space.pages[number].encode()
                store(space.mm, page(number), data * PAGE_SIZE)

    def map(self, space: Space, first: int, count: int) -> None:
        mmap(space.mm, count, at=page(first))
        for number in range(first, first + count):
            space.pages[number] = "0"
        advise(space.mm, first, count, Madv.MERGEABLE)
        self.store(space, first, count)

    def unmap(self, space: Space, first: int, count: int) -> None:
        do_munmap(space.mm, page(first), count * PAGE_SIZE)
        for number in range(first, first + count):
            space.pages.pop(number, None)

    def advise(self, space: Space, first: int, count: int) -> None:
        advice = self.rng.choice(ADVICE)
        if advice is Madv.DONTNEED_LOCKED and any(number not in space.pages for number in range(first, first + count)):
            return
        advise(space.mm, first, count, advice)
        if advice is Madv.DONTNEED_LOCKED:
            for number in range(first, first + count):
                space.pages[number] = "0"

    def scan(self, _space: Space, _first: int, count: int) -> None:
        ksm = ksm_of(self.machine.frames)
        if ksm.settings.run == 2:
            write_sysfs(self.machine, "run", 1)
        for _ in ksm_do_scan(ksm, self.machine.frames, self.rng.choice((count, 500)), lambda mm: False):
            pass

    def fork(self, space: Space, _first: int, _count: int) -> None:
        if len(self.spaces) < 5:
            self.spaces.append(Space(self.machine.fork(space.mm), dict(space.pages)))

    def exit(self, space: Space, _first: int, _count: int) -> None:
        if len(self.spaces) > 2:
            self.spaces.remove(space)
            self.machine.exit(space.mm)

    def reclaim(self, _space: Space, _first: int, _count: int) -> None:
        self.machine.reclaim_all()

    def move(self, space: Space, first: int, count: int) -> None:
        to = self.rng.randrange(PAGES) + self.base
        if all(number in space.pages for number in range(first, first + count)) and abs(to - first) >= count:
            length = count * PAGE_SIZE
            try:
                do_mremap(space.mm, page(first), length, length, MAYMOVE | FIXED, page(to), privileged=True)
            except SysError:
                # What was at the new place is gone already.
                space.pages = {at: each for at, each in space.pages.items() if space.mm.vmas.lookup(page(at))}
                raise
            moved = [space.pages.pop(number) for number in range(first, first + count)]
            for number, letter in enumerate(moved, to):
                space.pages[number] = letter

    def lock(self, space: Space, first: int, count: int) -> None:
        if self.rng.random() < 0.5:
            do_mlock(space.mm, page(first), count * PAGE_SIZE, VM_LOCKED, privileged=True)
        else:
            do_munlock(space.mm, page(first), count * PAGE_SIZE)

    def protect(self, space: Space, first: int, count: int) -> None:
        if all(number in space.pages for number in range(first, first + count)):
            do_mprotect(space.mm, page(first), count * PAGE_SIZE, Prot.READ.value)
            do_mprotect(space.mm, page(first), count * PAGE_SIZE, RW)

    def any(self, space: Space, first: int, _count: int) -> None:
        run_at_once(set_merge_any(space.mm, first % 2 == 0))

    def set(self, _space: Space, _first: int, _count: int) -> None:
        name, value = self.rng.choice(SETTINGS)
        write_sysfs(self.machine, name, value)


def play(machine: Machine, seed: int, steps: int, base: int = 0) -> Play:
    """Play, and take the machine down: nothing may be left."""
    one = Play(machine, seed, base=base)
    for _ in range(steps):
        one.step()
    for space in one.spaces:
        run_at_once(set_merge_any(space.mm, True))
    machine.check()
    machine.close()
    return one


def small_pages() -> Machine:
    return Machine(swap_bytes=1 << 20)


def huge_pages() -> Machine:
    return HugeMachine(24 << 20, TransparentHugepage.ALWAYS, swap_bytes=8 << 20)


@pytest.mark.parametrize("seed", range(2))
def test_random_calls(seed: int) -> None:
    assert play(small_pages(), seed, 60).most_sharing > 0


def test_random_calls_with_huge_pages() -> None:
    machine = huge_pages()
    big = Play(machine, 1, base=HUGE - PAGES // 2)
    mmap(big.spaces[0].mm, 2 * HUGE, at=page(0))
    advise(big.spaces[0].mm, 0, 2 * HUGE, Madv.MERGEABLE)
    for number in range(HUGE - PAGES, HUGE + PAGES):
        big.spaces[0].pages[number] = "0"
    for _ in range(12):
        big.step()
    machine.check()
    machine.close()
