"""Random calls and accesses in a family of address spaces, against a model that knows pages and nothing else.

The model keeps, for each page of each process, its rights and where its value lives: in the process's own copy, or in
what lies under it (zeros, a page of a file, a page of shared memory). It has no VMAs, no frames and no entries. After
every step the machine's invariants hold, and the VMAs cover exactly the model's pages with the model's rights.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from signal import SIGBUS, SIGSEGV

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kerneld.mm.calls.brk import do_brk
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.check.invariants import find_unmerged
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.writeback import do_msync
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS
from shared.uapi.mman import Madv, Map, Mremap, Ms
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE
from tests.support.machine import (
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

PAGES = 14
"""The arena lies across two leaf tables, and is so small that calls meet each other's traces."""
ARENA = (BASE + PMD_SIZE >> PAGE_SHIFT) - PAGES // 2
FILE_PAGES = 9
HEAP = (BASE >> PAGE_SHIFT) + 0x10000
HEAP_PAGES = 4
STACK_TOP = (BASE >> PAGE_SHIFT) + 0x20000
STACK_PAGES = 4
WORD = 16
"""Where in each page its value is kept."""
MAX_MMS = 3


class Box:
    """The value of one page of a file or of shared memory, which several processes may see."""

    def __init__(self, value: int = 0) -> None:
        self.value = value


@dataclass
class Cell:
    """One page of one process: its own copy if it has one, else page `index` of a file or shared memory, else zeros."""

    prot: int
    file: list[Box] | None = None
    index: int = 0
    shared: bool = False
    own: int | None = None

    @property
    def value(self) -> int | None:
        """What a load finds, None past the end of the file."""
        if self.own is not None:
            return self.own
        if self.file is None:
            return 0
        return self.file[self.index].value if self.index < len(self.file) else None

    def store(self, value: int) -> None:
        if self.shared and self.file is not None:
            self.file[self.index].value = value
        else:
            self.own = value

    def populate(self) -> None:
        """Private writable memory is populated by writes: a page of a file is copied then, as it is at that moment."""
        if not self.shared and self.prot & WRITE:
            self.own = self.value


class Space:
    """One process: the real address space and the model of it."""

    def __init__(self, mm: MmStruct, cells: dict[int, Cell], brk: int) -> None:
        self.mm = mm
        self.cells = cells
        self.brk = brk
        self.may_be_unmerged = False
        """Whether MREMAP_DONTUNMAP has taken the owner from a VMA that then could merge (as in Linux, nobody tries)."""


WHO = st.integers(0, MAX_MMS - 1)
PLACE = st.integers(0, PAGES - 1)
COUNT = st.integers(1, PAGES // 2)
PROT = st.sampled_from([NONE, READ, RW, RW, RW, READ | EXEC, WRITE])
KIND = st.sampled_from([ANON, ANON, SHARED_ANON, PRIVATE, SHARED])
ANY_PAGE = st.one_of(
    st.integers(ARENA, ARENA + PAGES - 1),
    st.integers(ARENA, ARENA + PAGES - 1),
    st.integers(HEAP, HEAP + HEAP_PAGES - 1),
    st.integers(STACK_TOP - STACK_PAGES, STACK_TOP - 1),
)


class AddressSpaces(RuleBasedStateMachine):
    """The rules; `who` picks among the processes that live."""

    def __init__(self) -> None:
        super().__init__()
        self.machine = self.new_machine()
        self.file_pages = [Box(1000 + index) for index in range(FILE_PAGES)]
        data = b"".join(
            bytes(WORD) + box.value.to_bytes(8, "little") + bytes(PAGE_SIZE - WORD - 8) for box in self.file_pages
        )
        self.file, self.backing = self.machine.new_file(data)
        mm = self.machine.new_mm()
        mm.start_brk = mm.brk = HEAP << PAGE_SHIFT
        mmap(mm, 1, RW, ANON | Map.GROWSDOWN.value, at=(STACK_TOP - 1) << PAGE_SHIFT)
        self.spaces = [Space(mm, {STACK_TOP - 1: Cell(RW)}, HEAP)]

    def new_machine(self) -> Machine:
        return Machine()

    def pick(self, who: int) -> Space:
        return self.spaces[who % len(self.spaces)]

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
        anonymous = flags & Map.ANONYMOUS.value
        pgoff = 0 if anonymous else pgoff
        at = (ARENA + place) << PAGE_SHIFT
        more = Map.POPULATE.value if populate else 0
        mmap(space.mm, count, prot, flags | more, at=at, file=None if anonymous else self.file, pgoff=pgoff)
        pages = {ANON: None, SHARED_ANON: [Box() for _ in range(count)]}.get(flags, self.file_pages)
        for number in range(count):
            cell = space.cells[ARENA + place + number] = Cell(prot, pages, pgoff + number, flags & SHARED != 0)
            if populate:
                cell.populate()

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
                space.cells[number] = Cell(RW)
        space.brk = HEAP + pages

    def grow_stack(self, space: Space, number: int) -> None:
        if STACK_TOP - STACK_PAGES <= number < STACK_TOP:
            for below in range(number, STACK_TOP):
                space.cells.setdefault(below, Cell(RW))

    @rule(who=WHO, number=ANY_PAGE)
    def load(self, who: int, number: int) -> None:
        space = self.pick(who)
        self.grow_stack(space, number)
        self.compare(space, number)

    def compare(self, space: Space, number: int) -> None:
        cell = space.cells.get(number)
        ended = failure(lambda: load(space.mm, number << PAGE_SHIFT | WORD, 8))
        assert ended == self.expected_signal(cell, VM_ACCESS_FLAGS)
        if cell is not None and cell.value is not None and not ended:
            assert load(space.mm, number << PAGE_SHIFT | WORD, 8) == cell.value.to_bytes(8, "little")

    @staticmethod
    def expected_signal(cell: Cell | None, needed: int) -> int:
        if cell is None or not cell.prot & needed:
            return SIGSEGV
        return SIGBUS if cell.value is None else 0

    @rule(who=WHO, number=ANY_PAGE, value=st.integers(1, (1 << 64) - 1))
    def store(self, who: int, number: int, value: int) -> None:
        space = self.pick(who)
        self.grow_stack(space, number)
        cell = space.cells.get(number)
        data = value.to_bytes(8, "little")
        ended = failure(lambda: store(space.mm, number << PAGE_SHIFT | WORD, data))
        assert ended == self.expected_signal(cell, WRITE)
        if cell is not None and not ended:
            cell.store(value)

    @rule(who=WHO, place=PLACE, count=COUNT)
    def populate(self, who: int, place: int, count: int) -> None:
        space = self.pick(who)
        last = ARENA + min(place + count, PAGES)
        mm_populate(space.mm, (ARENA + place) << PAGE_SHIFT, last << PAGE_SHIFT)
        for number in range(ARENA + place, last):
            if number in space.cells:
                space.cells[number].populate()

    @rule(who=WHO)
    def msync(self, who: int) -> None:
        space = self.pick(who)
        hole = not space.cells.keys() >= set(range(ARENA, ARENA + PAGES))
        ended = failure(lambda: do_msync(space.mm, ARENA << PAGE_SHIFT, PAGES * PAGE_SIZE, Ms.SYNC.value))
        assert ended == (errno.ENOMEM if hole else 0)
        for number, cell in space.cells.items():
            if (
                ARENA <= number < ARENA + PAGES
                and cell.shared
                and cell.file is self.file_pages
                and cell.value is not None
            ):
                assert self.saved(cell.index) == cell.value

    def saved(self, index: int) -> int:
        start = index * PAGE_SIZE + WORD
        return int.from_bytes(self.backing.data[start : start + 8], "little")

    @rule(who=WHO, place=PLACE, count=COUNT, advice=st.sampled_from([Madv.DONTNEED, Madv.FREE, Madv.COLD]))
    def madvise(self, who: int, place: int, count: int, advice: int) -> None:
        """MADV_FREE is refused for files, from the first one on; nothing is ever lost by it here."""
        space = self.pick(who)
        pages = range(ARENA + place, ARENA + min(place + count, PAGES))
        expected = 0 if all(number in space.cells for number in pages) else errno.ENOMEM
        for number in pages:
            cell = space.cells.get(number)
            if cell is not None and advice == Madv.FREE and cell.file is not None:
                expected = errno.EINVAL
            if cell is not None and advice == Madv.DONTNEED:
                cell.own = None
        start, length = pages[0] << PAGE_SHIFT, len(pages) * PAGE_SIZE
        assert failure(lambda: do_madvise(space.mm, start, length, advice)) == expected

    @rule(who=WHO, place=PLACE, count=COUNT)
    def punch(self, who: int, place: int, count: int) -> None:
        """MADV_REMOVE where all is shared and of one file."""
        space = self.pick(who)
        pages = range(ARENA + place, ARENA + min(place + count, PAGES))
        cells = [space.cells[number] for number in pages if number in space.cells]
        if len(cells) < len(pages) or not all(cell.shared for cell in cells):
            return
        do_madvise(space.mm, pages[0] << PAGE_SHIFT, len(pages) * PAGE_SIZE, Madv.REMOVE)
        for cell in cells:
            if cell.value is not None:
                cell.store(0)

    @rule(who=WHO, place=PLACE, count=COUNT, new_count=COUNT, to=st.one_of(st.none(), PLACE), keep=st.booleans())
    def mremap(self, who: int, place: int, count: int, new_count: int, to: int | None, keep: bool) -> None:
        """Of a part of one VMA: in place or anywhere (`to` is None), or to a place; `keep` leaves the old one."""
        space = self.pick(who)
        first = ARENA + place
        vma = space.mm.vmas.lookup(first << PAGE_SHIFT)
        if vma is None:
            return
        count = min(count, (vma.end >> PAGE_SHIFT) - first, PAGES - place)
        flags, dest = Mremap.MAYMOVE, first
        if to is not None:
            flags, dest = flags | Mremap.FIXED, ARENA + to
            new_count = min(new_count, PAGES - to)
            if keep:
                flags, count, new_count = flags | Mremap.DONTUNMAP, min(count, new_count), min(count, new_count)
            if dest < first + count and first < dest + new_count:
                return
        here, there = first << PAGE_SHIFT, dest << PAGE_SHIFT
        found = do_mremap(space.mm, here, count * PAGE_SIZE, new_count * PAGE_SIZE, flags, there, privileged=False)
        assert to is None or found == there
        self.move(space, first, count, found >> PAGE_SHIFT, new_count, keep=bool(flags & Mremap.DONTUNMAP))

    def move(self, space: Space, first: int, count: int, dest: int, new_count: int, *, keep: bool) -> None:
        space.may_be_unmerged |= keep
        old = [space.cells.pop(first + number) for number in range(count)]
        grown = [replace(old[0], index=old[0].index + number, own=None) for number in range(count, new_count)]
        if dest == first:
            assert not any(first + number in space.cells for number in range(count, new_count))
        for number, cell in enumerate([*old, *grown][:new_count]):
            space.cells[dest + number] = cell
        if keep:
            for number, cell in enumerate(old):
                space.cells[first + number] = replace(cell, own=None)

    @precondition(lambda self: len(self.spaces) < MAX_MMS)
    @rule(who=WHO)
    def fork(self, who: int) -> None:
        parent = self.pick(who)
        cells = {number: replace(cell) for number, cell in parent.cells.items()}
        child = Space(self.machine.fork(parent.mm), cells, parent.brk)
        child.may_be_unmerged = parent.may_be_unmerged
        self.spaces.append(child)

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
            assert space.may_be_unmerged or find_unmerged(space.mm) == []
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
