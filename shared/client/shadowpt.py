"""The shadow page table in the opener's memory. A Linux kernel would call remap_pfn_range; here the client maps the
table.

Owns the mapping of the table over `entries` and the mapping of the sequence page, from open to close. Reads the table;
only the kernel writes it. Invariant: while a table is open, `entries` is the kernel's memory, read-only, or without
rights if it had none before. After close there is fresh anonymous memory in its place, with the protection that it had
before, also if the program has moved the table.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass, replace

from shared.client import realmem
from shared.client.calls import SystemCalls
from shared.client.errors import KerneldError
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, page_align
from shared.uapi.shadowpt import OPEN_HOST, SHADOW_PTE, USER_SHADOW_PT, Layout
from shared.uapi.syscalls import Nr
from shared.wire import U64_MASK

_SNAPSHOT_TRIES = 1000


@dataclass(frozen=True, slots=True)
class OpenTable:
    """A table in this process: its range, the address of its entries, and the kind of memory to restore there."""

    start: int
    end: int
    entries: int
    protection: Prot
    sharing: Map
    sequence_page: int
    file: os.stat_result | None = None
    layout: Layout = Layout.F24

    @property
    def entries_bytes(self) -> int:
        """The size of the part that the kernel writes, in bytes."""
        is_of_faults = self.layout is Layout.F25_PART1
        return self.end if is_of_faults else ((self.end - self.start) >> PAGE_SHIFT) * SHADOW_PTE.size

    @property
    def mapped_bytes(self) -> int:
        """The size of the mapping in bytes: whole pages."""
        return page_align(self.entries_bytes)


class ShadowTable:
    """The one table that this process may have open."""

    def __init__(self, calls: SystemCalls) -> None:
        self._calls = calls
        self._open: OpenTable | None = None

    @property
    def table(self) -> OpenTable | None:
        """The open table in this process; None if no table is open."""
        return self._open

    @property
    def sequence(self) -> int:
        """The sequence number now: odd while the kernel changes the table. Raises KerneldError when none is open."""
        return realmem.read_u64(self._get_open().sequence_page)

    def open(
        self, target: int, start: int, end: int, entries: int, layout: Layout = Layout.F24, host: bool = False
    ) -> tuple[int, int]:
        """Open the table of [start, end) of process `target` at the real address `entries`; return the range it got.

        With `host` the target may also be a real process that is not attached.

        Raises OSError(EPERM, EINVAL, EBUSY). Source: docs/abi.md, shadowpt_open.
        """
        before = realmem.find_mapping(entries)
        packed = USER_SHADOW_PT.pack(start & U64_MASK, end & U64_MASK, entries & U64_MASK)
        dest = ctypes.create_string_buffer(packed, len(packed))
        pointer = ctypes.addressof(dest)
        reply, fds = self._calls.call_for_fds(
            Nr.SHADOWPT_OPEN, target, pointer, layout, OPEN_HOST if host else 0, data=packed
        )
        try:
            if len(fds) != 2 or len(reply.data) != USER_SHADOW_PT.size or before is None:
                raise KerneldError("kerneld opened a shadow page table without the table")
            start, end, entries = USER_SHADOW_PT.unpack(reply.data)
            self._map(OpenTable(start, end, entries, before.protection, before.sharing, 0, layout=layout), *fds)
        except BaseException:
            self._calls.syscall(Nr.SHADOWPT_CLOSE)
            self.restore()
            raise
        finally:
            for fd in fds:
                os.close(fd)
        return start, end

    def close(self) -> None:
        """Close the table. `entries` becomes fresh memory again. Raises OSError(EPERM, EINVAL)."""
        self._calls.call(Nr.SHADOWPT_CLOSE)
        self.restore()

    def restore(self) -> None:
        """Map fresh memory at every place of the table, also if kerneld is gone. Without an open table do nothing."""
        table = self._open
        if table is None:
            return
        self._open = None
        assert table.file is not None
        for mapping in realmem.mappings_of(table.file):
            # A writable mapping cannot come from the read-only descriptor.
            if not mapping.protection & Prot.WRITE:
                size = mapping.end - mapping.start
                realmem.map_anonymous_over(mapping.start, size, table.protection, table.sharing)
        realmem.unmap(table.sequence_page, PAGE_SIZE)

    def forget(self) -> None:
        """Give up the table without touching memory. A forked child has the mapping, but is not the opener."""
        self._open = None

    def snapshot(self) -> bytes:
        """Return the entries as they were at one moment: struct shadow_pte one after the other.

        Raises TimeoutError when the kernel keeps changing them, KerneldError when no table is open, OSError(EFAULT)
        where the memory may not be read.
        """
        table = self._get_open()
        if table.protection is Prot.NONE:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        for _try in range(_SNAPSHOT_TRIES):
            before = realmem.read_u64(table.sequence_page)
            if before % 2 == 0:
                entries = realmem.read(table.entries, table.entries_bytes)
                if realmem.read_u64(table.sequence_page) == before:
                    return entries
            # The kernel may need this processor to finish its change of the table.
            os.sched_yield()
        raise TimeoutError("the shadow page table did not stand still long enough to copy it")

    def _map(self, table: OpenTable, table_fd: int, sequence_fd: int) -> None:
        sequence_page = realmem.map_file(PAGE_SIZE, sequence_fd)
        try:
            realmem.map_file_over(table.entries, table.mapped_bytes, table_fd)
            if table.protection is Prot.NONE:
                realmem.protect(table.entries, table.mapped_bytes, Prot.NONE)
        except BaseException:
            realmem.unmap(sequence_page, PAGE_SIZE)
            raise
        self._open = replace(table, sequence_page=sequence_page, file=os.fstat(table_fd))

    def _get_open(self) -> OpenTable:
        if self._open is None:
            raise KerneldError("no shadow page table is open here")
        return self._open
