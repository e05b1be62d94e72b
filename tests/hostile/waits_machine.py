"""Cases of `tests.hostile.waits` about the machine: settings, KSM, System V shared memory, files.

A world of KSM's sets all settings that it needs. What it leaves changes nothing for memory that is not mergeable.
"""

from __future__ import annotations

import contextlib
import os
from time import monotonic

from shared.client import Process
from shared.uapi import shm
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.hostile import waits_worlds as worlds
from tests.hostile.waits_calls import advise, fork, mremap
from tests.hostile.waits_cases import Case, Do
from tests.hostile.waits_worlds import ANON, BASE, READ, RW, Scale, World

_KSM = "sys/kernel/mm/ksm/"
_WATCHED_SECONDS = 20.0
_MERGED_SECONDS = 300.0
_ALL_SHARE = (1 << 31) - 1
_SETTINGS = {
    "max_page_sharing": 256, "use_zero_pages": 0, "stable_node_chains_prune_millisecs": 2000, "smart_scan": 0,
    "pages_to_scan": (1 << 32) - 1, "sleep_millisecs": 0,
}  # fmt: skip


def ksm_is(p: Process, **settings: int) -> None:
    """Unmerge everything, and give KSM its settings; it does not run yet."""
    p.procwrite(f"{_KSM}run", b"2")
    for name, value in {**_SETTINGS, **settings}.items():
        p.procwrite(_KSM + name, str(value).encode())


def _equal_pages(p: Process, scale: Scale) -> World:
    """Mergeable memory: all of its pages have zeros."""
    world = worlds.written(p, scale)
    p.madvise(world.start, world.length, Madv.MERGEABLE)
    return world


def scan(p: Process, times: int, seconds: float = _WATCHED_SECONDS) -> None:
    """Let ksmd scan the machine so many times, or as long as that takes."""
    p.procwrite(f"{_KSM}run", b"1")
    first, until = _scans(p), monotonic() + seconds
    while _scans(p) < first + times and monotonic() < until:
        p.getpid()


def _scans(p: Process) -> int:
    return int(p.procread(f"{_KSM}full_scans"))


def mergeable(p: Process, scale: Scale) -> World:
    """4 GiB of equal pages, which ksmd has not met."""
    ksm_is(p)
    return _equal_pages(p, scale)


def mergeable_in_pairs(p: Process, scale: Scale) -> World:
    """The same; a merged page may serve two, and all of its like are looked at each time."""
    ksm_is(p, max_page_sharing=2, stable_node_chains_prune_millisecs=0)
    return _equal_pages(p, scale._replace(written_bytes=scale.written_bytes // 8))


def mergeable_into_one(p: Process, scale: Scale) -> World:
    """The same; one merged page may serve all."""
    ksm_is(p, max_page_sharing=_ALL_SHARE)
    return _equal_pages(p, scale)


def mergeable_into_zeros(p: Process, scale: Scale) -> World:
    """The same; the zero page is to serve all."""
    ksm_is(p, use_zero_pages=1)
    return _equal_pages(p, scale)


def mergeable_huge(p: Process, scale: Scale) -> World:
    """4 GiB of huge pages of zeros."""
    ksm_is(p)
    world = worlds.huge(p, scale)
    p.madvise(world.start, world.length, Madv.MERGEABLE)
    return world


def _merge(p: Process, scale: Scale) -> World:
    """Make 65,536 equal pages, and merge them: the first whole scan notes their contents, the second merges.

    So one frame that serves all is mapped as often as a page of a file is in the other worlds.
    """
    world = _equal_pages(p, scale._replace(written_bytes=scale.written_bytes // 16))
    scan(p, 2, _MERGED_SECONDS)
    if _nr_merged(p) != world.length // PAGE_SIZE:
        scan(p, 1, _MERGED_SECONDS)  # The first one was the rest of a scan that had passed by.
    assert _nr_merged(p) == world.length // PAGE_SIZE
    return world


def _nr_merged(p: Process) -> int:
    return sum(int(p.procread(_KSM + name)) for name in ("pages_shared", "pages_sharing"))


def merged(p: Process, scale: Scale) -> World:
    """256 MiB of equal pages, merged: 256 have one frame."""
    ksm_is(p)
    return _merge(p, scale)


def merged_in_pairs(p: Process, scale: Scale) -> World:
    """The same; two have one frame."""
    ksm_is(p, max_page_sharing=2)
    return _merge(p, scale)


def merged_into_one(p: Process, scale: Scale) -> World:
    """The same; all have one frame."""
    ksm_is(p, max_page_sharing=_ALL_SHARE)
    return _merge(p, scale)


def _set(path: str, value: int) -> Do:
    """Write to a setting, and wait a while for what the machine then does."""

    def write(p: Process, _world: World) -> None:
        p.procwrite(path, str(value).encode())
        until = monotonic() + 1.0
        while monotonic() < until:
            p.getpid()

    return write


def _rewrite(p: Process, w: World) -> None:
    """Write to all pages again: each gets a frame of its own."""
    p.call(Nr.TOUCH, w.start, w.length, Access.WRITE)


def _unmap_and_scan(p: Process, w: World) -> None:
    p.munmap(w.start, w.length)
    scan(p, 2)


def _unmap_and_set(p: Process, w: World) -> None:
    p.munmap(w.start, w.length)
    ksm_is(p, max_page_sharing=9)


def _unmap_and_drop(p: Process, w: World) -> None:
    p.munmap(w.start, w.length)
    _set("sys/vm/drop_caches", 1)(p, w)


_MERGED = [
    Case(call, make, do)
    for make in (merged, merged_in_pairs, merged_into_one)
    for call, do in (
        ("KSM's run = 2", _set(f"{_KSM}run", 2)),
        ("madvise UNMERGEABLE", advise(Madv.UNMERGEABLE)),
        ("madvise PAGEOUT", advise(Madv.PAGEOUT)),
        ("touch, writing", _rewrite),
        ("munmap, then scans", _unmap_and_scan),
        ("fork", fork),
        ("mremap by a page", mremap(PAGE_SIZE)),
        ("max_page_sharing, after munmap", _unmap_and_set),
    )
]  # fmt: skip


def segment(p: Process, scale: Scale) -> World:
    """4 GiB of System V shared memory, written to; nothing maps it."""
    world = World(BASE, scale.written_bytes)
    number = p.call(Nr.SHMGET, shm.IPC_PRIVATE, world.length, 0o600 | shm.SHM_NORESERVE).ret
    p.call(Nr.SHMAT, number, world.start, 0)
    p.call(Nr.TOUCH, world.start, world.length, Access.WRITE)
    p.call(Nr.SHMDT, world.start)
    return world._replace(start=number)


def attached_segment(p: Process, scale: Scale) -> World:
    """The same, attached."""
    world = segment(p, scale)
    p.call(Nr.SHMAT, world.start, BASE, 0)
    p.call(Nr.SHMCTL, world.start, shm.IPC_RMID)
    return World(BASE, world.length)


def segments(p: Process, scale: Scale) -> World:
    """As many segments as there may be, all attached."""
    p.procwrite("sys/kernel/shmmni", b"32768")
    count = min(32_768, scale.nr_vmas) - 1
    with p.batch() as batch:
        for _ in range(count):
            batch.call(Nr.SHMGET, shm.IPC_PRIVATE, PAGE_SIZE, 0o600)
    numbers = [reply.ret for reply in batch.replies]
    with p.batch() as batch:
        for place, number in enumerate(numbers):
            batch.call(Nr.SHMAT, number, BASE + place * 2 * PAGE_SIZE, 0)
            batch.call(Nr.SHMCTL, number, shm.IPC_RMID)
    return World(BASE, count * 2 * PAGE_SIZE)


def kept_segments(p: Process, scale: Scale) -> World:
    """As many segments as there may be, and none attached."""
    segments(p, scale._replace(nr_vmas=2))
    with p.batch() as batch:
        for _ in range(min(32_767, scale.nr_vmas)):
            batch.call(Nr.SHMGET, shm.IPC_PRIVATE, PAGE_SIZE, 0o600)
    return World(batch.replies[0].ret, PAGE_SIZE)


def _remove_all(p: Process, _world: World) -> None:
    """Ask for all, and remove one after the other."""
    p.procread("sysvipc/shm")
    highest = p.call(Nr.SHMCTL, 0, shm.SHM_INFO).ret
    for index in range(highest + 1):
        reply = p.syscall(Nr.SHMCTL, index, shm.SHM_STAT)
        if reply > 0:
            p.syscall(Nr.SHMCTL, reply, shm.IPC_RMID)


_SEGMENTS = [
    Case("shmctl IPC_RMID", segment, lambda p, w: p.call(Nr.SHMCTL, w.start, shm.IPC_RMID)),
    Case("shmdt", attached_segment, lambda p, w: p.call(Nr.SHMDT, w.start)),
    Case("exit", attached_segment, worlds.end),
    Case("munmap", segments, lambda p, w: p.munmap(w.start, w.length)),
    Case("exit", segments, worlds.end),
    Case("shmctl of each, IPC_RMID", kept_segments, _remove_all),
]


def _ftruncate(p: Process, _world: World) -> None:
    """No request: the file is cut, and made longer again."""
    size = os.fstat(worlds.last_file()).st_size
    os.ftruncate(worlds.last_file(), 100)
    p.getpid()
    os.ftruncate(worlds.last_file(), size)
    p.getpid()


def disk_file(p: Process, scale: Scale) -> World:
    """A file of 1 GiB on the disk of /var/tmp, read by a mapping."""
    length = scale.written_bytes // 4
    fd = worlds.keep(os.open("/var/tmp", os.O_TMPFILE | os.O_RDWR, 0o600))
    os.ftruncate(fd, length)
    p.mmap(BASE, length, READ, int(Map.SHARED | Map.FIXED), fd)
    p.madvise(BASE, length, Madv.POPULATE_READ)
    return World(BASE, length)


_CLEAR_REFS = [
    Case("clear_refs", make, lambda p, _: p.procwrite(f"{p.pid}/clear_refs", b"1"))
    for make in (worlds.wide, worlds.vmas, worlds.written, worlds.huge, worlds.file, worlds.swapped, worlds.many_files)
]


def reclaim_all(p: Process, _world: World) -> None:
    """Ask for more free memory than there is, and write to memory."""
    p.procwrite("sys/vm/min_free_kbytes", str((12 << 30) >> 10).encode())
    try:
        with contextlib.suppress(OSError):
            p.mmap(worlds.ELSEWHERE, 64 << 20, RW, ANON)
            p.call(Nr.TOUCH, worlds.ELSEWHERE, 64 << 20, Access.WRITE)
    finally:
        p.procwrite("sys/vm/min_free_kbytes", b"16384")


_READS = [
    Case(f"read {view}", make, lambda p, _, view=view: p.procread(view))  # type: ignore[misc]
    for view, make in (
        ("meminfo", worlds.nearly_full), ("vmstat", worlds.nearly_full), ("buddyinfo", worlds.nearly_full),
        ("kerneld/status", worlds.nearly_full), ("kpageflags", worlds.nearly_full), ("meminfo", worlds.swapped),
        ("meminfo", merged_in_pairs), ("self/oom_score", worlds.vmas), ("self/ksm_stat", merged_in_pairs),
        ("self/stat", worlds.vmas), ("swaps", worlds.swapped), ("kerneld/tasks", worlds.vmas),
    )
]  # fmt: skip

CASES = [
    *[Case("KSM's scans", make, lambda p, _: scan(p, 3))
      for make in (mergeable, mergeable_in_pairs, mergeable_into_one, mergeable_into_zeros, mergeable_huge)],
    *_MERGED,
    *_SEGMENTS,
    Case("ftruncate", worlds.file, _ftruncate),
    Case("ftruncate", worlds.many_files, _ftruncate),
    *_CLEAR_REFS,
    Case("drop_caches", disk_file, _set("sys/vm/drop_caches", 1)),
    Case("munmap, drop_caches", disk_file, _unmap_and_drop),
    Case("min_free_kbytes", worlds.written, reclaim_all),
    Case("min_free_kbytes", worlds.huge, reclaim_all),
    Case("min_free_kbytes", worlds.file, reclaim_all),
    Case("min_free_kbytes", worlds.many_files, reclaim_all),
    *_READS,
]  # fmt: skip
