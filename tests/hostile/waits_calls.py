"""The calls that `tests.hostile.waits` measures, each in the worlds that it takes longest in."""

from __future__ import annotations

from shared.client import Process
from shared.client.trace import TraceSession
from shared.recording.head import GLOBS
from shared.uapi.mman import MLOCK_ONFAULT, Madv, Map, Mcl, Mremap, Ms, Pr, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import Rlimit
from shared.uapi.syscalls import Access, Nr
from tests.hostile import waits_worlds as worlds
from tests.hostile.waits_cases import Case, Do
from tests.hostile.waits_worlds import ANON, ELSEWHERE, READ, RW, SHARED, World

_MOVE = int(Mremap.MAYMOVE | Mremap.FIXED)
_MAX_IOVECS = 1024


def advise(advice: Madv) -> Do:
    """Return the call that advises on all of a world."""
    return lambda p, w: p.madvise(w.start, w.length, advice)


def _process_madvise(advice: Madv) -> Do:
    return lambda p, w: p.process_madvise(p.pid, [(w.start, w.length)], advice)


def _process_madvise_pieces(p: Process, w: World) -> None:
    """The most iovecs, each of all of it."""
    p.process_madvise(p.pid, [(w.start, w.length)] * _MAX_IOVECS, Madv.COLD)


def mremap(distance: int, flags: int = _MOVE) -> Do:
    """Return the call that moves all of a world, to so many bytes behind a GiB."""
    return lambda p, w: p.mremap(w.start, w.length, w.length, flags, ELSEWHERE + distance)


def fork(p: Process, _world: World) -> None:
    """Copy the address space."""
    p.call(Nr.CLONE)


def _execve(p: Process, _world: World) -> None:
    p.execve("/bin/true", ["true"])


def _execve_of_many_strings(p: Process, _world: World) -> None:
    hard = p.prlimit64(0, Rlimit.STACK)[1]
    p.prlimit64(0, Rlimit.STACK, (min(hard, 1 << 34), hard))
    p.execve("/bin/true", ["x"] * 500_000)


def _execve_of_long_strings(p: Process, _world: World) -> None:
    hard = p.prlimit64(0, Rlimit.STACK)[1]
    p.prlimit64(0, Rlimit.STACK, (min(hard, 1 << 34), hard))
    p.execve("/bin/true", ["x" * 131_000] * 45)


def _prlimits(p: Process, _world: World) -> None:
    for resource in range(16):
        p.prlimit64(0, resource, p.prlimit64(0, resource))


def _read(view: str) -> Do:
    return lambda p, _: p.procread(view)


def read_on(view: str) -> Do:
    """The last part of a view is read, which has to find its way to it."""

    def read(p: Process, _world: World) -> None:
        at = 0
        while part := p.procread(view, at):
            at += len(part)
            if at > 8 << 20:
                break

    return read


def _readv(p: Process, w: World) -> None:
    near = p.mmap(0, 1 << 20, RW, int(Map.PRIVATE | Map.ANONYMOUS))
    p.process_vm_readv(p.pid, [(near, 1 << 20)] * 1024, [(w.start, min(w.length, 1 << 30))])


def _mlockall(flags: int) -> Do:
    return lambda p, _: p.mlockall(flags)


def _fixed(p: Process, w: World) -> None:
    p.mmap(w.start, w.length, RW, ANON)


def _fixed_inside(p: Process, w: World) -> None:
    p.mmap(w.start + PAGE_SIZE, w.length - 2 * PAGE_SIZE, RW, ANON)


def _mremap_over(p: Process, w: World) -> None:
    """Move one page to where much is mapped, and as long: what is there goes."""
    at = p.mmap(ELSEWHERE, w.length, RW, ANON)
    p.mremap(at, w.length, w.length, _MOVE, w.start)


def _record(p: Process, _world: World) -> None:
    """Begin a record of the machine: its snapshot tells all that is there."""
    session = TraceSession(p, GLOBS, (), 256 << 20)
    session.stop()
    session.close()


def _populated(flags: int, prot: int = RW) -> Do:
    return lambda p, w: p.mmap(w.start, w.length, prot, flags | Map.POPULATE.value)


def _several(p: Process, w: World) -> None:
    p.munmap(w.start, w.length)
    p.munmap(worlds.BASE, 60_000 * 2 * PAGE_SIZE)


def _mbind(p: Process, w: World) -> None:
    nodes, bits, bind = 1, 64, 2
    p.call(Nr.MBIND, w.start, w.length, bind, 1, bits + 1, 0, data=nodes.to_bytes(8, "little"))


def _msync(p: Process, w: World) -> None:
    p.msync(w.start, w.length, int(Ms.SYNC))


_CROWD = 4
_AT_ONCE = [
    Case(call, make, do, _CROWD)
    for call, make, do in (
        ("msync", worlds.same_page, _msync),
        ("exit", worlds.same_page, worlds.end),
        ("madvise REMOVE", worlds.same_page, advise(Madv.REMOVE)),
        ("munmap", worlds.vmas, lambda p, w: p.munmap(w.start, w.length)),
        ("fork", worlds.vmas, fork),
        ("mremap by a page", worlds.file, mremap(PAGE_SIZE)),
        ("madvise PAGEOUT", worlds.written, advise(Madv.PAGEOUT)),
        ("touch, writing", worlds.untouched, lambda p, w: p.call(Nr.TOUCH, w.start, w.length, Access.WRITE)),
    )
]
_ADVICE = [Case(f"madvise {advice.name}", make, advise(advice))
           for advice in Madv if advice not in (Madv.HWPOISON, Madv.SOFT_OFFLINE)
           for make in (worlds.untouched if advice is Madv.POPULATE_WRITE else worlds.wide, worlds.vmas)]  # fmt: skip
_WRITTEN = [Case(f"madvise {advice.name}", make, advise(advice))
            for advice in (Madv.DONTNEED, Madv.FREE, Madv.COLD, Madv.PAGEOUT, Madv.WILLNEED)
            for make in (worlds.written, worlds.huge, worlds.shared, worlds.swapped, worlds.file, worlds.private_file)
            if not (advice is Madv.FREE and make in (worlds.shared, worlds.file, worlds.private_file))]  # fmt: skip
_BASIC = [
    Case(call, make, do)
    for make in (
        worlds.wide, worlds.vmas, worlds.written, worlds.shared, worlds.huge, worlds.file, worlds.private_file,
        worlds.swapped, worlds.locked, worlds.locked_vmas, worlds.many_files,
    )
    for call, do in (
        ("munmap", lambda p, w: p.munmap(w.start, w.length)),
        ("mmap over it", _fixed),
        ("fork", fork),
        ("exit", worlds.end),
        ("execve", _execve),
    )
]  # fmt: skip
_MOVES = [
    Case(call, make, do)
    for make in (worlds.wide, worlds.written, worlds.shared, worlds.huge, worlds.file, worlds.private_file,
                 worlds.swapped, worlds.locked)
    for call, do in (
        ("mremap by GiB", mremap(0)),
        ("mremap by 2 MiB", mremap(2 << 20)),
        ("mremap by a page", mremap(PAGE_SIZE)),
    )
]  # fmt: skip
CASES: list[Case] = [
    *_BASIC,
    *_MOVES,
    *_ADVICE,
    *_WRITTEN,
    *_AT_ONCE,
    Case("madvise POPULATE_WRITE", worlds.nearly_full, advise(Madv.POPULATE_WRITE)),
    *[Case("touch, writing", make, lambda p, w: p.call(Nr.TOUCH, w.start, w.length, Access.WRITE))
      for make in (worlds.full_of_one_page, worlds.full_of_a_crowd)],
    Case("mbind", worlds.vmas, _mbind),
    Case("mbind", worlds.wide, _mbind),
    Case("get_mempolicy", worlds.vmas, lambda p, w: p.call(Nr.GET_MEMPOLICY, 0, 0, 0, w.start, 2)),
    Case("set_mempolicy", worlds.vmas, lambda p, _: p.call(Nr.SET_MEMPOLICY, 0, 0, 0)),
    Case("mmap inside it", worlds.wide, _fixed_inside),
    Case("mremap over it", worlds.wide, _mremap_over),
    Case("mremap DONTUNMAP by a page", worlds.wide, mremap(PAGE_SIZE, _MOVE | 4)),
    Case("mremap to half", worlds.wide, lambda p, w: p.mremap(w.start, w.length, w.length // 2)),
    Case("brk down", worlds.heap, lambda p, w: p.brk(w.start)),
    Case("fork", worlds.threads, fork),
    Case("mprotect", worlds.wide, lambda p, w: p.mprotect(w.start, w.length, READ)),
    Case("mprotect", worlds.vmas, lambda p, w: p.mprotect(w.start, w.length, RW)),
    Case("mprotect", worlds.written, lambda p, w: p.mprotect(w.start, w.length, READ)),
    Case("mprotect", worlds.huge, lambda p, w: p.mprotect(w.start, w.length, READ)),
    Case("mprotect none", worlds.wide, lambda p, w: p.mprotect(w.start, w.length, int(Prot.NONE))),
    Case("madvise REMOVE", worlds.many_files, advise(Madv.REMOVE)),
    Case("madvise REMOVE", worlds.shared, advise(Madv.REMOVE)),
    Case("madvise REMOVE", worlds.file, advise(Madv.REMOVE)),
    Case("madvise PAGEOUT", worlds.many_files, advise(Madv.PAGEOUT)),
    Case("madvise DONTNEED", worlds.many_files, lambda p, _: p.madvise(worlds.BASE, 60_000 * 2 * PAGE_SIZE, 4)),
    Case("madvise COLLAPSE", worlds.small_for_huge, advise(Madv.COLLAPSE)),
    Case("msync", worlds.one_page, _msync),
    Case("madvise PAGEOUT", worlds.one_page, advise(Madv.PAGEOUT)),
    Case("madvise REMOVE", worlds.one_page, advise(Madv.REMOVE)),
    Case("msync", worlds.many_files, _msync),
    Case("msync", worlds.file, _msync),
    Case("msync", worlds.vmas, _msync),
    Case("mmap POPULATE, private", worlds.nothing, _populated(ANON)),
    Case("mmap POPULATE, shared", worlds.nothing, _populated(SHARED)),
    Case("munmap of all", worlds.many_files, _several),
    *[Case(f"process_madvise {advice.name}", make, _process_madvise(advice))
      for advice in (Madv.COLD, Madv.PAGEOUT, Madv.WILLNEED, Madv.COLLAPSE)
      for make in (worlds.wide, worlds.vmas, worlds.written)],
    Case("process_madvise, 1,024 times all", worlds.written, _process_madvise_pieces),
    Case("process_madvise WILLNEED", worlds.swapped, _process_madvise(Madv.WILLNEED)),
    Case("process_madvise COLLAPSE", worlds.small_for_huge, _process_madvise(Madv.COLLAPSE)),
    Case("process_vm_readv", worlds.wide, _readv),
    Case("process_vm_readv", worlds.swapped, _readv),
    Case("touch, reading", worlds.wide, lambda p, w: p.call(Nr.TOUCH, w.start, w.length, Access.READ)),
    Case("touch, writing", worlds.swapped, lambda p, w: p.call(Nr.TOUCH, w.start, w.length, Access.WRITE)),
    Case("mlock", worlds.read_only, lambda p, w: p.mlock(w.start, w.length)),
    Case("mlock", worlds.vmas, lambda p, w: p.mlock(w.start, w.length)),
    Case("mlock", worlds.written, lambda p, w: p.mlock(w.start, w.length)),
    Case("mlock2 ONFAULT", worlds.vmas, lambda p, w: p.mlock2(w.start, w.length, MLOCK_ONFAULT)),
    Case("munlock", worlds.locked, lambda p, w: p.munlock(w.start, w.length)),
    Case("munlock", worlds.locked_vmas, lambda p, w: p.munlock(w.start, w.length)),
    Case("mlockall", worlds.read_only, _mlockall(int(Mcl.CURRENT | Mcl.FUTURE))),
    Case("mlockall", worlds.vmas, _mlockall(int(Mcl.CURRENT | Mcl.FUTURE))),
    Case("munlockall", worlds.locked, lambda p, _: p.munlockall()),
    Case("munlockall", worlds.locked_vmas, lambda p, _: p.munlockall()),
    Case("prctl MEMORY_MERGE", worlds.vmas, lambda p, _: p.call(Nr.PRCTL, Pr.SET_MEMORY_MERGE, 1)),
    Case("mincore", worlds.wide, lambda p, w: p.mincore(w.start, 300_000 * PAGE_SIZE)),
    Case("mincore", worlds.vmas, lambda p, w: p.mincore(w.start, w.length)),
    Case("execve, 500,000 strings", worlds.vmas, _execve_of_many_strings),
    Case("execve, 6 MB of strings", worlds.vmas, _execve_of_long_strings),
    Case("prlimit64", worlds.vmas, _prlimits),
    *[Case("record", make, _record)
      for make in (worlds.wide, worlds.vmas, worlds.written, worlds.shared, worlds.huge, worlds.swapped,
                   worlds.many_files)],
    *[Case(f"read {view}", make, _read(view))
      for view in ("self/smaps", "self/maps", "self/smaps_rollup", "self/status", "self/statm", "meminfo", "vmstat")
      for make in (worlds.wide, worlds.vmas)],
    Case("read self/maps to its end", worlds.vmas, read_on("self/maps")),
    Case("read self/smaps to its end", worlds.vmas, read_on("self/smaps")),
    Case("read kpageflags", worlds.written, read_on("kpageflags")),
    Case("read kpagecount", worlds.written, read_on("kpagecount")),
    Case("read meminfo", worlds.shared, _read("meminfo")),
]  # fmt: skip
