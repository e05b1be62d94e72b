"""A whole kernel without a server: programs that make requests of it, and what they need to say it shortly."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Sequence

from kerneld.mm.space.mm import MmStruct
from kerneld.syscalls.answer import Answer
from kerneld.syscalls.dispatch import dispatch
from kerneld.syscalls.kernel import Kernel, KernelConfig, Sender
from kerneld.task.task import Process, Thread
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import ABI_VERSION, Access, Nr
from shared.wire import U64_MASK, Request

ROOT, USER, OTHER = 0, 1000, 1001
READ, WRITE, EXEC, NONE = Prot.READ.value, Prot.WRITE.value, Prot.EXEC.value, Prot.NONE.value
RW = READ | WRITE
PRIVATE, SHARED, FIXED = Map.PRIVATE.value, Map.SHARED.value, Map.FIXED.value
ANON, SHARED_ANON = PRIVATE | Map.ANONYMOUS.value, SHARED | Map.ANONYMOUS.value
BASE = 0x10_0000_0000
NOBODY_FROM = 1 << 23
"""Pids from here on belong to no real process: Linux's largest is 4,194,304."""


def page(number: int) -> int:
    """Return the address of a page counted from BASE."""
    return BASE + number * PAGE_SIZE


def iovecs(*pieces: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", vaddr & U64_MASK, length & U64_MASK) for vaddr, length in pieces)


class Program:
    """One thread of a process, and the calls it makes."""

    def __init__(self, kernel: Kernel, thread: Thread) -> None:
        self.kernel = kernel
        self.thread = thread

    @property
    def process(self) -> Process:
        return self.thread.process

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def mm(self) -> MmStruct:
        return self.process.live_mm

    def answer(self, nr: int, *args: int, data: bytes = b"", fds: Sequence[int] = ()) -> Answer:
        """Make a request; descriptors are copied first, and what it leaves over is closed, as the server does."""
        left = [os.dup(fd) for fd in fds]
        try:
            words = [arg & U64_MASK for arg in args] + [0] * (6 - len(args))
            a, b, c, d, e, f = words
            return dispatch(self.kernel, self.thread, Request(nr, (a, b, c, d, e, f), data), left)
        finally:
            for fd in left:
                os.close(fd)

    def call(self, nr: int, *args: int, data: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Make a request that raises no signal, and return what it returns."""
        answer = self.answer(nr, *args, data=data, fds=fds)
        assert not answer.signo
        return answer.ret

    def mmap(
        self, pages: int, prot: int = RW, flags: int = ANON, *, at: int | None = None, fd: int | None = None
    ) -> int:
        flags |= FIXED if at is not None else 0
        fds = [] if fd is None else [fd]
        return self.call(Nr.MMAP, at or 0, pages * PAGE_SIZE, prot, flags, fd or 0, 0, fds=fds)

    def load(self, vaddr: int, length: int = 1) -> bytes:
        answer = self.answer(Nr.LOAD, vaddr, length)
        assert (answer.ret, answer.signo) == (length, 0)
        return answer.data

    def store(self, vaddr: int, data: bytes) -> None:
        assert self.call(Nr.STORE, vaddr, len(data), data=data) == len(data)

    def touch(self, first: int, pages: int, access: Access = Access.WRITE) -> None:
        assert self.call(Nr.TOUCH, page(first), pages * PAGE_SIZE, access) == pages

    def in_memory(self, first: int, pages: int) -> list[int]:
        """Return 1 for each page, counted from BASE, that mincore finds in memory."""
        return list(self.answer(Nr.MINCORE, page(first), pages * PAGE_SIZE, 0).data)


class World:
    """A machine, unless another is asked for of 6 MiB, whose invariants are checked after every request."""

    def __init__(self, config: KernelConfig | None = None) -> None:
        self.kernel = Kernel(config or KernelConfig(ram_bytes=6 << 20, superuser_uid=ROOT, check_invariants=True))
        self._pids = itertools.count(NOBODY_FROM)

    def attach(self, uid: int = USER, pid: int = 0, token: int = 0) -> Program:
        """Return a new process of a user; without a pid it is one behind which no real process stands."""
        sender = Sender(pid or next(self._pids), uid, uid)
        return Program(self.kernel, self.kernel.attach(sender, ABI_VERSION, 0, token))

    def close(self) -> None:
        """End everything; no frame and no file may be left."""
        for process in list(self.kernel.processes.values()):
            self.kernel.process_died(process)
        self.kernel.take_ended()
        self.kernel.files.kept.drop_all()
        assert self.kernel.frames.free_pages == self.kernel.frames.total_pages
        assert len(self.kernel.files) == 0
        self.kernel.shutdown()
