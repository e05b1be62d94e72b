"""A process with a memory of its own, a dictionary of pages: what the scenarios need of `shared.client.Process`.

It keeps a log of the calls, in order. Forks really; then Python's own copy of the memory is the child's.
"""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable, Sequence
from itertools import count
from typing import NoReturn, cast

from shared.client import Process
from shared.client.signals import die_of
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_MASK, PAGE_SIZE
from shared.uapi.syscalls import Access

ZERO_PFN = 1
HEAP_START = 1 << 20
STACK_START = (1 << 46) - 8 * PAGE_SIZE
IMAGE_START = 4 << 20
ANYWHERE = 1 << 44
MMAP_THRESHOLD = 128 << 10


class FakeMemory:
    """Bytes and frames by page."""

    def __init__(self, process: FakeProcess) -> None:
        self._process = process

    def __getitem__(self, where: slice) -> bytes:
        self._process.log.append("load")
        return bytes(self._byte(address) for address in range(where.start, where.stop))

    def __setitem__(self, where: slice, data: bytes) -> None:
        self._process.log.append("store")
        for address, byte in zip(range(where.start, where.stop), data, strict=True):
            self._process.page(address, Prot.WRITE)[address % PAGE_SIZE] = byte

    def load_u8(self, address: int) -> int:
        return self[address : address + 1][0]

    def load_u64(self, address: int) -> int:
        return int.from_bytes(self[address : address + 8], "little")

    def store_u8(self, address: int, value: int) -> None:
        self[address : address + 1] = bytes([value])

    def store_u64(self, address: int, value: int) -> None:
        self[address : address + 8] = value.to_bytes(8, "little")

    def touch(self, address: int, length: int, access: Access) -> int:
        self._process.log.append("touch")
        for at in range(address, address + length, PAGE_SIZE):
            self._process.page(at, Prot.WRITE if access is Access.WRITE else Prot.READ)
        return length // PAGE_SIZE

    def _byte(self, address: int) -> int:
        return self._process.page(address, Prot.READ)[address % PAGE_SIZE]


class FakeProcess:
    """The face of Process, by a dictionary of pages."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.log: list[str] = []
        self.mem = FakeMemory(self)
        self.rights: dict[int, int] = {}
        self.pages: dict[int, bytearray] = {}
        self.pfns: dict[int, int] = {}
        self.names: dict[int, str] = {}
        self.files: dict[int, int] = {}
        self.meminfo = {"MemTotal": 4096, "MemFree": 4000, "MemAvailable": 4000, "SwapTotal": 1024, "SwapFree": 1024}
        self.is_superuser = True
        self._new_pfn = count(0x100)
        self._break = HEAP_START
        self._blocks: dict[int, int] = {}
        self._grow_stack(STACK_START)
        self._pipe = os.pipe()

    def as_process(self) -> Process:
        """Say to the type checker what this stands for."""
        return cast(Process, self)

    def fileno(self) -> int:
        return self._pipe[0]

    def hang_up(self) -> None:
        """End the connection."""
        os.close(self._pipe[1])

    def page(self, address: int, wanted: Prot) -> bytearray:
        """Do what the processor does with an access: fault a frame in, or die."""
        base = address & PAGE_MASK
        if base not in self.rights and STACK_START - (1 << 20) <= base < STACK_START:
            self._grow_stack(base)
        if not self.rights.get(base, 0) & wanted:
            die_of(signal.SIGSEGV)
        page = self.pages.setdefault(base, bytearray(PAGE_SIZE))
        if self.pfns.get(base, 0) in ((0,) if wanted is Prot.READ else (0, ZERO_PFN)):
            is_zero = wanted is Prot.READ and base not in self.files
            self.pfns[base] = ZERO_PFN if is_zero else next(self._new_pfn)
        return page

    def mmap(self, addr: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
        if not addr:
            return ANYWHERE
        assert flags & Map.FIXED_NOREPLACE
        self.log.append("mmap")
        for index, base in enumerate(range(addr, addr + length, PAGE_SIZE)):
            assert base not in self.rights, "the window was not empty"
            self.rights[base] = prot
            if fd >= 0:
                self.pages[base] = bytearray(os.pread(fd, PAGE_SIZE, offset + index * PAGE_SIZE))
                self.files[base] = os.dup(fd) if flags & Map.SHARED else -1
        return addr

    def munmap(self, addr: int, length: int) -> None:
        self.log.append("munmap")
        for base in range(addr, addr + length, PAGE_SIZE):
            for book in (self.rights, self.pages, self.pfns, self.names):
                cast(dict[int, object], book).pop(base, None)
            if (descriptor := self.files.pop(base, -1)) >= 0:
                os.close(descriptor)

    def mprotect(self, addr: int, length: int, prot: int) -> None:
        self.log.append("mprotect")
        for base in range(addr, addr + length, PAGE_SIZE):
            self.rights[base] = prot

    def madvise(self, addr: int, length: int, advice: int) -> None:
        self.log.append("madvise")
        if advice == Madv.POPULATE_WRITE:
            os.kill(os.getpid(), signal.SIGKILL)  # The OOM killer.
        for base in range(addr, addr + length, PAGE_SIZE) if advice in (Madv.PAGEOUT, Madv.DONTNEED) else ():
            self.pfns.pop(base, None)

    def msync(self, addr: int, length: int, flags: int) -> None:
        self.log.append("msync")
        for index, base in enumerate(range(addr, addr + length, PAGE_SIZE)):
            os.pwrite(self.files[base], self.pages[base], index * PAGE_SIZE)

    def sbrk(self, increment: int) -> int:
        assert increment == 0
        return self._break

    def malloc(self, size: int) -> int:
        self.log.append("malloc")
        length = -(-size // PAGE_SIZE) * PAGE_SIZE
        start = (1 << 45) if size >= MMAP_THRESHOLD else self._break
        if start == self._break:
            self._break += length
        for base in range(start, start + length, PAGE_SIZE):
            self.rights[base] = Prot.READ | Prot.WRITE
        self._blocks[start] = length
        return start

    def free(self, ptr: int) -> None:
        self.log.append("free")
        length = self._blocks.pop(ptr)
        if ptr + length == self._break:
            self._break = ptr

    def fork(self) -> int:
        self.log.append("fork")
        pid = os.fork()
        if pid == 0:
            self.pid = os.getpid()
        return pid

    def execve(self, path: str, argv: Sequence[str], envp: Sequence[str]) -> None:
        self.log.append("execve")
        for book in (self.rights, self.pages, self.pfns, self.names, self.files):
            cast(dict[int, object], book).clear()
        for index, rights in enumerate((Prot.READ, Prot.READ | Prot.EXEC, Prot.READ | Prot.WRITE)):
            base = IMAGE_START + index * PAGE_SIZE
            self.rights[base], self.names[base] = rights, path
        self._grow_stack(STACK_START)

    def exit(self, status: int = 0) -> NoReturn:
        os._exit(status)

    def close(self) -> None:
        self.log.append("close")

    def read_proc(self, path: str) -> bytes:
        if path == "meminfo":
            return "".join(f"{name}: {value} kB\n" for name, value in self.meminfo.items()).encode()
        assert path == "self/maps"
        lines = [self._maps_line(base) for base in sorted(self.rights) if base < STACK_START - (1 << 20)]
        stack = min(base for base in self.rights if base >= STACK_START - (1 << 20))
        lines.append(f"{stack:x}-{STACK_START + PAGE_SIZE:x} rw-p 00000000 00:00 0    [stack]")
        return "\n".join(lines).encode()

    def procread(self, path: str, offset: int = 0, length: int = 65536) -> bytes:
        assert path == "self/pagemap"
        first = offset // 8 * PAGE_SIZE
        pfns = (self.pfns.get(base, 0) for base in range(first, first + length // 8 * PAGE_SIZE, PAGE_SIZE))
        return b"".join(struct.pack("<Q", pfn | 1 << 63 if pfn else 0) for pfn in pfns)

    def _maps_line(self, base: int) -> str:
        rights = self.rights[base]
        letters = "".join(letter if rights & bit else "-" for letter, bit in (("r", 1), ("w", 2), ("x", 4)))
        return f"{base:x}-{base + PAGE_SIZE:x} {letters}p 00000000 00:00 0    {self.names.get(base, '')}"

    def _grow_stack(self, base: int) -> None:
        for at in range(base, STACK_START + PAGE_SIZE, PAGE_SIZE):
            self.rights[at] = Prot.READ | Prot.WRITE


class FakePace:
    """Does not wait; notes when it was asked to."""

    def __init__(self, log: list[str], on_wait: Callable[[], None] | None = None) -> None:
        self.log = log
        self.on_wait = on_wait

    def wait(self, times: int = 1) -> None:
        self.log.append("pause" if times == 1 else "long pause")
        if self.on_wait:
            self.on_wait()
