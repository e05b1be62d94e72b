"""Random calls and accesses in a family of address spaces, against a model that knows pages and nothing else.

The model keeps, for each page of each process, its rights and where its value lives: in the process's own copy, or in
what lies under it (zeros, a page of a file, a page of shared memory). It has no VMAs, no frames and no entries. After
every step the machine's invariants hold, and the VMAs cover exactly the model's pages with the model's rights.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from signal import SIGBUS, SIGSEGV

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kerneld.mm.brk import do_brk
from kerneld.mm.invariants import find_unmerged
from kerneld.mm.mm import MmStruct
from kerneld.mm.mprotect import do_mprotect
from kerneld.mm.munmap import do_munmap
from kerneld.mm.populate import mm_populate
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS
from kerneld.mm.writeback import do_msync
from shared.uapi.mman import Map, Ms
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from tests.mm.world import (
    ANON,
    BASE,
    EXEC,
    NONE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    SHARED_ANON,
    WRITE,
    Machine,
    failure,
    load,
    mmap,
    store,
)

PAGES = 40
"""The arena lies across two leaf tables."""
ARENA = (BASE + PMD_SIZE >> PAGE_SHIFT) - PAGES // 2
FILE_PAGES = 24
HEAP = (BASE >> PAGE_SHIFT) + 0x10000
HEAP_PAGES = 12
STACK_TOP = (BASE >> PAGE_SHIFT) + 0x20000
STACK_PAGES = 20
WORD = 16
"""Where in each page its value is kept."""
MAX_MMS = 4


class Box:
    """A value that several processes see."""

    def __init__(self, value: int = 0) -> None:
        self.value = value


@dataclass
class Cell:
    """One page of one process; `under` is None past the end of a file."""

    prot: int
    under: Box | None
    shared: bool = False
    own: int | None = None


class Space:
    """One process: the real address space and the model of it."""

    def __init__(self, mm: MmStruct, cells: dict[int, Cell], brk: int) -> None:
        self.mm = mm
        self.cells = cells
        self.brk = brk


WHO = st.integers(0, MAX_MMS - 1)
PLACE = st.integers(0, PAGES - 1)
COUNT = st.integers(1, PAGES // 2)
PROT = st.sampled_from([NONE, READ, RW, RW, RW, READ | EXEC, WRITE])
KIND = st.sampled_from([ANON, ANON, SHARED_ANON, PRIVATE, SHARED])
ANY_PAGE = st.one_of(
    st.integers(ARENA, ARENA + PAGES - 1),
    st.integers(HEAP, HEAP + HEAP_PAGES - 1),
    st.integers(STACK_TOP - STACK_PAGES, STACK_TOP - 1),
)


class AddressSpaces(RuleBasedStateMachine):
    """The rules; `who` picks among the processes that live."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine()
        self.file_pages = [Box(1000 + index) for index in range(FILE_PAGES)]
        data = b"".join(
            bytes(WORD) + box.value.to_bytes(8, "little") + bytes(PAGE_SIZE - WORD - 8) for box in self.file_pages
        )
        self.file, self.backing = self.machine.new_file(data)
        mm = self.machine.new_mm()
        mm.start_brk = mm.brk = HEAP << PAGE_SHIFT
        mmap(mm, 1, RW, ANON | Map.GROWSDOWN.value, at=(STACK_TOP - 1) << PAGE_SHIFT)
        self.spaces = [Space(mm, {STACK_TOP - 1: Cell(RW, Box())}, HEAP)]

    def pick(self, who: int) -> Space:
        return self.spaces[who % len(self.spaces)]

    def under(self, flags: int, index: int) -> Box | None:
        if flags & Map.ANONYMOUS.value:
            return Box()
        return self.file_pages[index] if index < FILE_PAGES else None

    @rule(
        who=WHO,
        place=PLACE,
        count=COUNT,
        prot=PROT,
        flags=KIND,
        pgoff=st.integers(0, FILE_PAGES),
        populate=st.booleans(),
    )
    def mmap(self, who: int, place: int, count: int, prot: int, flags: int, pgoff: int, populate: bool) -> None:
        space = self.pick(who)
        count = min(count, PAGES - place)
        file = None if flags & Map.ANONYMOUS.value else self.file
        at = (ARENA + place) << PAGE_SHIFT
        more = Map.POPULATE.value if populate else 0
        mmap(space.mm, count, prot, flags | more, at=at, file=file, pgoff=pgoff if file is not None else 0)
        for number in range(count):
            shared = flags & SHARED != 0
            space.cells[ARENA + place + number] = Cell(prot, self.under(flags, pgoff + number), shared)

    @rule(who=WHO, place=PLACE, count=COUNT)
    def munmap(self, who: int, place: int, count: int) -> None:
        space = self.pick(who)
        do_munmap(space.mm, (ARENA + place) << PAGE_SHIFT, min(count, PAGES - place) * PAGE_SIZE)
        for number in range(place, min(place + count, PAGES)):
            space.cells.pop(ARENA + number, None)

    @rule(who=WHO, place=PLACE, count=COUNT, prot=PROT)
    def mprotect(self, who: int, place: int, count: int, prot: int) -> None:
        space = self.pick(who)
        hole = False
        for number in range(ARENA + place, ARENA + min(place + count, PAGES)):
            if number not in space.cells:
                hole = True
                break
            space.cells[number].prot = prot
        start, length = (ARENA + place) << PAGE_SHIFT, min(count, PAGES - place) * PAGE_SIZE
        assert failure(lambda: do_mprotect(space.mm, start, length, prot)) == (errno.ENOMEM if hole else 0)

    @rule(who=WHO, pages=st.integers(0, HEAP_PAGES), ragged=st.integers(0, PAGE_SIZE - 1))
    def brk(self, who: int, pages: int, ragged: int) -> None:
        space = self.pick(who)
        wanted = ((HEAP + pages) << PAGE_SHIFT) - (ragged if pages else 0)
        assert do_brk(space.mm, wanted, privileged=False) == wanted
        for number in range(HEAP, HEAP + HEAP_PAGES):
            if number >= HEAP + pages:
                space.cells.pop(number, None)
            elif number >= space.brk:
                space.cells[number] = Cell(RW, Box())
        space.brk = HEAP + pages

    def grow_stack(self, space: Space, number: int) -> None:
        if STACK_TOP - STACK_PAGES <= number < STACK_TOP:
            for below in range(number, STACK_TOP):
                space.cells.setdefault(below, Cell(RW, Box()))

    @rule(who=WHO, number=ANY_PAGE)
    def load(self, who: int, number: int) -> None:
        space = self.pick(who)
        self.grow_stack(space, number)
        self.compare(space, number)

    def compare(self, space: Space, number: int) -> None:
        cell = space.cells.get(number)
        ended = failure(lambda: load(space.mm, number << PAGE_SHIFT | WORD, 8))
        assert ended == self.expected_signal(cell, VM_ACCESS_FLAGS)
        if cell is not None and not ended:
            expected = cell.under.value if cell.own is None and cell.under is not None else cell.own
            assert load(space.mm, number << PAGE_SHIFT | WORD, 8) == (expected or 0).to_bytes(8, "little")

    @staticmethod
    def expected_signal(cell: Cell | None, needed: int) -> int:
        if cell is None or not cell.prot & needed:
            return SIGSEGV
        return SIGBUS if cell.own is None and cell.under is None else 0

    @rule(who=WHO, number=ANY_PAGE, value=st.integers(1, (1 << 64) - 1))
    def store(self, who: int, number: int, value: int) -> None:
        space = self.pick(who)
        self.grow_stack(space, number)
        cell = space.cells.get(number)
        data = value.to_bytes(8, "little")
        ended = failure(lambda: store(space.mm, number << PAGE_SHIFT | WORD, data))
        assert ended == self.expected_signal(cell, WRITE)
        if cell is not None and not ended:
            if not cell.shared:
                cell.own = value
            elif cell.under is not None:
                cell.under.value = value

    @rule(who=WHO, place=PLACE, count=COUNT)
    def populate(self, who: int, place: int, count: int) -> None:
        mm_populate(self.pick(who).mm, (ARENA + place) << PAGE_SHIFT, (ARENA + min(place + count, PAGES)) << PAGE_SHIFT)

    @rule(who=WHO)
    def msync(self, who: int) -> None:
        space = self.pick(who)
        hole = not space.cells.keys() >= set(range(ARENA, ARENA + PAGES))
        ended = failure(lambda: do_msync(space.mm, ARENA << PAGE_SHIFT, PAGES * PAGE_SIZE, Ms.SYNC.value))
        assert ended == (errno.ENOMEM if hole else 0)
        for cell in space.cells.values():
            if cell.shared and cell.under in self.file_pages:
                assert self.saved(self.file_pages.index(cell.under)) == cell.under.value

    def saved(self, index: int) -> int:
        start = index * PAGE_SIZE + WORD
        return int.from_bytes(self.backing.data[start : start + 8], "little")

    @precondition(lambda self: len(self.spaces) < MAX_MMS)
    @rule(who=WHO)
    def fork(self, who: int) -> None:
        parent = self.pick(who)
        cells = {number: replace(cell) for number, cell in parent.cells.items()}
        for cell in cells.values():
            if not cell.shared and cell.under not in self.file_pages and cell.under is not None:
                cell.under = Box(cell.under.value)
        self.spaces.append(Space(self.machine.fork(parent.mm), cells, parent.brk))

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
            assert find_unmerged(space.mm) == []
            covered = {
                page: vma.vm_flags & VM_ACCESS_FLAGS
                for vma in space.mm.vmas
                for page in range(vma.start >> PAGE_SHIFT, vma.end >> PAGE_SHIFT)
            }
            assert covered == {number: cell.prot for number, cell in space.cells.items()}

    def teardown(self) -> None:
        for space in self.spaces:
            for number in space.cells:
                self.compare(space, number)
        self.machine.check()
        self.machine.close()
        assert [self.saved(index) for index in range(FILE_PAGES)] == [box.value for box in self.file_pages]


TestAddressSpaces = AddressSpaces.TestCase
TestAddressSpaces.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
