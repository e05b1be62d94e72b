"""Random programs that fork again and again: a family of up to thirty generations, of which at most four live.

Owns the weights. A VMA has an anon_vma for each ancestor that wrote to it, and a page is looked for in all that came
after. So each generation writes some pages and changes some mappings before it forks, and the old ones go in any order.
"""

from __future__ import annotations

import random
from typing import ClassVar

from kerneld.referee.program import ARENA_START, HARMLESS, MAX_PROCESSES, At, Base, Op, Program
from shared.uapi.mman import Madv, Map, Mremap
from shared.uapi.page import PAGE_SIZE

_SLOTS = 3
_PAGES = 12
_ADVICE = (
    Madv.DONTNEED,
    Madv.FREE,
    Madv.COLD,
    Madv.PAGEOUT,
    Madv.WIPEONFORK,
    Madv.KEEPONFORK,
    Madv.DONTFORK,
    Madv.DOFORK,
)
_WEIGHTS = {
    "fork": 30, "exit": 22, "store": 24, "touch": 14, "mapping": 4, "munmap": 6, "mprotect": 8, "mremap": 9,
    "madvise": 7, "mlock2": 1, "munlock": 1, "process_vm": 2,
}  # fmt: skip


class DeepGenerator:
    """The program of one state of `rng`."""

    weights: ClassVar[dict[str, int]] = _WEIGHTS

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._alive = [0]

    def program(self, nr_ops: int) -> Program:
        """Return a program of `nr_ops` calls."""
        ops = [self._mapping(), self._mapping(), self._store()]
        while len(ops) < nr_ops:
            name = self._rng.choices(list(self.weights), list(self.weights.values()))[0]
            ops.append(getattr(self, f"_{name}")())
        return tuple(ops[:nr_ops])

    def _op(self, name: str, *args: At | int, slot: int = -1) -> Op:
        return Op(self._rng.choice(self._alive), name, args, slot=slot)

    def _range(self) -> tuple[At, int]:
        rng = self._rng
        first = rng.choice((0, 0, rng.randrange(_PAGES)))
        return At(rng.randrange(_SLOTS), first * PAGE_SIZE), rng.choice((1, 1, 2, 4, _PAGES)) * PAGE_SIZE

    def _mapping(self) -> Op:
        rng = self._rng
        flags = rng.choice((Map.PRIVATE, Map.PRIVATE, Map.PRIVATE, Map.SHARED)) | Map.ANONYMOUS | Map.FIXED
        where = At(Base.ZERO, ARENA_START + rng.choice((0, 0, 5, _PAGES, 2 * _PAGES)) * PAGE_SIZE)
        return self._op("mmap", where, _PAGES * PAGE_SIZE, 3, flags.value, 0, slot=rng.randrange(_SLOTS))

    def _munmap(self) -> Op:
        return self._op("munmap", *self._range())

    def _mprotect(self) -> Op:
        return self._op("mprotect", *self._range(), self._rng.choice((0, 1, 3, 3, 3)))

    def _mremap(self) -> Op:
        """Mostly move a part beside another one, where it may merge."""
        rng = self._rng
        place, old = self._range()
        flags = rng.choice((Mremap.MAYMOVE, Mremap.MAYMOVE | Mremap.FIXED, Mremap.MAYMOVE | Mremap.FIXED))
        if rng.random() < 0.15:
            flags |= Mremap.DONTUNMAP
        new = old if flags & Mremap.DONTUNMAP else rng.choice((old, old, old + PAGE_SIZE))
        return self._op("mremap", place, old, new, flags.value, self._range()[0], slot=rng.randrange(_SLOTS))

    def _madvise(self) -> Op:
        return self._op("madvise", *self._range(), self._rng.choice(_ADVICE).value)

    def _mlock2(self) -> Op:
        return self._op("mlock2", *self._range(), self._rng.choice((0, 1)))

    def _munlock(self) -> Op:
        return self._op("munlock", *self._range())

    def _touch(self) -> Op:
        return self._op("touch", *self._range(), self._rng.choice((0, 0, 1)))

    def _store(self) -> Op:
        data = bytes(self._rng.choices(HARMLESS, k=3))
        return self._op("store", self._range()[0], self._rng.choice((8, 5000)))._replace(data=data)

    def _process_vm(self) -> Op:
        rng = self._rng
        (local, _), (remote, _) = self._range(), self._range()
        name = rng.choice(("process_vm_readv", "process_vm_writev"))
        return self._op(name, rng.choice(self._alive), local, 8, remote, 8, 0)

    def _fork(self) -> Op:
        """Fork, mostly the youngest: its number is one that has been of a process that has ended."""
        free = [number for number in range(MAX_PROCESSES) if number not in self._alive]
        if not free:
            return self._exit()
        who = self._alive[-1] if self._rng.random() < 0.7 else self._rng.choice(self._alive)
        self._alive.append(free[0])
        return Op(who, "fork", (free[0],))

    def _exit(self) -> Op:
        """End a process, mostly an old one."""
        if len(self._alive) == 1:
            return self._store()
        who = self._alive[0] if self._rng.random() < 0.6 else self._rng.choice(self._alive)
        self._alive.remove(who)
        return Op(who, "exit")
