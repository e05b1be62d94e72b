"""The page faults of a real process, as the host's perf tells them: the address of each, also of one that is no page's.

Owns a perf event and its ring for each thread of the process. Answers to perf_event_open(2) and Linux v6.8
kernel/events/core.c; the event counts where arch/x86/mm/fault.c:do_user_addr_fault() begins.

Differs from Linux: a thread is followed from the first look after its start, and of more faults between two looks than
a ring holds the last ones are missing.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from shared.uapi.page import Pid, Vaddr

_NR_PERF_EVENT_OPEN = 298
_TYPE_SOFTWARE, _COUNT_SW_PAGE_FAULTS = 1, 2
_SAMPLE_ADDR = 1 << 3
_EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 5, 1 << 6
_FLAG_FD_CLOEXEC = 1 << 3
_RECORD_SAMPLE = 9
_ATTR = struct.Struct("<IIQQQQQ88x")
"""struct perf_event_attr: type, size, config, sample_period, sample_type, read_format, flags; the rest is 0."""
_RECORD_HEADER = struct.Struct("<IHH")
_DATA_HEAD_WORD, _DATA_TAIL_WORD = 128, 129
_DATA_PAGES = 16

_libc = ctypes.CDLL(None, use_errno=True)


class _Thread:
    """The event of one thread and its ring."""

    def __init__(self, tid: int) -> None:
        flags = _EXCLUDE_KERNEL | _EXCLUDE_HV
        attr = _ATTR.pack(_TYPE_SOFTWARE, _ATTR.size, _COUNT_SW_PAGE_FAULTS, 1, _SAMPLE_ADDR, 0, flags)
        self._fd = _libc.syscall(_NR_PERF_EVENT_OPEN, attr, tid, -1, -1, _FLAG_FD_CLOEXEC)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        try:
            self._ring = mmap.mmap(self._fd, (1 + _DATA_PAGES) * mmap.PAGESIZE, mmap.MAP_SHARED)
        except BaseException:
            os.close(self._fd)
            raise
        self._words = memoryview(self._ring).cast("Q")

    def read(self) -> Iterator[Vaddr]:
        """Yield the addresses that have come since the last look."""
        head, tail = self._words[_DATA_HEAD_WORD], self._words[_DATA_TAIL_WORD]
        size = _DATA_PAGES * mmap.PAGESIZE
        while tail < head:
            # Records are of whole words, and so is the ring: none of these two is cut by its end.
            at = mmap.PAGESIZE + tail % size
            kind, _misc, length = _RECORD_HEADER.unpack_from(self._ring, at)
            if kind == _RECORD_SAMPLE:
                yield self._words[(mmap.PAGESIZE + (tail + _RECORD_HEADER.size) % size) // 8]
            tail += length
        self._words[_DATA_TAIL_WORD] = tail

    def close(self) -> None:
        """End the event."""
        self._words.release()
        self._ring.close()
        os.close(self._fd)


class HostFaults:
    """The faults of all threads of process `pid`."""

    def __init__(self, pid: Pid) -> None:
        """Begin. Raises OSError where the host does not allow it."""
        self._tasks = Path(f"/proc/{pid}/task")
        self._threads: dict[int, _Thread] = {pid: _Thread(pid)}
        self._follow_new_threads()

    def read(self) -> Iterator[Vaddr]:
        """Yield the addresses that have come since the last look, thread by thread."""
        self._follow_new_threads()
        for thread in self._threads.values():
            yield from thread.read()

    def close(self) -> None:
        """End it."""
        for thread in self._threads.values():
            thread.close()
        self._threads.clear()

    def _follow_new_threads(self) -> None:
        with contextlib.suppress(OSError):
            tids = {int(name) for name in os.listdir(self._tasks)}
            for tid in tids - self._threads.keys():
                with contextlib.suppress(OSError):
                    self._threads[tid] = _Thread(tid)
