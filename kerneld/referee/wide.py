"""Random programs on wide ranges of three to eight leaf tables, sometimes of 66: calls handle many tables at once.

Owns the weights of such programs. `generate` sometimes makes one of them. They make a few calls, nearly all on mapped
memory, and every page is compared. Most tables have a few pages, some have none, some are full.
"""

from __future__ import annotations

import random
from typing import ClassVar

from kerneld.referee.program import ARENA_START, HARMLESS, MAX_PROCESSES, At, Base, Op, Program
from shared.uapi.mman import Madv, Map, Mremap
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SIZE

_SLOTS = 3
_TABLE_PAGES = PMD_SIZE >> PAGE_SHIFT
_TABLES = (3, 3, 3, 4, 4, 4, 5, 5, 5, 8, 8, 17, 66)
"""How many leaf tables a mapping has. kerneld handles at most 16 at once, or 64."""
_MOST_POPULATED = 8 * _TABLE_PAGES + 100
"""A longer mapping has some pages in every leaf table, and is not populated as a whole."""
_UNEVEN_PAGES = (0, 0, 0, -1, 1, 100)
_PLACES = (
    *(ARENA_START + number * (16 << 20) for number in range(4)),
    (1 << 31) - (4 << 20),
    (1 << 39) - (6 << 20),
    (1 << 39) - (70 << 20),
)
"""The last three places are just below boundaries of the tables of higher levels."""
_ADVICE = (Madv.DONTNEED, Madv.DONTNEED, Madv.FREE, Madv.COLD, Madv.PAGEOUT, Madv.POPULATE_READ, Madv.POPULATE_WRITE)
_WEIGHTS = {
    "mapping": 8, "munmap": 6, "mprotect": 18, "mremap": 16, "madvise": 18, "mlock2": 3, "munlock": 4, "touch": 14,
    "store": 8, "fork": 8, "exit": 2, "pkey_mprotect": 3, "pkey_alloc": 1, "wrpkru": 1,
}  # fmt: skip


class WideGenerator:
    """The program of one state of `rng`."""

    weights: ClassVar[dict[str, int]] = _WEIGHTS
    advice: ClassVar[tuple[Madv, ...]] = _ADVICE
    tables: ClassVar[tuple[int, ...]] = _TABLES

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._pages: dict[int, int] = {}
        """By slot, the original length of its mapping in pages."""
        self._processes = [0]
        self._forks = 0

    def program(self, nr_ops: int) -> Program:
        """Return a program of `nr_ops` calls."""
        ops = self._mapping() + self._mapping()
        while len(ops) < nr_ops:
            name = self._rng.choices(list(self.weights), list(self.weights.values()))[0]
            ops.extend(getattr(self, f"_{name}")())
        return tuple(ops[:nr_ops])

    def _who(self) -> int:
        return self._rng.choice(self._processes)

    def _place(self) -> At:
        rng = self._rng
        return At(Base.ZERO, rng.choice(_PLACES) + rng.choice((0, 0, 1, _TABLE_PAGES - 1)) * PAGE_SIZE)

    def _range(self) -> tuple[At, int]:
        """Return a part of a mapping: all or most of it. It may begin or end at the boundary of a table."""
        rng = self._rng
        slot = rng.choice(list(self._pages))
        pages = self._pages[slot]
        first = min(rng.choice((0, 0, 0, 1, _TABLE_PAGES - 1, _TABLE_PAGES, rng.randrange(pages))), pages - 1)
        last = rng.choice((pages, pages, pages, pages - 1, pages & -_TABLE_PAGES, rng.randrange(pages)))
        return At(slot, first * PAGE_SIZE), max(last - first, 1) * PAGE_SIZE

    def _mapping(self) -> list[Op]:
        """Make a mapping, and access most of its leaf tables."""
        rng = self._rng
        who, slot = self._processes[0], rng.randrange(_SLOTS)
        pages = self._pages[slot] = rng.choice(self.tables) * _TABLE_PAGES + rng.choice(_UNEVEN_PAGES)
        flags = rng.choice((Map.PRIVATE, Map.PRIVATE, Map.PRIVATE, Map.SHARED)) | Map.ANONYMOUS
        flags |= rng.choice((Map.FIXED, Map.FIXED, Map.NORESERVE))
        ops = [Op(who, "mmap", (self._place(), pages * PAGE_SIZE, 3, flags.value, 0), slot=slot)]
        if pages > _MOST_POPULATED:
            vaddr = At(slot, rng.choice((0, 9, _TABLE_PAGES - 2)) * PAGE_SIZE)
            access, touched = rng.choice((0, 1, 1)), rng.choice((1, 3)) * PAGE_SIZE
            touch = Op(who, "touch", (vaddr, touched, access), times=pages // _TABLE_PAGES, stride=PMD_SIZE)
            return [*ops, touch]
        for table in range(pages // _TABLE_PAGES):
            if rng.random() < 0.7:
                vaddr = At(slot, (table * _TABLE_PAGES + rng.choice((0, 9, _TABLE_PAGES - 2))) * PAGE_SIZE)
                ops.append(Op(who, "touch", (vaddr, rng.choice((1, 3)) * PAGE_SIZE, rng.choice((0, 1, 1)))))
        return ops

    def _munmap(self) -> list[Op]:
        return [Op(self._who(), "munmap", self._range())]

    def _mprotect(self) -> list[Op]:
        return [Op(self._who(), "mprotect", (*self._range(), self._rng.choice((0, 1, 3, 3))))]

    def _pkey_mprotect(self) -> list[Op]:
        prot, key = self._rng.choice((0, 1, 3, 3)), self._rng.choice((0, 1, 1, 2))
        return [Op(self._who(), "pkey_mprotect", (*self._range(), prot, key))]

    def _pkey_alloc(self) -> list[Op]:
        return [Op(self._who(), "pkey_alloc", (0, self._rng.choice((0, 0, 1, 2))))]

    def _wrpkru(self) -> list[Op]:
        return [Op(self._who(), "wrpkru", (self._rng.choice((0, 0, 0x5555_5550, 0x5555_5554)),))]

    def _madvise(self) -> list[Op]:
        place, length = self._range()
        advice = self._rng.choice(self.advice)
        if advice in (Madv.POPULATE_READ, Madv.POPULATE_WRITE):
            length = min(length, _MOST_POPULATED * PAGE_SIZE)
        return [Op(self._who(), "madvise", (place, length, advice.value))]

    def _mremap(self) -> list[Op]:
        """Nearly always move the mapping: to a place with the same offset in its tables, or another one."""
        rng = self._rng
        place, old = self._range()
        new = rng.choice((old, old, old, old + 3 * PAGE_SIZE, max(old >> 1 & -PAGE_SIZE, PAGE_SIZE)))
        flags = rng.choice((Mremap.MAYMOVE, Mremap.MAYMOVE | Mremap.FIXED, Mremap.MAYMOVE | Mremap.FIXED))
        if new == old and rng.random() < 0.2:
            flags |= Mremap.DONTUNMAP
        slot = place.base if not place.offset else rng.randrange(_SLOTS)
        if new > _TABLE_PAGES * PAGE_SIZE:
            self._pages[slot] = new >> PAGE_SHIFT
        else:
            slot = -1
        return [Op(self._who(), "mremap", (place, old, new, flags.value, self._place()), slot=slot)]

    def _mlock2(self) -> list[Op]:
        return [Op(self._who(), "mlock2", (*self._range(), 1))]

    def _munlock(self) -> list[Op]:
        return [Op(self._who(), "munlock", self._range())]

    def _touch(self) -> list[Op]:
        place, length = self._range()
        return [Op(self._who(), "touch", (place, min(length, 20 * PAGE_SIZE), self._rng.choice((0, 1, 1))))]

    def _store(self) -> list[Op]:
        data = bytes(self._rng.choices(HARMLESS, k=3))
        return [Op(self._who(), "store", (self._range()[0], 8), data=data)]

    def _fork(self) -> list[Op]:
        if self._forks + 1 >= MAX_PROCESSES:
            return self._touch()
        who = self._who()
        self._forks += 1
        self._processes.append(self._forks)
        return [Op(who, "fork", (self._forks,))]

    def _exit(self) -> list[Op]:
        if len(self._processes) == 1:
            return self._store()
        who = self._who()
        self._processes.remove(who)
        return [Op(who, "exit")]
