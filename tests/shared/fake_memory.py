"""A flat address space for the scripted kerneld: a heap, mappings, loads and stores, without pages or protection."""

from __future__ import annotations

import errno

from shared.uapi.page import PAGE_SIZE, page_align
from shared.uapi.syscalls import Nr
from shared.wire import Request
from tests.shared.fake_kerneld import Said

HEAP = 0x5555_5555_0000
MAPPINGS = 0x7FFF_0000_0000


class FakeMemory:
    """Answers attach, brk, mmap, munmap, mremap, load, store and touch; any other request is -ENOSYS."""

    def __init__(self, heap: int = HEAP, heap_limit: int = 16 << 20, mremaps: bool = True) -> None:
        self.heap = heap
        self.brk = heap
        self.heap_limit = heap_limit
        self.mremaps = mremaps
        self.mapped: dict[int, bytearray] = {}
        self.heap_bytes = bytearray()
        self.next_mapping = MAPPINGS
        self.written: set[int] = set()

    def __call__(self, request: Request, fds: list[int]) -> Said:
        handler = {
            Nr.ATTACH: self._attach,
            Nr.BRK: self._brk,
            Nr.MMAP: self._mmap,
            Nr.MUNMAP: self._munmap,
            Nr.MREMAP: self._mremap,
            Nr.LOAD: self._load,
            Nr.STORE: self._store,
            Nr.TOUCH: self._touch,
        }.get(Nr(request.nr))
        return handler(request) if handler else Said(-errno.ENOSYS)

    def _attach(self, _request: Request) -> Said:
        return Said(1234)

    def _touch(self, request: Request) -> Said:
        return Said((request.args[1] + PAGE_SIZE - 1) // PAGE_SIZE)

    def _brk(self, request: Request) -> Said:
        wanted = request.args[0]
        if self.heap <= wanted <= self.heap + self.heap_limit:
            self.brk = wanted
            size = wanted - self.heap
            self.heap_bytes = self.heap_bytes[:size].ljust(size, b"\0")
        return Said(self.brk)

    def _mmap(self, request: Request) -> Said:
        size = page_align(request.args[1])
        address = self.next_mapping
        self.next_mapping += size + PAGE_SIZE
        self.mapped[address] = bytearray(size)
        return Said(address)

    def _munmap(self, request: Request) -> Said:
        assert len(self.mapped.pop(request.args[0])) == request.args[1]
        return Said()

    def _mremap(self, request: Request) -> Said:
        if not self.mremaps:
            return Said(-errno.ENOSYS)
        old, old_size, new_size = request.args[:3]
        content = self.mapped.pop(old)
        assert len(content) == old_size
        moved = self._mmap(Request(Nr.MMAP, (0, new_size, 0, 0, 0, 0))).ret
        self.mapped[moved] = content[:new_size].ljust(new_size, b"\0")
        return Said(moved)

    def _find(self, address: int, length: int) -> tuple[bytearray, int]:
        if self.heap <= address and address + length <= self.brk:
            return self.heap_bytes, address - self.heap
        for start, content in self.mapped.items():
            if start <= address and address + length <= start + len(content):
                return content, address - start
        raise AssertionError(f"no memory at {address:#x} + {length:#x}")

    def _load(self, request: Request) -> Said:
        content, offset = self._find(*request.args[:2])
        length = request.args[1]
        return Said(length, bytes(content[offset : offset + length]))

    def _store(self, request: Request) -> Said:
        address, length = request.args[:2]
        assert len(request.data) == length
        content, offset = self._find(address, length)
        content[offset : offset + length] = request.data
        self.written.update(range(address // PAGE_SIZE, (address + length - 1) // PAGE_SIZE + 1))
        return Said(length)
