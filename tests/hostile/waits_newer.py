"""Newer calls for `tests.hostile.waits`: userfaultfd, names, memory whose frames are scattered, promises."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from functools import partial

from shared.client import Process
from shared.uapi.mman import PR_SET_VMA_ANON_NAME, Madv, Pr, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from shared.uapi.userfaultfd import API, RANGE, REGISTER, UFFD_API, ZEROPAGE, RegisterMode, Uffdio
from tests.hostile import waits_worlds as worlds
from tests.hostile.waits_calls import advise, fork, mremap, read_on
from tests.hostile.waits_cases import Case
from tests.hostile.waits_requests import vmas_of_files
from tests.hostile.waits_worlds import GIB, Scale, World

_WAITERS = 900
_MESSAGE_BYTES = 32
_fds: list[int] = []


def _ioctl(p: Process, command: int, record: bytes) -> None:
    """Make an ioctl of the newest userfaultfd. Raises OSError."""
    ret, _ = p.ioctl(_fds[-1], command, record)
    if ret:
        raise OSError(-ret, os.strerror(-ret))


def _register(p: Process, w: World) -> None:
    _fds.append(p.userfaultfd(os.O_NONBLOCK))
    _ioctl(p, Uffdio.API, API.pack(UFFD_API, 0, 0))
    _ioctl(p, Uffdio.REGISTER, REGISTER.pack(w.start, w.length, RegisterMode.MISSING, 0))


def watched_vmas(p: Process, scale: Scale) -> World:
    """As many mappings as there may be, all watched by a userfaultfd."""
    world = worlds.vmas(p, scale)
    _register(p, world)
    return world


def watched_wide(p: Process, scale: Scale) -> World:
    """A very long mapping, of the zero page as far as that has been given, that a userfaultfd watches."""
    world = worlds.wide(p, scale)
    _register(p, world)
    return world


def watched(p: Process, scale: Scale) -> World:
    """Memory that nobody has used, and that a userfaultfd watches."""
    world = worlds.untouched(p, scale)
    _register(p, world)
    return world


def awaited(p: Process, scale: Scale) -> World:
    """Watched memory of which 900 threads have asked for a page each, and wait."""
    world = watched(p, scale)

    def ask(page: int) -> None:
        waiter = Process.attach(p.socket_path, threading.get_native_id())
        with contextlib.suppress(Exception):
            waiter.call(Nr.LOAD, page, 1)

    for number in range(_WAITERS):
        threading.Thread(target=ask, args=(world.start + number * PMD_SIZE,), daemon=True).start()
    os.set_blocking(_fds[-1], True)
    for _ in range(_WAITERS):
        os.read(_fds[-1], _MESSAGE_BYTES)
    return world


def promised(p: Process, scale: Scale) -> World:
    """vm.overcommit_memory is 2, and all is promised to two other processes, of which one has written to 4 GiB."""
    pids = []
    for at_once in (scale.written_bytes, PAGE_SIZE * 8):
        ready, done = os.pipe()
        pid = p.fork()
        if not pid:
            p.procwrite("sys/vm/overcommit_memory", b"2")
            p.procwrite("sys/vm/overcommit_ratio", b"100")
            at = worlds.BASE
            p.mmap(at, at_once, worlds.RW, worlds.ANON)
            p.call(Nr.TOUCH, at, at_once, Access.WRITE)
            size = at_once
            while size >= at_once // 4096 + PAGE_SIZE:
                at += 8 * GIB
                try:
                    p.mmap(at, size, worlds.RW, worlds.ANON)
                except OSError:
                    size = size // 2 & -PAGE_SIZE
            os.write(done, b"x")
            signal.pause()
        os.read(ready, 1)
        pids.append(pid)
    _pids[:] = pids
    return World(worlds.BASE, 0)


_pids: list[int] = []


def _new_client(p: Process, _world: World) -> None:
    """The two end, and another process attaches."""
    for pid in _pids:
        os.kill(pid, signal.SIGKILL)
    for pid in _pids:
        os.waitpid(pid, 0)
    if not os.fork():
        try:
            Process.attach(p.socket_path).getpid()
        finally:
            os._exit(0)
    os.wait()
    p.procwrite("sys/vm/overcommit_memory", b"1")


def _unregister(p: Process, w: World) -> None:
    _ioctl(p, Uffdio.UNREGISTER, RANGE.pack(w.start, w.length))


def _close(p: Process, _world: World) -> None:
    """The last descriptor goes: the machine hears of it without a request."""
    os.close(_fds.pop())
    for _ in range(3):
        p.getpid()


def _zeropages(p: Process, w: World) -> None:
    _ioctl(p, Uffdio.ZEROPAGE, ZEROPAGE.pack(w.start, w.length, 0, 0))


def _mbind(p: Process, w: World) -> None:
    """Each page table is looked at: no page may be on the machine's node, and none is."""
    local, strict = 4, 1
    p.madvise(w.start, w.length, Madv.DONTNEED)
    p.call(Nr.MBIND, w.start, w.length, local, 0, 0, strict)


def _name(name: bytes, p: Process, w: World) -> None:
    p.call(Nr.PRCTL, Pr.SET_VMA, PR_SET_VMA_ANON_NAME, w.start, w.length, 1, data=name)


def _names(p: Process, w: World) -> None:
    """Each mapping has a name of its own, then all the same."""
    with p.batch() as batch:
        for number in range(2_000):
            at = w.start + number * PAGE_SIZE
            batch.call(Nr.PRCTL, Pr.SET_VMA, PR_SET_VMA_ANON_NAME, at, PAGE_SIZE, 1, data=b"%d\0" % number)
    _name(b"one\0", p, w)


CASES = [
    *[Case("userfaultfd register", make, _register) for make in (worlds.vmas, worlds.wide, worlds.shared)],
    *[Case("userfaultfd unregister", make, _unregister) for make in (watched_vmas, watched_wide)],
    *[Case("userfaultfd close", make, _close) for make in (watched_vmas, watched_wide)],
    *[Case("userfaultfd ZEROPAGE", make, _zeropages) for make in (watched, awaited)],
    *[Case(call, awaited, do) for call, do in (("userfaultfd close", _close), ("exit", worlds.end))],
    Case("attach", promised, _new_client),
    *[Case("exit", make, worlds.end, 4) for make in (worlds.file, worlds.many_files, vmas_of_files)],
    *[Case(call, make, do)
      for make in (watched_vmas,)
      for call, do in (("munmap", lambda p, w: p.munmap(w.start, w.length)), ("fork", fork), ("exit", worlds.end))],
    *[Case("madvise DONTNEED, mbind STRICT", make, _mbind) for make in (worlds.vmas, worlds.wide)],
    Case("PR_SET_VMA_ANON_NAME", worlds.vmas, partial(_name, b"name\0")),
    Case("PR_SET_VMA_ANON_NAME of each, and all", worlds.vmas, _names),
    *[Case(f"read self/{view} to its end", worlds.vmas, read_on(f"self/{view}"), 4)
      for view in ("smaps", "pagemap")],
    *[Case(call, worlds.scattered, do)
      for call, do in (
          ("munmap", lambda p, w: p.munmap(w.start, w.length)),
          ("mprotect", lambda p, w: p.mprotect(w.start, w.length, int(Prot.READ))),
          ("fork", fork),
          ("madvise PAGEOUT", advise(Madv.PAGEOUT)),
          ("madvise COLD", advise(Madv.COLD)),
          ("touch, writing", lambda p, w: p.call(Nr.TOUCH, w.start, w.length, Access.WRITE)),
          ("mremap by GiB", mremap(GIB)),
          ("mremap by 2 MiB", mremap(PMD_SIZE)),
          ("mremap by a page", mremap(PAGE_SIZE)),
          ("exit", worlds.end),
      )],
]  # fmt: skip
