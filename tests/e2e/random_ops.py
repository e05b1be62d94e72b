"""Random changes of a stretch of a process's memory, from a seed: what an actor does so that a table has to follow."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

from shared.client import Process
from shared.uapi.mman import Madv, Map, Mremap, Prot
from shared.uapi.syscalls import Access, Nr
from tests.support.actor import Me

PAGE = 4096
FIXED_ANONYMOUS = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED
PROTS = (Prot.NONE, Prot.READ, Prot.READ | Prot.WRITE, Prot.READ | Prot.EXEC)
ADVICE = (Madv.DONTNEED, Madv.FREE, Madv.WILLNEED, Madv.POPULATE_READ, Madv.POPULATE_WRITE, Madv.REMOVE)


class Changer:
    """One source of random operations on `pages` pages from `start`."""

    def __init__(self, process: Process, seed: int, start: int, pages: int) -> None:
        self._process = process
        self._random = random.Random(seed)
        self._start = start
        self._pages = pages
        self._fd = os.memfd_create("random")
        os.ftruncate(self._fd, pages // 2 * PAGE)
        self._kinds: list[Callable[[int, int], object]] = [
            self._map,
            self._map,
            self._map_file,
            self._unmap,
            self._protect,
            self._access,
            self._access,
            self._access,
            self._advise,
            self._remap,
            self._lock,
            self._clone,
        ]

    def step(self) -> str:
        """Do one operation; one that fails or is stopped by a signal is as good as any. Returns its name."""
        first = self._random.randrange(self._pages)
        count = self._random.randint(1, min(12, self._pages - first))
        kind = self._random.choice(self._kinds)
        try:
            kind(self._start + first * PAGE, count * PAGE)
        except OSError:
            # InterruptedError too: what the actor's handler of SIGSEGV and SIGBUS raises.
            return f"{kind.__name__} failed"
        return kind.__name__

    def _map(self, address: int, length: int) -> None:
        shared = Map.SHARED if self._random.random() < 0.2 else Map.PRIVATE
        populate = Map.POPULATE if self._random.random() < 0.3 else Map(0)
        self._process.mmap(
            address, length, self._random.choice(PROTS[1:3]), shared | Map.ANONYMOUS | Map.FIXED | populate
        )

    def _map_file(self, address: int, length: int) -> None:
        kind = self._random.choice((Map.SHARED, Map.PRIVATE))
        offset = self._random.randrange(self._pages) * PAGE
        self._process.mmap(address, length, Prot.READ | Prot.WRITE, kind | Map.FIXED, self._fd, offset)

    def _unmap(self, address: int, length: int) -> None:
        self._process.munmap(address, length)

    def _protect(self, address: int, length: int) -> None:
        self._process.mprotect(address, length, self._random.choice(PROTS))

    def _access(self, address: int, length: int) -> None:
        self._process.mem.touch(address, length, self._random.choice((Access.READ, Access.WRITE)))

    def _advise(self, address: int, length: int) -> None:
        self._process.madvise(address, length, self._random.choice(ADVICE))

    def _remap(self, address: int, length: int) -> None:
        new_length = self._random.randint(1, 12) * PAGE
        to = self._start + self._random.randrange(self._pages - 12) * PAGE
        if self._random.random() < 0.5:
            self._process.mremap(address, length, new_length, Mremap.MAYMOVE | Mremap.FIXED, to)
        else:
            self._process.mremap(address, length, new_length)

    def _lock(self, address: int, length: int) -> None:
        if self._random.random() < 0.5:
            self._process.mlock(address, length)
        else:
            self._process.munlock(address, length)

    def _clone(self, _address: int, _length: int) -> None:
        # The copy that fork makes, without the child: from now on each first write copies a page.
        self._process.syscall(Nr.CLONE)


def prepare(me: Me, seed: int, start: int, pages: int) -> None:
    me.kept["changer"] = Changer(me.p, seed, start, pages)


def step(me: Me) -> str:
    name: str = me.kept["changer"].step()
    return name


def flip_for_ever(me: Me, start: int, pages: int) -> None:
    """Map and populate a range by one call, drop its pages by another, unmap it by a third, until killed."""
    length = pages * PAGE
    me.reply(True, None)
    while True:
        me.p.mmap(start, length, Prot.READ | Prot.WRITE, FIXED_ANONYMOUS | Map.POPULATE)
        me.p.madvise(start, length, Madv.DONTNEED)
        me.p.munmap(start, length)


def take_snapshots(me: Me, count: int) -> set[frozenset[int]]:
    """Return which flags so many snapshots of the open table show together, and check their frames."""
    seen = set()
    for _snapshot in range(count):
        words = memoryview(me.p.snapshot()).cast("Q").tolist()
        flags, pfns = words[2::3], words[1::3]
        frames = [pfn for pfn in pfns if pfn]
        assert len(frames) == len(set(frames)), "two pages in one frame"
        assert [bool(pfn) for pfn in pfns] == [bool(flag & 4) for flag in flags], "a frame without its flag"
        seen.add(frozenset(flags))
    return seen


def self_check(me: Me, steps: int, start: int, pages: int) -> int:
    """Do so many steps, each followed by a look at this process's own table; return how many changed it."""
    from tests.e2e.scripts import own_pages, read_view  # noqa: PLC0415  (scripts stands on this module's neighbours)

    changes = 0
    before = b""
    for number in range(steps):
        name = step(me)
        raw = read_view(me)[: pages * 24]
        truth = b"".join(word.to_bytes(8, "little") for row in own_pages(me, start, pages) for word in row)
        assert raw == truth, f"step {number}: {name}"
        changes += raw != before
        before = raw
    return changes
