"""What processes can have at its worst, for `tests.hostile.waits`: each function makes one such world for a client."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import NamedTuple

from shared.client import Process
from shared.uapi.mman import Madv, Map, Mremap, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr

GIB = 1 << 30
BASE = 1 << 40
ELSEWHERE = 1 << 41
RW = int(Prot.READ | Prot.WRITE)
READ = int(Prot.READ)
ANON = int(Map.PRIVATE | Map.ANONYMOUS | Map.NORESERVE | Map.FIXED)
SHARED = int(Map.SHARED | Map.ANONYMOUS | Map.NORESERVE | Map.FIXED)
FILE_PAGES = 1_000


class World(NamedTuple):
    """Where the memory is that calls are to be about."""

    start: int
    length: int


class Scale(NamedTuple):
    """How much there is of each: by default what 16 GiB of RAM allow."""

    wide_bytes: int
    nr_vmas: int
    written_bytes: int
    ram_bytes: int

    @classmethod
    def of(cls, ram_bytes: int) -> Scale:
        """Return what fits into a machine's RAM: a GiB of page tables is for 512 GiB."""
        share = ram_bytes / (16 * GIB)
        return cls(
            int(200 * share) * GIB or GIB, min(60_000, int(60_000 * share)), int(4 * share) * GIB or 64 << 20, ram_bytes
        )

    def shared_by(self, nr_processes: int) -> Scale:
        """Return what each of so many processes may have."""
        return self._replace(written_bytes=self.written_bytes // nr_processes & -PMD_SIZE)


def wide(p: Process, scale: Scale) -> World:
    """A very long mapping that has been read: the zero page everywhere, and many page tables."""
    p.mmap(BASE, scale.wide_bytes, RW, ANON)
    p.madvise(BASE, scale.wide_bytes, Madv.POPULATE_READ)
    p.mem.store_u8(BASE + scale.wide_bytes // 2, 1)  # Else a fork would copy nothing.
    return World(BASE, scale.wide_bytes)


def nothing(_p: Process, scale: Scale) -> World:
    """No memory yet: as much as `written` has is to come."""
    return World(BASE, scale.written_bytes)


def read_only(p: Process, scale: Scale) -> World:
    """The same, that nobody may write to: to lock it takes no frame."""
    world = wide(p, scale)
    p.mprotect(world.start, world.length, READ)
    return world


def threads(p: Process, scale: Scale) -> World:
    """The same, in a process with two threads."""
    other = threading.Thread(target=threading.Event().wait, daemon=True)
    other.start()
    second = Process.attach(p.socket_path, tid=other.native_id or 0)
    _kept.append(second)
    return wide(p, scale)


_kept: list[Process] = []


def heap(p: Process, scale: Scale) -> World:
    """The same as a heap: it grows in steps, for none may be larger than RAM."""
    start = p.brk(0)
    end = start
    while end < start + scale.wide_bytes:
        end = p.brk(end + 8 * GIB)
    p.madvise(start, end - start, Madv.POPULATE_READ)
    return World(start, end - start)


def vmas(p: Process, scale: Scale) -> World:
    """As many mappings as there may be, each with a page."""
    length = scale.nr_vmas * PAGE_SIZE
    p.mmap(BASE, length, RW, ANON)
    p.call(Nr.TOUCH, BASE, length, Access.WRITE)
    with p.batch() as batch:
        for number in range(0, scale.nr_vmas, 2):
            batch.call(Nr.MPROTECT, BASE + number * PAGE_SIZE, PAGE_SIZE, READ)
    return World(BASE, length)


def many_files(p: Process, scale: Scale, nr_pages: int = FILE_PAGES, fd: int = -1) -> World:
    """One memory file of 1,000 pages, mapped as often as there may be mappings, a page each, all written to."""
    if fd < 0:
        fd = os.memfd_create("waits")
        os.ftruncate(fd, nr_pages * PAGE_SIZE)
    first = p.mmap(ELSEWHERE, nr_pages * PAGE_SIZE, RW, int(Map.SHARED | Map.FIXED), fd)
    _files.append(fd)
    flags = int(Mremap.MAYMOVE | Mremap.FIXED)
    count = scale.nr_vmas
    with p.batch() as batch:
        for number in range(count):
            page = first + number % nr_pages * PAGE_SIZE
            batch.call(Nr.MREMAP, page, 0, PAGE_SIZE, flags, BASE + number * 2 * PAGE_SIZE)
            batch.touch(BASE + number * 2 * PAGE_SIZE, PAGE_SIZE, Access.WRITE)
    assert all(reply.ret > 0 for reply in batch.replies)
    return World(first, nr_pages * PAGE_SIZE)


def one_page(p: Process, scale: Scale) -> World:
    """The same of a file of one page."""
    return many_files(p, scale, 1)


def keep(fd: int) -> int:
    """Keep a descriptor up to the end of the process, and return it."""
    _files.append(fd)
    return fd


def last_file() -> int:
    """Return the descriptor of the file that was made last."""
    return _files[-1]


_files: list[int] = []
_common: list[int] = []


def same_page(p: Process, scale: Scale) -> World:
    """A page that is mapped as often as there may be mappings: of one file for all processes of a crowd."""
    return many_files(p, scale, 1, common_file())


def common_file() -> int:
    """Return the file of a crowd, which its processes inherit."""
    if not _common:
        _common.append(os.memfd_create("waits"))
        os.ftruncate(_common[0], PAGE_SIZE)
    return _common[0]


def untouched(p: Process, scale: Scale) -> World:
    """Memory that nobody has used yet."""
    p.mmap(BASE, scale.written_bytes, RW, ANON)
    return World(BASE, scale.written_bytes)


def nearly_full(p: Process, scale: Scale) -> World:
    """A machine of which 256 MiB are free, the rest in huge pages; a mapping of twice as much that nobody has used."""
    length = (scale.ram_bytes - (256 << 20)) & -PMD_SIZE
    p.mmap(ELSEWHERE << 1, length, RW, ANON)
    p.madvise(ELSEWHERE << 1, length, Madv.HUGEPAGE)
    p.call(Nr.TOUCH, ELSEWHERE << 1, length, Access.WRITE)
    start = ELSEWHERE + GIB
    p.mmap(start, 512 << 20, RW, ANON)
    return World(start, 512 << 20)


def full_of_one_page(p: Process, scale: Scale) -> World:
    """The same, with a page of a file that is mapped as often as there may be mappings."""
    same_page(p, scale)
    return nearly_full(p, scale)


def full_of_a_crowd(p: Process, scale: Scale) -> World:
    """The same, with one of a file on the disk of /var/tmp: its list has no other page, and reclaim leaves this one."""
    fd = keep(os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600))
    os.ftruncate(fd, PAGE_SIZE)
    many_files(p, scale, 1, fd)
    return nearly_full(p, scale)


def written(p: Process, scale: Scale) -> World:
    """Memory that has been written to."""
    p.mmap(BASE, scale.written_bytes, RW, ANON)
    p.call(Nr.TOUCH, BASE, scale.written_bytes, Access.WRITE)
    return World(BASE, scale.written_bytes)


def shared(p: Process, scale: Scale) -> World:
    """Shared anonymous memory that has been written to."""
    p.mmap(BASE, scale.written_bytes, RW, SHARED)
    p.call(Nr.TOUCH, BASE, scale.written_bytes, Access.WRITE)
    return World(BASE, scale.written_bytes)


def huge(p: Process, scale: Scale) -> World:
    """Huge pages, each written to."""
    p.mmap(BASE, scale.written_bytes, RW, ANON)
    p.madvise(BASE, scale.written_bytes, Madv.HUGEPAGE)
    p.call(Nr.TOUCH, BASE, scale.written_bytes, Access.WRITE)
    return World(BASE, scale.written_bytes)


def small_for_huge(p: Process, scale: Scale) -> World:
    """Small pages that could be huge ones."""
    p.mmap(BASE, scale.written_bytes, RW, ANON)
    p.madvise(BASE, scale.written_bytes, Madv.NOHUGEPAGE)
    p.call(Nr.TOUCH, BASE, scale.written_bytes, Access.WRITE)
    p.madvise(BASE, scale.written_bytes, Madv.HUGEPAGE)
    return World(BASE, scale.written_bytes)


def scattered(p: Process, scale: Scale) -> World:
    """Small pages of which no two neighbours have neighbouring frames: each entry is a record of a trace."""
    length = min(scale.written_bytes, GIB)
    p.mmap(BASE, length, RW, ANON)
    with p.batch() as batch:
        for vaddr in range(BASE + length - PAGE_SIZE, BASE - PAGE_SIZE, -PAGE_SIZE):
            batch.touch(vaddr, PAGE_SIZE, Access.WRITE)
    return World(BASE, length)


def file(p: Process, scale: Scale) -> World:
    """A memory file of that length, mapped once, all of it written to."""
    length = scale.written_bytes // 4
    fd = os.memfd_create("waits")
    os.ftruncate(fd, length)
    _files.append(fd)
    p.mmap(BASE, length, RW, int(Map.SHARED | Map.FIXED), fd)
    p.call(Nr.TOUCH, BASE, length, Access.WRITE)
    return World(BASE, length)


def private_file(p: Process, scale: Scale) -> World:
    """The same, mapped privately and written to: copies of its own."""
    length = scale.written_bytes // 4
    fd = os.memfd_create("waits")
    os.ftruncate(fd, length)
    _files.append(fd)
    p.mmap(BASE, length, RW, int(Map.PRIVATE | Map.FIXED), fd)
    p.call(Nr.TOUCH, BASE, length, Access.WRITE)
    return World(BASE, length)


def swapped(p: Process, scale: Scale) -> World:
    """Memory that is in the swap file."""
    length = scale.written_bytes // 4
    p.mmap(BASE, length, RW, ANON)
    p.call(Nr.TOUCH, BASE, length, Access.WRITE)
    p.madvise(BASE, length, Madv.PAGEOUT)
    return World(BASE, length)


def locked(p: Process, scale: Scale) -> World:
    """A very long mapping that is locked."""
    world = read_only(p, scale)
    p.mlock(world.start, world.length)
    return world


def locked_vmas(p: Process, scale: Scale) -> World:
    """As many mappings as there may be, all locked."""
    world = vmas(p, scale)
    p.mlock(world.start, world.length)
    return world


def aligned_end(world: World) -> int:
    """Return where the last whole 2 MiB of a world end."""
    return (world.start + world.length) & -PMD_SIZE


def end(p: Process, _world: World) -> None:
    """End the process."""
    with contextlib.suppress(Exception):
        p.call(Nr.EXIT_GROUP, 0)
    os._exit(0)
