"""The session of the one shadow page table of a kernel: its opener, its target, and its state.

    closed --open--> open --start--> tracking --stop--> open        close, or the opener's end: closed, from any state

Owns the session's state and its table. Knows an address space only by the notifier, VMAs and entries. Knows no request
and no socket. Answers to docs/abi.md, "Shadow page table", and for the notifier to Linux v6.8
mm/mmu_notifier.c.

The target may be a process of this kernel, whose address space sends notifications. It may be a real process of the
host (`HostTarget`), which sends none: the server calls `look_again()` as long as `followed_host` is set. The host's
answers may take long: see `asking`.

Invariants: processes are held and compared as objects, never by pid, because a pid may be used again. The notifier is
registered with the target's mm exactly while a living target is tracked, so that an untracked kernel pays nothing. A
notification is a range, never a list of changes: it marks pages as dirty, and `flush()` computes their current state.
Between two requests nothing is dirty.
"""

from __future__ import annotations

import contextlib
import errno
import functools
from typing import TYPE_CHECKING

import numpy as np
import structlog

from kerneld.errors import KernelBug, SysError
from kerneld.shadowpt.asking import Asking, DirectReader, Pending
from kerneld.shadowpt.describe import describe, describe_page
from kerneld.shadowpt.fault_log import Faulting, FaultLog
from kerneld.shadowpt.host import HostTarget
from kerneld.shadowpt.host_frame import read_host_frame, why_not_mapped
from kerneld.shadowpt.host_look import Look
from kerneld.shadowpt.layout import F24, Flags
from kerneld.shadowpt.refusal import NO_PFNS, NoTarget, why_no_range
from kerneld.shadowpt.remap import check_opener
from kerneld.shadowpt.table import ShadowTable
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, TASK_SIZE, Pfn, Pid, Vaddr
from shared.uapi.shadowpt import MAX_SPT_RANGE, table_bytes

if TYPE_CHECKING:
    from kerneld.hw.ram import Ram
    from kerneld.mm.space.mm import MmStruct

_log = structlog.get_logger(__name__)

_NONE_OPEN = "no table is open"
_MAX_DIRTY_RANGES = 8
"""With more ranges than this it is cheaper to recompute everything from the first to the last range."""


class _Session:
    """An open table. It does not change from `open` to `close`, except for the tracked mm."""

    __slots__ = ("end", "layout", "mm", "opener", "start", "table", "target")

    def __init__(
        self, opener: Faulting, target: Faulting | HostTarget, start: Vaddr, end: Vaddr, layout: Flags
    ) -> None:
        self.opener = opener
        self.target = target
        self.start = start
        self.end = end
        self.layout = layout
        self.table = ShadowTable(start, end, layout.mapped)
        self.mm: MmStruct | None = None
        """The mm that sends notifications; None when stopped, and after the end of the target."""

    @property
    def caveat(self) -> str:
        """What the table cannot show, in words; "" if it shows everything."""
        return NO_PFNS if isinstance(self.target, HostTarget) and self.target.hides_pfns else ""


class ShadowPt:
    """The shadow page table of one kernel, and the MmuNotifier that keeps it up to date."""

    def __init__(self, ram: Ram) -> None:
        self._ram = ram
        self._session: _Session | None = None
        """The table of page faults, which may be open in place of this one."""
        self.dirty: list[tuple[Vaddr, Vaddr]] = []
        """Page-aligned ranges of the table that have changed since the last flush(). Dispatch checks after each request
        whether it is empty; an untracked kernel pays only for this check."""
        self.asking = Asking(DirectReader())
        """Asks the host. A daemon sets another reader, so that other clients do not wait for the host's answers."""
        self.faults = FaultLog(self.asking)
        self._is_late = False
        """Whether the host has not answered the last question."""
        self.followed_host: HostTarget | None = None
        """The real process that a started table describes; None if there is none."""

    def open(
        self,
        opener: Faulting,
        target: Faulting | HostTarget | NoTarget,
        start: Vaddr,
        end: Vaddr,
        entries: Vaddr,
        layout: Flags = F24,
    ) -> tuple[Vaddr, tuple[int, int]]:
        """Open a table of `target`'s pages in [start, end) for `opener`, a superuser, which maps it at `entries`.

        All numbers are in bytes, and any values are allowed. After success this class owns a HostTarget. Returns the
        end, cut to MAX_SPT_RANGE, and read-only descriptors of the table and of the sequence page, which the caller
        closes.

        Raises SysError in this order: EINVAL unless start < end, both page-aligned, the end after the cut within user
        space, and the target alive; EBUSY if a table is open; EINVAL if the opener's real memory at `entries` is not
        suitable; ENOMEM if the host has no memory for the table.
        """
        cut = min(end, start + MAX_SPT_RANGE)
        if not start < end or (start | end) & ~PAGE_MASK or cut > TASK_SIZE:
            raise SysError(errno.EINVAL, why_no_range(start, end))
        if isinstance(target, NoTarget):
            raise SysError(errno.EINVAL, target.why)
        if not _is_alive(target):
            raise SysError(errno.EINVAL, f"process {target.pid} has ended")
        busy = self.why_busy()
        if busy:
            raise SysError(errno.EBUSY, busy)
        end = cut
        check_opener(opener, entries, table_bytes(start, end), self.asking)
        try:
            session = _Session(opener, target, start, end, layout)
            try:
                fds = session.table.client_fds()
            except OSError:
                session.table.close()
                raise
        except OSError as error:
            raise SysError(errno.ENOMEM, f"no shared memory for the table: {error.strerror or error}") from error
        self._session = session
        _log.info("shadow table opened", opener=opener.pid, target=target.pid, start=hex(start), end=hex(end))
        return end, fds

    def why_busy(self) -> str:
        """Return words for the process that has a table of either kind open; "" if no table is open."""
        holder = self.faults if self.faults.is_open else self._session
        if holder is None or holder.opener is None or holder.target is None:
            return ""
        return f"{_in_words(holder.opener)} has a table open, of process {holder.target.pid}; there is one at a time"

    def close(self, caller: Faulting) -> None:
        """Empty the table and close it. Raises SysError(EINVAL) if none is open, EPERM unless `caller` opened it."""
        if self.faults.is_open:
            self.faults.close(caller)
            self.followed_host = None
            return
        self._close(self._get_session(caller))

    def start(self, caller: Faulting) -> None:
        """Fill the table with the current state, and follow every change. Raises as close() does."""
        session = self._get_session(caller)
        self.dirty.clear()
        table = session.table
        table.write_vaddrs()
        self._is_late = False
        if isinstance(session.target, HostTarget):
            self.followed_host = session.target
            self.refresh()
            return
        mm = _find_mm(session.target)
        self._follow(session, mm)
        if mm is None:
            table.clear_flags()
        else:
            table.update(0, *describe(mm, session.start, session.end, session.layout))
        table.publish()

    def stop(self, caller: Faulting) -> None:
        """Stop following changes; the table stays as it is. Raises as close() does."""
        session = self._get_session(caller)
        self.flush()
        self.refresh()
        self._follow(session, None)
        self.followed_host = None

    def refresh(self) -> None:
        """Read the followed process of the host again, if there is one, and write the changes.

        If the host does not answer, the table stays as it is. Raises WouldWait.
        """
        session, host = self._session, self.followed_host
        if session is None or host is None:
            self.faults.refresh()
            return
        with contextlib.suppress(TimeoutError):
            session.table.update(0, *host.describe(session.start, session.end, session.layout))
        session.table.publish()

    def look_again(self) -> Pending | None:
        """Start reading the followed process of the host again. The changes are written when the answer comes.

        Returns the Pending answer; None if no process is followed.
        """
        session, host = self._session, self.followed_host
        if session is None or host is None:
            self.faults.refresh()
            return None
        pending = self.asking.reader.ask(host.question(session.start, session.end, session.layout))
        if pending.is_over:
            self.take_look(session, host, pending)
        else:
            pending.on_over = functools.partial(self.take_look, session, host, pending)
        return pending

    def take_look(self, session: _Session, host: HostTarget, pending: Pending) -> None:
        """Write an answer of the host, if the session still needs it."""
        if self._session is not session or self.followed_host is not host:
            return
        try:
            found = pending.result()
        except TimeoutError:
            self._is_late = True
            return
        except OSError:
            found = Look([], b"", b"")
        self._is_late = False
        session.table.update(0, *host.described(found, session.start, session.end, session.layout))
        session.table.publish()

    def refresh_for(self, caller: Faulting) -> Pending | None:
        """Do the same as look_again() if `caller` is the opener: after each of its calls, before the reply.

        If the host has not answered the last question, the opener does not wait again until it has.
        """
        holder = self.faults if self.faults.is_open else self._session
        if holder is None or holder.opener is not caller or self._is_late:
            return None
        return self.look_again()

    def host_exited(self) -> None:
        """Handle the end of the followed process of the host: its entries lose flags and frames for good."""
        self.faults.refresh()
        self.followed_host = None
        self.release()

    def page_contents(self, pfn: Pfn) -> bytes:
        """Return the 4,096 bytes of a frame that the target maps in the range at this moment, tracking or not.

        `pfn` may be any number. Raises SysError(EINVAL) if no table is open, or the frame is not mapped there.
        """
        session = self._session
        if session is None:
            raise SysError(errno.EINVAL, _NONE_OPEN)
        if isinstance(session.target, HostTarget):
            return read_host_frame(session, session.target, pfn)
        mm = _find_mm(session.target)
        if mm is None:
            raise SysError(errno.EINVAL, f"process {session.target.pid} has ended")
        flags, pfns = describe(mm, session.start, session.end, session.layout)
        if not np.any((pfns == np.uint64(pfn)) & ((flags & session.layout.mapped) != 0)):
            raise SysError(errno.EINVAL, why_not_mapped(session, pfn))
        return bytes(self._ram.page(pfn))

    def opener_gone(self, process: Faulting) -> None:
        """Close the table if its opener has ended. Called at the end of every process."""
        if self._session is not None and self._session.opener is process:
            self._close(self._session)
        elif self.faults.opener is process:
            self.faults.opener_gone(process)
            self.followed_host = None

    def flush(self) -> None:
        """Bring the dirty ranges up to date in the table, as one change; called before each reply."""
        session = self._session
        if not self.dirty or session is None or session.mm is None:
            return
        table = session.table
        for start, end in self.dirty:
            index = (start - session.start) >> PAGE_SHIFT
            if end - start == PAGE_SIZE:
                flags, pfn = describe_page(session.mm, start, session.layout)
                table.update_one(index, flags, pfn)
            else:
                table.update(index, *describe(session.mm, start, end, session.layout))
        self.dirty.clear()
        table.publish()

    def invalidate_range(self, start: Vaddr, end: Vaddr) -> None:
        """Mark the part of [start, end), page-aligned, in the table's range as dirty: VMAs or entries have changed
        there."""
        session = self._session
        if session is None or session.mm is None:
            return
        low, high = session.start, session.end
        start, end = start if start > low else low, end if end < high else high
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
        """Clear flags and frames of all entries, because the target exits.

        The table stays open until the opener's close.
        """
        session = self._session
        if session is None:
            return
        self._follow(session, None)
        self.dirty.clear()
        session.table.clear_flags()
        session.table.publish()

    def exec_mmap(self, new_mm: MmStruct) -> None:
        """Switch to the target's new address space: every page may be different."""
        session = self._session
        if session is None:
            return
        self._follow(session, new_mm)
        self.dirty[:] = [(session.start, session.end)]

    def check(self) -> None:
        """While tracking, compare the table with VMAs and entries. Raises KernelBug if they differ."""
        session = self._session
        if session is None or session.mm is None or self.dirty:
            return
        flags, pfns = describe(session.mm, session.start, session.end, session.layout)
        if not session.table.is_equal(flags, pfns):
            raise KernelBug("the shadow table is not what VMAs and page table say")

    @property
    def caveat(self) -> str:
        """What the open table cannot show, in words for its opener; "" if it shows everything."""
        return "" if self._session is None else self._session.caveat

    def describe_session(self) -> tuple[str, Pid | None, Pid | None]:
        """Return "closed", "open" or "tracking", and the pids of the opener and of the target, for people to read."""
        session = self._session
        if session is None:
            opener, target = self.faults.opener, self.faults.target
            return ("closed", None, None) if opener is None or target is None else ("tracking", opener.pid, target.pid)
        is_tracking = session.mm is not None or self.followed_host is not None
        return "tracking" if is_tracking else "open", session.opener.pid, session.target.pid

    def _get_session(self, caller: Faulting) -> _Session:
        """Return the open session. Raises SysError(EINVAL) if there is none, EPERM if another process opened it."""
        if self._session is None:
            raise SysError(errno.EINVAL, _NONE_OPEN)
        if self._session.opener is not caller:
            raise SysError(errno.EPERM, f"only who opened the table may: {_in_words(self._session.opener)}")
        return self._session

    def _follow(self, session: _Session, mm: MmStruct | None) -> None:
        """Register the notifier with `mm`, and with no other mm."""
        if session.mm is not mm and session.mm is not None and self in session.mm.notifiers:
            session.mm.notifiers.remove(self)
        if mm is not None and self not in mm.notifiers:
            mm.notifiers.append(self)
        session.mm = mm

    def _close(self, session: _Session) -> None:
        self._follow(session, None)
        self._session = None
        self.followed_host = None
        self.dirty.clear()
        session.table.empty()
        session.table.publish()
        session.table.close()
        if isinstance(session.target, HostTarget):
            session.target.close()
        _log.info("shadow table closed", opener=session.opener.pid, target=session.target.pid)


def _is_alive(target: Faulting | HostTarget) -> bool:
    return target.is_alive() if isinstance(target, HostTarget) else _find_mm(target) is not None


def _in_words(process: Faulting) -> str:
    return f"process {process.pid} ({process.comm})"


def _find_mm(process: Faulting) -> MmStruct | None:
    """Return the address space of a living process; None after its end."""
    return None if process.ended else process.mm
