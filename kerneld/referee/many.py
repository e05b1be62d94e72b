"""Random programs with hundreds of mappings: 300 to 700 at the start, side by side, and calls on many of them at once.

Owns the weights. The first operations each run hundreds of times (`Op.times`), so the program stays short. They make
regions: rows of small mappings with holes between them, one mapping cut by protections, advice or locks, pages of files
that do not merge, and a few large mappings. Calls then act on single mappings, on ranges over many regions, and on
every second mapping of a region: mappings are split and merged in bulk. kerneld keeps mappings in chunks of at most
256, so a part of the ranges begins or ends about there.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from kerneld.referee.program import FILES, HARMLESS, At, Base, Op, Program
from shared.uapi.mman import Madv, Map, Mcl, Mremap, Ms
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE

_MOST_PROCESSES = 3
_FIRST, _NR_REGIONS = 300, 6
_MOST = 700
"""How many mappings there are at the start."""
_BORDER = 128
"""Chunks that were filled in order begin at each multiple of it."""
_PLACES = (
    0x7000_0000_0000,
    0x7000_0000_0000,
    0x1000_0000,
    (1 << 30) - (1 << 20),
    (1 << 39) - (1 << 20),
    (200 << 39) - (3 << 20),
)
"""Some are just below the border of an upper page table: of 1 GiB, and of 512 GiB."""
_FILES = tuple(n for n, kind in enumerate(FILES) if kind.inode in ("memfd", "regular", "tmpfs") and kind.flags & 3 == 2)
_ADVICE = (
    Madv.DONTNEED, Madv.DONTNEED, Madv.FREE, Madv.COLD, Madv.PAGEOUT, Madv.WILLNEED, Madv.POPULATE_READ,
    Madv.POPULATE_WRITE, Madv.DONTFORK, Madv.DOFORK, Madv.WIPEONFORK, Madv.KEEPONFORK, Madv.SEQUENTIAL, Madv.RANDOM,
    Madv.NORMAL, Madv.DONTDUMP, Madv.DODUMP, Madv.REMOVE, Madv.MERGEABLE, Madv.UNMERGEABLE, Madv.NOHUGEPAGE,
)  # fmt: skip
_SPLITTING = (Madv.DONTFORK, Madv.SEQUENTIAL, Madv.RANDOM, Madv.WIPEONFORK, Madv.DONTDUMP)
_WEIGHTS = {
    "munmap": 12, "mprotect": 16, "mremap": 14, "mmap": 12, "madvise": 12, "mlock2": 3, "munlock": 3, "mlockall": 1,
    "munlockall": 1, "msync": 3, "mincore": 4, "brk": 2, "touch": 12, "store": 8, "load": 5, "fork": 3, "exit": 2,
    "ftruncate": 2, "process_madvise": 2, "process_vm_readv": 2,
}  # fmt: skip
_IN_BULK = frozenset({"munmap", "mprotect", "madvise", "mlock2", "munlock", "touch", "store", "mmap", "mremap"})


class Region(NamedTuple):
    """A row of mappings."""

    start: int
    pages: int
    stride: int
    """The pages from one mapping to the next."""

    @property
    def end(self) -> int:
        return self.start + self.pages * PAGE_SIZE


class ManyGenerator:
    """The program of one state of `rng`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._next = rng.choice(_PLACES)
        self._regions: list[Region] = []
        self._alive = [0]

    def program(self, nr_ops: int) -> Program:
        """Return a program of `nr_ops` operations."""
        rng = self._rng
        ops: list[Op] = []
        wanted = rng.randint(_FIRST, _MOST)
        made = 0
        while made < wanted and len(self._regions) < _NR_REGIONS:
            count = min(rng.randint(60, 350), wanted - made) if len(self._regions) < _NR_REGIONS - 1 else wanted - made
            ops += rng.choice(_ROWS)(self, count)
            made += count
        if rng.random() < 0.5:
            ops.append(self._op("brk", At(Base.BRK, rng.randint(1, 40) * PAGE_SIZE)))
        names, weights = list(_WEIGHTS), list(_WEIGHTS.values())
        while len(ops) < nr_ops:
            name = rng.choices(names, weights)[0]
            ops.append(getattr(self, f"_{name}")())
        return tuple(ops[:nr_ops])

    def _op(self, name: str, *args: At | int, times: int = 1, stride: int = 0, file: int = -1, slot: int = -1) -> Op:
        who = self._rng.choice(self._alive)
        distance = stride * PAGE_SIZE if times > 1 else 0
        return Op(who, name, args, slot=slot, file=file, times=times, stride=distance)

    def _take(self, pages: int, stride: int) -> Region:
        """Return the next place for a row: beside the last one, mostly."""
        region = Region(self._next, pages, stride)
        self._regions.append(region)
        self._next = region.end + self._rng.choice((0, 0, 1, 1, 3, 513)) * PAGE_SIZE
        return region

    def _flags(self) -> tuple[int, int]:
        """Return flags of a fixed mapping, and its file."""
        flags = self._rng.choice((Map.PRIVATE, Map.PRIVATE, Map.PRIVATE, Map.SHARED)) | Map.FIXED
        if self._rng.random() < 0.6:
            return (flags | Map.ANONYMOUS).value, -1
        return flags.value, self._rng.choice(_FILES)

    def _with_touches(self, ops: list[Op], region: Region, times: int) -> list[Op]:
        if self._rng.random() < 0.7:
            where = At(Base.ZERO, region.start)
            access = self._rng.choice((0, 1, 1))
            ops.append(self._op("touch", where, PAGE_SIZE, access, times=times, stride=region.stride))
        return ops

    def _holes(self, count: int) -> list[Op]:
        """Small mappings with holes between them. Without holes those of a file do not merge, and others do."""
        rng = self._rng
        length = rng.choice((1, 1, 2, 3))
        region = self._take(count * (length + 1), length + 1)
        flags, file = self._flags()
        stride = length if file >= 0 and rng.random() < 0.5 else length + 1
        region = self._regions[-1] = region._replace(stride=stride, pages=count * stride)
        prot = rng.choice((3, 3, 3, 1, 0))
        where = At(Base.ZERO, region.start)
        ops = [self._op("mmap", where, length * PAGE_SIZE, prot, flags, 0, times=count, stride=stride, file=file)]
        return self._with_touches(ops, region, count)

    def _cut(self, count: int) -> list[Op]:
        """One mapping, of which every second piece becomes another."""
        rng = self._rng
        length = rng.choice((1, 1, 2))
        region = self._take((count + 1) * length, 2 * length)
        flags, file = self._flags()
        where = At(Base.ZERO, region.start)
        ops = [self._op("mmap", where, region.pages * PAGE_SIZE, 3, flags, 0, file=file)]
        if rng.random() < 0.5:
            ops = self._with_touches(ops, region, count // 2)
        piece = At(Base.ZERO, region.start + length * PAGE_SIZE), length * PAGE_SIZE
        name = rng.choice(("mprotect", "mprotect", "madvise", "madvise", "mlock2", "munmap"))
        rest = {"mprotect": (rng.choice((0, 1, 1)),), "madvise": (rng.choice(_SPLITTING).value,), "mlock2": (1,)}
        ops.append(self._op(name, *piece, *rest.get(name, ()), times=count // 2, stride=region.stride))
        return self._with_touches(ops, region, count // 2)

    def _top_down(self, count: int) -> list[Op]:
        """Mappings where the kernel places them: of shared memory or files, which do not merge."""
        rng = self._rng
        length = rng.choice((1, 2, 5))
        shared = rng.random() < 0.5
        flags = (Map.SHARED | Map.ANONYMOUS) if shared else rng.choice((Map.PRIVATE, Map.SHARED))
        file = -1 if shared else rng.choice(_FILES)
        ops = [
            self._op("mmap", 0, length * PAGE_SIZE, rng.choice((1, 3)), flags.value, 0, times=count, file=file, slot=0)
        ]
        top = At(0, -(count - 1) * length * PAGE_SIZE)
        if rng.random() < 0.7:
            ops.append(self._op("touch", top, PAGE_SIZE, rng.choice((0, 0, 1)), times=count, stride=length))
        return ops

    def _large(self, _count: int) -> list[Op]:
        """A large mapping, beyond several leaf tables. Some of its pages are there."""
        region = self._take(self._rng.choice((512, 1024, 2100, 3000)), 97)
        flags, file = self._flags()
        where = At(Base.ZERO, region.start)
        ops = [self._op("mmap", where, region.pages * PAGE_SIZE, 3, flags, 0, file=file)]
        return self._with_touches(ops, region, region.pages // region.stride)

    def _place(self) -> tuple[Region, int]:
        """Return a region and a mapping of it: any one, or one at the border of a chunk."""
        rng = self._rng
        if not self._regions:
            self._take(64, 1)
        region = rng.choice(self._regions)
        count = max(region.pages // region.stride, 1)
        if rng.random() < 0.4:
            return region, min(max(rng.choice((1, 2, 3, 4)) * _BORDER + rng.randint(-6, 6), 0), count - 1)
        return region, rng.choice((0, count - 1, rng.randrange(count), rng.randrange(count)))

    def _range(self) -> tuple[At, int]:
        """Return the start and length of a range: a mapping or some, a row, or all rows."""
        rng = self._rng
        region, number = self._place()
        start = region.start + (number * region.stride + rng.choice((0, 0, 0, -1, 1))) * PAGE_SIZE
        kind = rng.random()
        if kind < 0.5:
            pages = rng.choice((1, 1, 2, 3, region.stride, 2 * region.stride + 1, rng.randint(1, 40)))
        elif kind < 0.8:
            pages = rng.choice((_BORDER, _BORDER + 1, 300, region.pages)) * rng.choice((1, region.stride))
        else:
            start, last = min(self._regions)[0], max(self._regions).end
            pages = max((last - start >> PAGE_SHIFT) - rng.choice((0, 0, 1, 5)), 1)
            if pages > 1 << 16:
                pages = 4096
        return At(Base.ZERO, start), pages * PAGE_SIZE

    def _many(self, name: str, *rest: At | int, **where: int) -> Op:
        """Return a call on a range, or the same call on every mapping of a row or on every second one."""
        rng = self._rng
        if name not in _IN_BULK or rng.random() < 0.75:
            return self._op(name, *self._range(), *rest, **where)
        region, number = self._place()
        stride = region.stride * rng.choice((1, 1, 2))
        pages = rng.choice((1, 1, region.stride, 2))
        left = max((region.pages // region.stride - number) * region.stride // stride, 1)
        start = At(Base.ZERO, region.start + number * region.stride * PAGE_SIZE)
        times = rng.choice((left, left, min(left, 20), min(left, 200)))
        return self._op(name, start, pages * PAGE_SIZE, *rest, times=times, stride=stride, **where)

    def _munmap(self) -> Op:
        return self._many("munmap")

    def _mprotect(self) -> Op:
        return self._many("mprotect", self._rng.choice((0, 1, 1, 3, 3, 3, 5)))

    def _mmap(self) -> Op:
        flags, file = self._flags()
        flags |= self._rng.choice((0, 0, 0, Map.POPULATE.value, Map.LOCKED.value))
        return self._many(
            "mmap", self._rng.choice((3, 3, 1, 0)), flags, self._rng.choice((0, 0, 4)) * PAGE_SIZE, file=file
        )

    def _madvise(self) -> Op:
        return self._many("madvise", self._rng.choice(_ADVICE).value)

    def _mlock2(self) -> Op:
        return self._many("mlock2", self._rng.choice((0, 1, 1)))

    def _munlock(self) -> Op:
        return self._many("munlock")

    def _mlockall(self) -> Op:
        flags = self._rng.choice((Mcl.CURRENT, Mcl.CURRENT | Mcl.ONFAULT, Mcl.FUTURE | Mcl.ONFAULT))
        return self._op("mlockall", flags.value)

    def _munlockall(self) -> Op:
        return self._op("munlockall")

    def _msync(self) -> Op:
        return self._many("msync", self._rng.choice((Ms.SYNC, Ms.ASYNC, Ms.SYNC | Ms.INVALIDATE)).value)

    def _mincore(self) -> Op:
        place, length = self._range()
        return self._op("mincore", place, min(length, 16 * PAGE_SIZE))

    def _brk(self) -> Op:
        return self._op("brk", At(Base.BRK, self._rng.choice((0, 1, 7, 30, 300)) * PAGE_SIZE))

    def _touch(self) -> Op:
        if self._rng.random() < 0.4:
            return self._many("touch", self._rng.choice((0, 1, 1)))
        place, length = self._range()
        return self._op("touch", place, min(length, 300 * PAGE_SIZE), self._rng.choice((0, 1, 1)))

    def _store(self) -> Op:
        data = bytes(self._rng.choices(HARMLESS, k=3))
        region, number = self._place()
        times = self._rng.choice((1, 1, 40))
        place = At(Base.ZERO, region.start + number * region.stride * PAGE_SIZE)
        return self._op("store", place, 8, times=times, stride=region.stride)._replace(data=data)

    def _load(self) -> Op:
        return self._op("load", self._range()[0], self._rng.choice((8, 5000)))

    def _mremap(self) -> Op:
        """Grow, shrink, move into a hole or over other mappings; or each mapping of a row."""
        rng = self._rng
        flags = rng.choice(
            (0, Mremap.MAYMOVE, Mremap.MAYMOVE, Mremap.MAYMOVE | Mremap.FIXED, Mremap.MAYMOVE | Mremap.FIXED)
        )
        region, number = self._place()
        old = rng.choice((1, 1, 2, region.stride, 40))
        new = rng.choice((old, old, old + 1, max(old - 1, 1), old + 30))
        if new == old and flags and rng.random() < 0.2:
            flags |= Mremap.DONTUNMAP
        target = At(Base.ZERO, self._range()[0].offset if rng.random() < 0.7 else self._next + 64 * PAGE_SIZE)
        place = At(Base.ZERO, region.start + number * region.stride * PAGE_SIZE)
        times = rng.choice((1, 1, 1, 30, 150))
        args = place, old * PAGE_SIZE, new * PAGE_SIZE, int(flags), target
        return self._op("mremap", *args, times=times, stride=region.stride)

    def _ftruncate(self) -> Op:
        length = self._rng.choice((0, 1, 5, 7, 30)) * PAGE_SIZE + self._rng.choice((0, 0, 100))
        return self._op("ftruncate", length, file=self._rng.choice(_FILES))

    def _process_madvise(self) -> Op:
        advice = self._rng.choice((Madv.COLD, Madv.PAGEOUT, Madv.WILLNEED)).value
        return self._op("process_madvise", self._rng.choice(self._alive), *self._range(), advice, 0)

    def _process_vm_readv(self) -> Op:
        rng = self._rng
        (local, _), (remote, _) = self._range(), self._range()
        length = rng.choice((8, 3 * PAGE_SIZE))
        return self._op("process_vm_readv", rng.choice(self._alive), local, length, remote, length, 0)

    def _fork(self) -> Op:
        free = [number for number in range(_MOST_PROCESSES) if number not in self._alive]
        if not free:
            return self._touch()
        op = self._op("fork", free[0])
        self._alive.append(free[0])
        return op

    def _exit(self) -> Op:
        if len(self._alive) == 1:
            return self._fork()
        op = self._op("exit")
        self._alive.remove(op.who)
        return op


_ROWS: tuple[Callable[[ManyGenerator, int], list[Op]], ...] = (
    ManyGenerator._holes,
    ManyGenerator._holes,
    ManyGenerator._cut,
    ManyGenerator._cut,
    ManyGenerator._top_down,
    ManyGenerator._large,
)
