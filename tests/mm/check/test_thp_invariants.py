"""The invariants notice broken huge pages: each way of breaking one is named in the KernelBug."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from kerneld.errors import KernelBug
from kerneld.hw.paging import PTE_PSE, PTE_RW, PTE_SPECIAL
from kerneld.mm.check.invariants import check_machine
from kerneld.mm.frames.frames import PG_ANON_EXCLUSIVE
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_GROWSDOWN
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE
from tests.support.huge_machine import HUGE, HugeMachine, frame_at, huge, sizes
from tests.support.machine import ANON, BASE, RW, load, mmap, store, vma_at


class World:
    """A huge page that two processes share, one of the first alone, and the huge zero page."""

    def __init__(self) -> None:
        self.machine = HugeMachine()
        self.frames = self.machine.frames
        self.huge = self.frames.huge
        self.mm = self.machine.new_mm()
        mmap(self.mm, 3 * HUGE, RW, ANON, at=BASE)
        store(self.mm, huge(0), b"x")
        self.child = self.machine.fork(self.mm)
        store(self.mm, huge(1), b"x")
        load(self.mm, huge(2))
        assert (sizes(self.mm), sizes(self.child)) == ("HHZ-", "H---")
        self.machine.check()

    def change(self, number: int, *, add: int = 0, drop: int = 0) -> None:
        pmd = self.mm.page_table.find_huge_pmd(huge(number))
        assert pmd is not None
        self.machine.ram.words[pmd] = self.machine.ram.words[pmd] & ~drop | add

    def head(self, number: int) -> int:
        return frame_at(self.mm, huge(number))

    def move_bound(self, end: int) -> None:
        """Give the VMA another end behind the back of what would cut the huge page up."""
        self.mm.vmas.move(vma_at(self.mm, BASE), BASE, end)

    def forget_owner(self) -> None:
        self.frames.clear(np.array([self.head(1) + 7]), PG_ANON_EXCLUSIVE)
        self.change(1, drop=PTE_RW)

    def split_vma(self, vaddr: int) -> None:
        """Cut the VMA in two in the same way."""
        vma = vma_at(self.mm, BASE)
        self.move_bound(vaddr)
        self.mm.vmas.insert(Vma(vaddr, huge(3), vma.vm_flags, vaddr >> PAGE_SHIFT))


BREAK: list[tuple[str, Callable[[World], object]]] = [
    ("in no anonymous VMA whole", lambda w: w.split_vma(huge(3) - PAGE_SIZE)),
    ("lies in no VMA", lambda w: w.move_bound(huge(2))),
    ("deposited tables are", lambda w: w.mm.page_table.free_deposit()),
    ("table_pages is", lambda w: w.mm.page_table.deposited.pop()),
    ("entire_mapcount is", lambda w: w.huge.add_mapping(w.head(0))),
    ("entire_mapcount is", lambda w: w.huge.remove_mapping(w.head(1))),
    ("counts 2 entries", lambda w: setattr(w.huge, "zero_users", 2)),
    ("no read-only zero page", lambda w: w.change(2, add=PTE_RW)),
    ("no read-only zero page", lambda w: w.change(1, add=PTE_SPECIAL)),
    ("no read-only zero page", lambda w: setattr(w.huge, "zero_pfn", None)),
    ("is writable, and its anonymous frame", lambda w: w.change(0, add=PTE_RW)),
    ("does not name a table", lambda w: w.change(1, drop=PTE_PSE)),
    ("differ in whose they are", lambda w: w.forget_owner()),
    ("of another index", lambda w: w.frames.index.__setitem__(w.head(1) + 7, 5)),
    ("mapcount of frame", lambda w: w.frames.mapcount.__setitem__(w.head(0) + 9, 1)),
    ("refcount of frame", lambda w: w.frames.refcount.__setitem__(w.head(0) + 9, 1)),
    ("refcount of frame", lambda w: w.frames.put_page(w.head(2) + 1)),
    ("zero page has been written", lambda w: w.machine.ram.write((w.head(2) + 3) << 12, b"x")),
]


@pytest.mark.parametrize(("message", "damage"), BREAK, ids=[message for message, _ in BREAK])
def test_each_damage_is_found(message: str, damage: Callable[[World], object]) -> None:
    world = World()
    damage(world)
    with pytest.raises(KernelBug, match=message):
        check_machine(world.frames, world.machine.mms)


def test_a_stack_may_have_huge_pages() -> None:
    machine = HugeMachine()
    mm = machine.new_mm()
    mmap(mm, HUGE, RW, ANON | Map.GROWSDOWN.value, at=huge(1))
    assert vma_at(mm, huge(1)).vm_flags & VM_GROWSDOWN
    store(mm, huge(1) + PAGE_SIZE, b"x")
    assert sizes(mm) == "-H--"
    store(mm, huge(1) - PAGE_SIZE, b"y")
    assert sizes(mm) == "tH--"
    machine.check()
    machine.close()
