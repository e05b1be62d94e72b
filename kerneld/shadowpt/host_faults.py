"""The page faults of a real process, from the host's perf: the address of each fault, also without a page.

Owns the ring of a perf event for each thread of the process. A helper process that can be killed opens the events
(`kerneld.shadowpt.host_look`): the event of the first thread before the table is opened, those of other threads as soon
as they are seen.

Differs from Linux: a thread is followed from the first reading after its start. If there are more faults between two
readings than a ring holds, the last ones are missing.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Iterator

from kerneld.shadowpt.asking import Asking, Pending
from kerneld.shadowpt.host_look import Descriptor, Question, Want
from shared.uapi.page import Pid, Vaddr

_RECORD_SAMPLE = 9
_RECORD_HEADER = struct.Struct("<IHH")
_DATA_HEAD_WORD, _DATA_TAIL_WORD = 128, 129
_DATA_PAGES = 16


class _Thread:
    """The event of one thread and its ring."""

    def __init__(self, event: Descriptor | None) -> None:
        """Raises OSError if the host has no memory for the ring."""
        assert event is not None
        self._fd = event.take()
        try:
            self._ring = mmap.mmap(self._fd, (1 + _DATA_PAGES) * mmap.PAGESIZE, mmap.MAP_SHARED)
        except BaseException:
            os.close(self._fd)
            raise
        self._words = memoryview(self._ring).cast("Q")

    def read(self) -> Iterator[Vaddr]:
        """Yield the addresses that have come since the last reading."""
        head, tail = self._words[_DATA_HEAD_WORD], self._words[_DATA_TAIL_WORD]
        size = _DATA_PAGES * mmap.PAGESIZE
        while tail < head:
            # Records and the ring consist of whole words: the end of the ring cuts none of these two.
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
    """The faults of all threads of process `pid`. `directory_fd` is its /proc directory; the caller closes it."""

    def __init__(self, pid: Pid, directory_fd: int, asking: Asking) -> None:
        """Raises OSError if the host does not allow it, TimeoutError if it does not answer, and WouldWait."""
        self._pid = pid
        self._directory_fd = directory_fd
        self._asking = asking
        self._threads: dict[int, _Thread] = {pid: _Thread(asking.get(self._question(pid)).event)}
        self._asked: dict[int, Pending] = {}
        """By thread, the unfinished or failed opening of its event."""
        self._follow_new_threads()

    def read(self) -> Iterator[Vaddr]:
        """Yield the addresses that have come since the last reading, thread by thread."""
        self._follow_new_threads()
        for thread in self._threads.values():
            yield from thread.read()

    def close(self) -> None:
        """End it."""
        for pending in self._asked.values():
            if not pending.is_over:
                self._asking.reader.give_up(pending)
        self._asked.clear()
        for thread in self._threads.values():
            thread.close()
        self._threads.clear()

    def _question(self, tid: Pid) -> Question:
        return Question(self._pid, self._directory_fd, Want.FAULTS, tid, tid)

    def _follow_new_threads(self) -> None:
        """Take the events that have been opened, and ask for the events of new threads."""
        for tid in [tid for tid, pending in self._asked.items() if pending.is_over]:
            with contextlib.suppress(OSError):
                self._threads[tid] = _Thread(self._asked.pop(tid).result().event)
        with contextlib.suppress(OSError):
            fd = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory_fd)
            try:
                tids = {int(name) for name in os.listdir(fd)}
            finally:
                os.close(fd)
            for tid in tids - self._threads.keys() - self._asked.keys():
                self._asked[tid] = self._asking.reader.ask(self._question(tid))
