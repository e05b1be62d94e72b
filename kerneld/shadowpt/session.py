"""The one shadow page table of a kernel: who opened it, whose pages it describes, and when it follows them.

    closed --open--> open --start--> tracking --stop--> open        close, or the opener's end: closed, from any state

Owns the session's state and its table. Knows an address space only through the notifier, VMAs and entries; knows no
request and no socket. Answers to ABI.md, "Shadow page table", and for the notifier to Linux v6.8 mm/mmu_notifier.c.

Invariants: processes are held and compared as objects, never by pid, for a pid may come again. The notifier is
registered with the target's mm exactly while tracking a target that lives, so that an untracked kernel pays nothing. A
notification is a range, never a delta: it marks pages dirty, and `flush()` looks at what they are by then. Nothing is
dirty between two requests.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

import numpy as np
import structlog

from kerneld.errors import KernelBug, SysError
from kerneld.shadowpt.describe import describe, describe_page
from kerneld.shadowpt.remap import check_entries
from kerneld.shadowpt.table import ShadowTable
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Pfn, Pid, Vaddr
from shared.uapi.shadowpt import MAX_SPT_RANGE, Spte, table_bytes

if TYPE_CHECKING:
    from kerneld.hw.ram import Ram
    from kerneld.mm.mm import MmStruct

_log = structlog.get_logger(__name__)

_MAX_DIRTY_RANGES = 8
"""With more ranges than this it is cheaper to look at everything from the first to the last."""


class Tracked(Protocol):
    """What this module needs of a process."""

    @property
    def pid(self) -> Pid: ...
    @property
    def ended(self) -> bool: ...
    @property
    def mm(self) -> MmStruct | None: ...


class _Session:
    """An open table: fixed from `open` to `close`, but for what is tracked."""

    __slots__ = ("end", "mm", "opener", "start", "table", "target")

    def __init__(self, opener: Tracked, target: Tracked, start: Vaddr, end: Vaddr) -> None:
        self.opener = opener
        self.target = target
        self.start = start
        self.end = end
        self.table = ShadowTable(start, end)
        self.mm: MmStruct | None = None
        """The mm that notifies us; None when stopped, and once the target has ended."""


class ShadowPt:
    """The shadow page table of one kernel, and the MmuNotifier that keeps it up to date."""

    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self._session: _Session | None = None
        self.dirty: list[tuple[Vaddr, Vaddr]] = []
        """Page-aligned ranges within the table's that have changed since the last flush(). Dispatch looks whether it is
        empty after each request, which is all that an untracked kernel pays."""

    def open(
        self, opener: Tracked, target: Tracked | None, start: Vaddr, end: Vaddr, entries: Vaddr
    ) -> tuple[Vaddr, tuple[int, int]]:
        """Open a table of `target`'s pages in [start, end) for `opener`, a superuser, who maps it at `entries`.

        All in bytes; any numbers. Returns the end as cut to MAX_SPT_RANGE, and read-only descriptors of the table and
        of the sequence page, which the caller closes. Raises SysError(EINVAL) unless start < end, both page-aligned,
        end within user space, and the target alive; then EBUSY where a table is open; then EINVAL when the opener's
        real memory at `entries` will not do; then ENOMEM when the host has no memory for the table.
        """
        if not start < end <= TASK_SIZE or (start | end) & ~PAGE_MASK or target is None or _find_mm(target) is None:
            raise SysError(errno.EINVAL)
        if self._session is not None:
            raise SysError(errno.EBUSY)
        end = min(end, start + MAX_SPT_RANGE)
        check_entries(opener.pid, entries, table_bytes(start, end))
        try:
            session = _Session(opener, target, start, end)
            try:
                fds = session.table.client_fds()
            except OSError:
                session.table.close()
                raise
        except OSError as error:
            _log.warning("shadowpt_open: no shared memory", pid=opener.pid, why=str(error))
            raise SysError(errno.ENOMEM) from error
        self._session = session
        _log.info("shadow table opened", opener=opener.pid, target=target.pid, start=hex(start), end=hex(end))
        return end, fds

    def close(self, caller: Tracked) -> None:
        """Empty the table and forget it. Raises SysError(EINVAL) where none is open, EPERM unless caller opened it."""
        self._close(self._get_session(caller))

    def start(self, caller: Tracked) -> None:
        """Make the table say what is so now, and follow every change. Raises as close() does."""
        session = self._get_session(caller)
        self.dirty.clear()
        table = session.table
        table.write_vaddrs()
        mm = _find_mm(session.target)
        self._follow(session, mm)
        if mm is None:
            table.clear_flags()
        else:
            table.update(0, *describe(mm, session.start, session.end))
        table.publish()

    def stop(self, caller: Tracked) -> None:
        """Follow no longer; the table stays as it is. Raises as close() does."""
        session = self._get_session(caller)
        self.flush()
        self._follow(session, None)

    def page_contents(self, pfn: Pfn) -> bytes:
        """Return the 4,096 bytes of a frame that the target maps in the range at this moment, tracking or not.

        `pfn` is any number. Raises SysError(EINVAL) where no table is open, or the frame is not mapped there.
        """
        session = self._session
        mm = None if session is None else _find_mm(session.target)
        if session is None or mm is None:
            raise SysError(errno.EINVAL)
        flags, pfns = describe(mm, session.start, session.end)
        if not np.any((pfns == np.uint64(pfn)) & ((flags & int(Spte.PTE_MAPPED)) != 0)):
            raise SysError(errno.EINVAL)
        return bytes(self._ram.page(pfn))

    def opener_gone(self, process: Tracked) -> None:
        """Do as close() does if it is the opener that has ended; called at the end of every process."""
        if self._session is not None and self._session.opener is process:
            self._close(self._session)

    def flush(self) -> None:
        """Bring the dirty ranges up to date in the table, as one change; called before each reply."""
        session = self._session
        if not self.dirty or session is None or session.mm is None:
            return
        table = session.table
        for start, end in self.dirty:
            index = (start - session.start) >> PAGE_SHIFT
            if end - start == PAGE_SIZE:
                table.update_one(index, *describe_page(session.mm, start))
            else:
                table.update(index, *describe(session.mm, start, end))
        self.dirty.clear()
        table.publish()

    def invalidate_range(self, start: Vaddr, end: Vaddr) -> None:
        """Mark what of [start, end), page-aligned, is in the table's range: VMAs or entries there have changed."""
        session = self._session
        if session is None or session.mm is None:
            return
        start, end = max(start, session.start), min(end, session.end)
        if start >= end:
            return
        dirty = self.dirty
        if dirty:
            last_start, last_end = dirty[-1]
            if start <= last_end and last_start <= end:
                dirty[-1] = (min(start, last_start), max(end, last_end))
                return
        dirty.append((start, end))
        if len(dirty) > _MAX_DIRTY_RANGES:
            dirty[:] = [(min(first for first, _ in dirty), max(last for _, last in dirty))]

    def release(self) -> None:
        """Take flags and frames from all entries: the target exits. The table stays open until its opener closes it."""
        session = self._session
        if session is None:
            return
        self._follow(session, None)
        self.dirty.clear()
        session.table.clear_flags()
        session.table.publish()

    def exec_mmap(self, new_mm: MmStruct) -> None:
        """Go on with the target's new address space: every page may differ."""
        session = self._session
        if session is None:
            return
        self._follow(session, new_mm)
        self.dirty[:] = [(session.start, session.end)]

    def check(self) -> None:
        """While tracking, compare the table with what VMAs and entries say. Raises KernelBug where they differ."""
        session = self._session
        if session is None or session.mm is None or self.dirty:
            return
        flags, pfns = describe(session.mm, session.start, session.end)
        if not session.table.is_equal(flags, pfns):
            raise KernelBug("the shadow table is not what VMAs and page table say")

    def describe_session(self) -> tuple[str, Pid | None, Pid | None]:
        """Return "closed", "open" or "tracking", and the pids of the opener and of the target, for people to read."""
        session = self._session
        if session is None:
            return "closed", None, None
        return "open" if session.mm is None else "tracking", session.opener.pid, session.target.pid

    def _get_session(self, caller: Tracked) -> _Session:
        """Return the open session. Raises SysError(EINVAL) where there is none, EPERM when another opened it."""
        if self._session is None:
            raise SysError(errno.EINVAL)
        if self._session.opener is not caller:
            raise SysError(errno.EPERM)
        return self._session

    def _follow(self, session: _Session, mm: MmStruct | None) -> None:
        """Be told by `mm` from now on, and by no other."""
        if session.mm is not mm and session.mm is not None and self in session.mm.notifiers:
            session.mm.notifiers.remove(self)
        if mm is not None and self not in mm.notifiers:
            mm.notifiers.append(self)
        session.mm = mm

    def _close(self, session: _Session) -> None:
        self._follow(session, None)
        self._session = None
        self.dirty.clear()
        session.table.empty()
        session.table.publish()
        session.table.close()
        _log.info("shadow table closed", opener=session.opener.pid, target=session.target.pid)


def _find_mm(process: Tracked) -> MmStruct | None:
    """Return the address space of a process that lives."""
    return None if process.ended else process.mm
