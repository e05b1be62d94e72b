"""Cases of `tests.hostile.waits` about what the others leave out: files of /proc, settings, batches, small calls."""

from __future__ import annotations

import contextlib
import os
from functools import partial

from shared.client import Process
from shared.uapi import shm
from shared.uapi.mman import Madv, Map, Mremap, Pr, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.hostile import waits_worlds as worlds
from tests.hostile.waits_cases import Case
from tests.hostile.waits_crowds import crowd
from tests.hostile.waits_machine import merged, merged_into_one, scan
from tests.hostile.waits_worlds import ANON, BASE, ELSEWHERE, READ, RW, Scale, World

_FILES = 900
_MOST_REQUESTS = 2_000
_COPIES = 16
_VM = (
    "admin_reserve_kbytes", "max_map_count", "min_free_kbytes", "mmap_min_addr", "overcommit_kbytes",
    "overcommit_memory", "overcommit_ratio", "swappiness", "user_reserve_kbytes", "watermark_scale_factor",
)  # fmt: skip
_SMALL_FILES = (
    "self/comm", "self/cmdline", "self/limits", "self/personality", "self/oom_score_adj", "self/ksm_merging_pages",
    "self/statm", "", "swaps", "sysvipc/shm", "kerneld/explanation", "sys/kernel/shmall", "sys/kernel/shmmni",
    "sys/kernel/mm/transparent_hugepage/enabled",
)  # fmt: skip


def wide_huge(p: Process, scale: Scale) -> World:
    """200 GiB that have been read, all of them the huge zero page."""
    p.mmap(BASE, scale.wide_bytes, RW, ANON)
    p.madvise(BASE, scale.wide_bytes, Madv.HUGEPAGE)
    p.call(Nr.TOUCH, BASE, scale.wide_bytes, Access.READ)
    p.mem.store_u8(BASE + scale.wide_bytes // 2, 1)
    return World(BASE, scale.wide_bytes)


def vmas_of_files(p: Process, scale: Scale) -> World:
    """900 files, each mapped as often as there may be mappings in all, and each page written to."""
    each = scale.nr_vmas // _FILES
    for number in range(_FILES):
        with open(os.memfd_create("waits"), "wb") as file:
            os.ftruncate(file.fileno(), 2 * each * PAGE_SIZE)
            for place in range(each):
                at = BASE + (number * each + place) * PAGE_SIZE
                p.mmap(at, PAGE_SIZE, RW, int(Map.SHARED | Map.FIXED), file.fileno(), 2 * place * PAGE_SIZE)
    length = _FILES * each * PAGE_SIZE
    p.call(Nr.TOUCH, BASE, length, Access.WRITE)
    return World(BASE, length)


def copies_of_vmas(p: Process, scale: Scale) -> World:
    """A process with copies by fork of many mappings, as many as there may be."""
    world = worlds.vmas(p, scale._replace(nr_vmas=scale.nr_vmas // _COPIES))
    for _ in range(_COPIES):
        with contextlib.suppress(OSError):
            p.call(Nr.CLONE)
    return world


def locked_written(p: Process, scale: Scale) -> World:
    """4 GiB that have been written to, and are locked."""
    world = worlds.written(p, scale)
    p.mlock(world.start, world.length)
    return world


def _small_files(p: Process, _world: World) -> None:
    for path in _SMALL_FILES:
        p.procread(path)


def _settings(p: Process, _world: World) -> None:
    """Write what is there already to each setting of vm."""
    for name in _VM:
        with contextlib.suppress(OSError):
            p.procwrite(f"sys/vm/{name}", p.procread(f"sys/vm/{name}"))


def _setting(path: str, value: bytes, usual: bytes, p: Process, w: World) -> None:
    """Give a setting a value, use memory, and give it back its usual one."""
    p.procwrite(path, value)
    try:
        for _ in range(200):
            p.getpid()
        with contextlib.suppress(OSError):
            p.call(Nr.TOUCH, w.start, min(w.length, 64 << 20), Access.WRITE)
            p.mmap(ELSEWHERE, 64 << 20, RW, ANON)
            p.call(Nr.TOUCH, ELSEWHERE, 64 << 20, Access.WRITE)
    finally:
        p.procwrite(path, usual)


def _clear_refs(kind: int, p: Process, _world: World) -> None:
    p.procwrite(f"{p.pid}/clear_refs", str(kind).encode())


def _walk(p: Process, w: World) -> None:
    for place in range(64):
        p.procread(f"self/walk/{w.start + place * (w.length // 64):x}")


def _mem_rw(is_write: int, p: Process, w: World) -> None:
    """1 GiB of /proc/PID/mem, from or to the same MiB."""
    near = p.mmap(0, 1 << 20, RW, int(Map.PRIVATE | Map.ANONYMOUS))
    for at in range(w.start, w.start + min(w.length, 1 << 30), 1 << 20):
        p.call(Nr.MEM_RW, p.pid, at, near, 1 << 20, is_write)


def _small_calls(p: Process, _world: World) -> None:
    """Each call that looks at nothing much."""
    for _ in range(200):
        p.getpid()
        p.getppid()
        p.gettid()
        p.getuid()
        p.rdpkru()
        with contextlib.suppress(OSError):
            p.pkey_free(p.pkey_alloc())
        others = (Nr.RT_SIGACTION, Nr.CREDS, Nr.CONNECT, Nr.FAULT, Nr.FILE_SYNC, 9999)
        for nr in (Nr.GETRUSAGE, Nr.SYSINFO, Nr.PERSONALITY, *others):
            p.syscall(nr, 0xFFFF_FFFF if nr is Nr.PERSONALITY else 0, 0, 0)


def _batch_of(nr: Nr, *more: int) -> partial[None]:
    """One datagram of requests, each about all, or of mincore about what a reply has room for."""

    def send(p: Process, w: World) -> None:
        length = min(w.length, 60_000 * PAGE_SIZE) if nr is Nr.MINCORE else w.length
        with p.batch() as batch:
            for _ in range(_MOST_REQUESTS):
                batch.call(nr, w.start, length, *more)

    return partial(send)


def _batch_of_maps(p: Process, w: World) -> None:
    """Map and unmap all, again and again."""
    with p.batch() as batch:
        for _ in range(_MOST_REQUESTS // 2):
            batch.call(Nr.MMAP, ELSEWHERE, w.length, RW, ANON)
            batch.call(Nr.MUNMAP, ELSEWHERE, w.length)


def _batch_of_stores(p: Process, w: World) -> None:
    with p.batch() as batch:
        for number in range(_MOST_REQUESTS):
            batch.store(w.start + number * PMD_SIZE % w.length, b"x" * 64)


def _loads(p: Process, w: World) -> None:
    for number in range(256):
        p.mem.load(w.start + number * 65536 % w.length, 60_000)


def _duplicate(p: Process, w: World) -> None:
    """mremap of an old length of 0 maps the same shared memory once more; then all of that is read."""
    p.mremap(w.start, 0, w.length, int(Mremap.MAYMOVE | Mremap.FIXED), ELSEWHERE)
    p.call(Nr.TOUCH, ELSEWHERE, w.length, Access.READ)


def _grow_and_shrink(p: Process, w: World) -> None:
    p.mremap(w.start, w.length, 2 * w.length, int(Mremap.MAYMOVE))


def _stack(p: Process, _world: World) -> None:
    """A stack that grows to the most that it may be."""
    at = p.mmap(ELSEWHERE, PAGE_SIZE, RW, ANON | Map.GROWSDOWN.value)
    p.call(Nr.TOUCH, at - (6 << 20), 6 << 20, Access.WRITE)


def _heap_steps(p: Process, _world: World) -> None:
    start = p.brk(0)
    with p.batch() as batch:
        for number in range(_MOST_REQUESTS):
            batch.call(Nr.BRK, start + number % 7 * PMD_SIZE)


def _no_merging(p: Process, _world: World) -> None:
    p.call(Nr.PRCTL, Pr.SET_MEMORY_MERGE, 1)
    p.call(Nr.PRCTL, Pr.SET_MEMORY_MERGE, 0)


def _no_huge(p: Process, w: World) -> None:
    """The machine has no new huge pages any more; those that are there are used on."""
    _setting("sys/kernel/mm/transparent_hugepage/enabled", b"never", b"madvise", p, w)


def _attach_segment(p: Process, w: World) -> None:
    number = p.call(Nr.SHMGET, shm.IPC_PRIVATE, w.length, 0o600 | shm.SHM_NORESERVE).ret
    p.call(Nr.SHMAT, number, ELSEWHERE, 0)
    p.call(Nr.SHMCTL, number, shm.IPC_RMID)
    p.call(Nr.TOUCH, ELSEWHERE, w.length, Access.WRITE)
    p.call(Nr.SHMCTL, 0, shm.SHM_INFO)
    p.call(Nr.SHMDT, ELSEWHERE)


def _reclaimed(p: Process, w: World) -> None:
    """Merged pages have to leave memory."""
    scan(p, 1)
    _setting("sys/vm/min_free_kbytes", str((15 << 30) >> 10).encode(), b"16384", p, w)


_EVERYWHERE = (worlds.wide, worlds.vmas, worlds.many_files)
CASES = [
    *[Case("small files of /proc", make, _small_files) for make in (*_EVERYWHERE, crowd)],
    Case("read kerneld/tasks", crowd, lambda p, _: p.procread("kerneld/tasks")),
    *[Case(f"read {view}", vmas_of_files, lambda p, _, view=view: p.procread(view))  # type: ignore[misc]
      for view in ("meminfo", "vmstat", "self/smaps", "self/maps", "kerneld/status")],
    *[Case(f"read {view}", wide_huge, lambda p, _, view=view: p.procread(view))  # type: ignore[misc]
      for view in ("self/smaps", "self/smaps_rollup", "meminfo")],
    *[Case("read self/walk", make, _walk) for make in (worlds.wide, worlds.huge)],
    *[Case("settings, as they are", make, _settings) for make in (worlds.vmas, worlds.nearly_full)],
    *[Case(f"{path.rsplit('/', 1)[1]} = {value.decode()}", make, partial(_setting, path, value, usual))
      for path, value, usual in (("sys/vm/watermark_scale_factor", b"3000", b"10"), ("sys/vm/swappiness", b"0", b"60"),
                                 ("sys/vm/swappiness", b"200", b"60"))
      for make in (worlds.written, worlds.nearly_full)],
    Case("transparent_hugepage = never", worlds.huge, _no_huge),
    *[Case(f"clear_refs {kind}", make, partial(_clear_refs, kind))
      for kind in (2, 3, 4, 5) for make in (worlds.vmas, worlds.shared, worlds.huge)],
    *[Case(f"{name} /proc/PID/mem", make, partial(_mem_rw, is_write))
      for name, is_write in (("read", 0), ("write", 1)) for make in (worlds.wide, worlds.swapped, worlds.private_file)],
    *[Case("small calls", make, _small_calls) for make in _EVERYWHERE],
    *[Case(f"2,000 times {name}", make, _batch_of(nr, *more))
      for name, nr, more in (("mprotect", Nr.MPROTECT, (READ,)), ("madvise", Nr.MADVISE, (Madv.COLD.value,)),
                             ("mincore", Nr.MINCORE, ()), ("msync", Nr.MSYNC, (4,)), ("mlock", Nr.MLOCK, ()))
      for make in (worlds.vmas, worlds.written)],
    Case("1,000 times mmap, munmap", worlds.written, _batch_of_maps),
    *[Case("2,000 stores", make, _batch_of_stores) for make in (worlds.wide, worlds.swapped, wide_huge)],
    *[Case("loads of 60,000 bytes", make, _loads) for make in (worlds.wide, worlds.swapped)],
    *[Case("mremap of length 0", make, _duplicate) for make in (worlds.shared, worlds.file)],
    *[Case("mremap to the double", make, _grow_and_shrink)
      for make in (worlds.wide, worlds.written, worlds.huge, wide_huge)],
    Case("a stack grows", worlds.vmas, _stack),
    Case("2,000 times brk", worlds.vmas, _heap_steps),
    *[Case("prctl MEMORY_MERGE, and back", make, _no_merging) for make in (worlds.vmas, merged, merged_into_one)],
    Case("a segment from shmget to shmdt", worlds.nothing, _attach_segment),
    *[Case("min_free_kbytes", make, _reclaimed) for make in (merged, merged_into_one)],
    *[Case(call, make, do)
      for make in (wide_huge, vmas_of_files, copies_of_vmas, locked_written)
      for call, do in (
          ("munmap", lambda p, w: p.munmap(w.start, w.length)),
          ("mprotect none", lambda p, w: p.mprotect(w.start, w.length, int(Prot.NONE))),
          ("madvise DONTNEED", lambda p, w: p.madvise(w.start, w.length, Madv.DONTNEED)),
          ("mlock", lambda p, w: p.mlock(w.start, w.length)),
          ("msync", lambda p, w: p.msync(w.start, w.length, 4)),
          ("fork", lambda p, _: p.call(Nr.CLONE)),
          ("mremap by a page", lambda p, w: p.mremap(w.start, w.length, w.length, 3, ELSEWHERE + PAGE_SIZE)),
          ("exit", worlds.end),
      )
      if not (make is vmas_of_files and "mremap" in call)],
    Case("16 forks", worlds.wide, lambda p, _: [p.call(Nr.CLONE) for _ in range(_COPIES)]),
]  # fmt: skip
