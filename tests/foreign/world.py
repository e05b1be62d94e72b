"""A kernel in this process, driven by requests as a server would drive it, for states of memory to be judged."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from kerneld.mm.space.mm import MmStruct
from kerneld.syscalls.answer import Answer
from kerneld.syscalls.dispatch import dispatch
from kerneld.syscalls.kernel import Kernel, KernelConfig, Sender
from kerneld.task.task import Thread
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import ABI_VERSION, Access, Nr
from shared.wire import U64_MASK, Request

RAM_BYTES = 64 << 20
SWAP_BYTES = 32 << 20
NONE, R, W, X = Prot.NONE, Prot.READ, Prot.WRITE, Prot.EXEC
PRIVATE, SHARED = Map.PRIVATE, Map.SHARED
BASE = 0x10_0000_0000
"""Where fixed mappings go: the start of a 2 MiB page, far from everything."""


class World:
    """One machine; `me` is the first process, this real one."""

    def __init__(self) -> None:
        self.kernel = Kernel(KernelConfig(RAM_BYTES, os.getuid(), swap_bytes=SWAP_BYTES))
        self._children: list[subprocess.Popen[bytes]] = []
        self.me = self._attach(os.getpid(), 0)

    def _attach(self, pid: int, token: int) -> Thread:
        return self.kernel.attach(Sender(pid, os.getuid(), os.getgid()), ABI_VERSION, 0, token)

    def request(self, nr: Nr, *args: int, data: bytes = b"", fd: int | None = None, by: Thread | None = None) -> Answer:
        """Make one request; it may fail."""
        a, b, c, d, e, f = [arg & U64_MASK for arg in (*args, *[0] * (6 - len(args)))]
        fds = [] if fd is None else [os.dup(fd)]
        return dispatch(self.kernel, by or self.me, Request(nr, (a, b, c, d, e, f), data), fds)

    def call(self, nr: Nr, *args: int, data: bytes = b"", fd: int | None = None, by: Thread | None = None) -> int:
        """Make one request that must succeed, and return what it returns."""
        answer = self.request(nr, *args, data=data, fd=fd, by=by)
        assert answer.ret >= 0, f"{nr.name}: {os.strerror(-answer.ret)}"
        assert answer.signo == 0, f"{nr.name}: signal {answer.signo}"
        return answer.ret

    def mmap(
        self,
        pages: int,
        prot: Prot = R | W,
        flags: Map = PRIVATE,
        *,
        at: int | None = None,
        fd: int | None = None,
        offset: int = 0,
    ) -> int:
        """Map so many pages, anonymous without a descriptor, and return where."""
        flags |= Map.ANONYMOUS if fd is None else Map.FILE
        flags |= Map.FIXED if at is not None else Map.FILE
        return self.call(Nr.MMAP, at or 0, pages * PAGE_SIZE, prot, flags, -1, offset, fd=fd)

    def touch(self, vaddr: int, pages: int = 1, access: Access = Access.WRITE, by: Thread | None = None) -> None:
        """Access every page of a range."""
        assert self.call(Nr.TOUCH, vaddr, pages * PAGE_SIZE, access, by=by) == pages

    def mprotect(self, vaddr: int, pages: int, prot: Prot) -> None:
        """Change the rights of so many pages."""
        self.call(Nr.MPROTECT, vaddr, pages * PAGE_SIZE, prot)

    def fork(self, parent: Thread | None = None) -> Thread:
        """Copy a process for a new real child, which does nothing; returns the copy's thread."""
        token = self.call(Nr.CLONE, by=parent)
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._children.append(child)
        return self._attach(child.pid, token)

    @contextmanager
    def ram(self, thread: Thread) -> Iterator[tuple[int, int]]:
        """Ask for the RAM as a foreign walker has to: a descriptor of it, and the process's CR3."""
        answer = self.request(Nr.RAM, thread.process.pid)
        (fd,) = answer.fds
        try:
            yield fd, answer.ret
        finally:
            os.close(fd)

    def close(self) -> None:
        """End everything; every frame comes back."""
        self.kernel.shutdown()
        for child in self._children:
            child.communicate()
        gc.collect()


@contextmanager
def new_world() -> Iterator[World]:
    """A machine that is taken down at the end."""
    world = World()
    try:
        yield world
    finally:
        world.close()


def mm_of(thread: Thread) -> MmStruct:
    """Return a thread's address space."""
    return thread.process.live_mm
