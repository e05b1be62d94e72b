"""Newer calls for `tests.hostile.waits`: userfaultfd, names, memory whose frames are scattered, many readers."""

from __future__ import annotations

import os
from functools import partial

from shared.client import Process
from shared.uapi.mman import PR_SET_VMA_ANON_NAME, Madv, Pr, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from shared.uapi.userfaultfd import API, RANGE, REGISTER, UFFD_API, ZEROPAGE, RegisterMode, Uffdio
from tests.hostile import waits_worlds as worlds
from tests.hostile.waits_cases import Case
from tests.hostile.waits_worlds import ELSEWHERE, GIB, Scale, World

_TO = 3
_fds: list[int] = []


def _userfaultfd(p: Process) -> int:
    fd = p.userfaultfd(os.O_NONBLOCK)
    p.ioctl(fd, Uffdio.API, API.pack(UFFD_API, 0, 0))
    _fds.append(fd)
    return fd


def _register(p: Process, w: World) -> None:
    fd = _userfaultfd(p)
    ret, _ = p.ioctl(fd, Uffdio.REGISTER, REGISTER.pack(w.start, w.length, RegisterMode.MISSING, 0))
    assert not ret


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


def _unregister(p: Process, w: World) -> None:
    p.ioctl(_fds[-1], Uffdio.UNREGISTER, RANGE.pack(w.start, w.length))


def _close(p: Process, _world: World) -> None:
    """The last descriptor goes: the machine hears of it without a request."""
    os.close(_fds.pop())
    for _ in range(3):
        p.getpid()


def _zeropages(p: Process, w: World) -> None:
    p.ioctl(_fds[-1], Uffdio.ZEROPAGE, ZEROPAGE.pack(w.start, w.length, 0, 0))


def _name(name: bytes, p: Process, w: World) -> None:
    p.call(Nr.PRCTL, Pr.SET_VMA, PR_SET_VMA_ANON_NAME, w.start, w.length, 1, data=name)


def _names(p: Process, w: World) -> None:
    """Each mapping has a name of its own, then all the same."""
    with p.batch() as batch:
        for number in range(2_000):
            at = w.start + number * PAGE_SIZE
            batch.call(Nr.PRCTL, Pr.SET_VMA, PR_SET_VMA_ANON_NAME, at, PAGE_SIZE, 1, data=b"%d\0" % number)
    _name(b"one\0", p, w)


def _read_all(view: str, p: Process, _world: World) -> None:
    at = 0
    while (part := p.procread(view, at)) and at < 4 << 20:
        at += len(part)


def _mremap(distance: int, p: Process, w: World) -> None:
    p.mremap(w.start, w.length, w.length, _TO, ELSEWHERE + distance)


CASES = [
    *[Case("userfaultfd register", make, _register) for make in (worlds.vmas, worlds.wide, worlds.shared)],
    *[Case("userfaultfd unregister", make, _unregister) for make in (watched_vmas, watched_wide)],
    *[Case("userfaultfd close", make, _close) for make in (watched_vmas, watched_wide)],
    Case("userfaultfd ZEROPAGE", watched, _zeropages),
    *[Case(call, make, do)
      for make in (watched_vmas,)
      for call, do in (("munmap", lambda p, w: p.munmap(w.start, w.length)), ("fork", lambda p, _: p.call(Nr.CLONE)),
                       ("exit", worlds.end))],
    Case("PR_SET_VMA_ANON_NAME", worlds.vmas, partial(_name, b"name\0")),
    Case("PR_SET_VMA_ANON_NAME of each, and all", worlds.vmas, _names),
    *[Case(f"read self/{view} to its end", worlds.vmas, partial(_read_all, f"self/{view}"), 4)
      for view in ("smaps", "pagemap")],
    *[Case(call, worlds.scattered, do)
      for call, do in (
          ("munmap", lambda p, w: p.munmap(w.start, w.length)),
          ("mprotect", lambda p, w: p.mprotect(w.start, w.length, int(Prot.READ))),
          ("fork", lambda p, _: p.call(Nr.CLONE)),
          ("madvise PAGEOUT", lambda p, w: p.madvise(w.start, w.length, Madv.PAGEOUT)),
          ("madvise COLD", lambda p, w: p.madvise(w.start, w.length, Madv.COLD)),
          ("touch, writing", lambda p, w: p.call(Nr.TOUCH, w.start, w.length, Access.WRITE)),
          ("mremap by GiB", partial(_mremap, GIB)),
          ("mremap by 2 MiB", partial(_mremap, PMD_SIZE)),
          ("mremap by a page", partial(_mremap, PAGE_SIZE)),
          ("exit", worlds.end),
      )],
]  # fmt: skip
