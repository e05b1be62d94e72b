"""The session of a table of page faults, as in the first part of fall 2025: opener, target, and state.

    closed --open--> recording --close, or the opener's end--> closed

Owns the session and its table. `ShadowPt` has one of these; only one of the two kinds of table is open at a time. The
target may be a process of this kernel, which calls `Process.on_page_fault` at each fault, also if it ends in SIGSEGV.
It may be a real process of the host. Then the host's perf reports the faults, and `refresh()` stores them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

import structlog

from kerneld.errors import SysError
from kerneld.mm.space.mm import MmStruct
from kerneld.shadowpt.asking import Asking
from kerneld.shadowpt.fault_table import FaultTable
from kerneld.shadowpt.host import HostTarget
from kerneld.shadowpt.host_faults import HostFaults
from kerneld.shadowpt.refusal import NoTarget
from kerneld.shadowpt.remap import check_opener
from shared.uapi.page import PAGE_MASK, Pid, Vaddr
from shared.uapi.shadowpt import MAX_SPT_RANGE

_log = structlog.get_logger(__name__)


class Faulting(Protocol):
    """The part of a process that this module needs."""

    on_page_fault: Callable[[Vaddr], None] | None

    @property
    def pid(self) -> Pid: ...
    @property
    def mm(self) -> MmStruct | None: ...
    @property
    def comm(self) -> str: ...
    @property
    def ended(self) -> bool: ...


class _Session:
    """An open table."""

    __slots__ = ("host_faults", "opener", "size_bytes", "table", "target")

    def __init__(self, opener: Faulting, target: Faulting | HostTarget, size_bytes: int) -> None:
        self.opener = opener
        self.target = target
        self.size_bytes = size_bytes
        self.host_faults = _follow(target) if isinstance(target, HostTarget) else None
        try:
            self.table = FaultTable(size_bytes)
        except BaseException:
            if self.host_faults is not None:
                self.host_faults.close()
            raise

    def close(self) -> None:
        if self.host_faults is not None:
            self.host_faults.close()
        self.table.close()


def _follow(target: HostTarget) -> HostFaults:
    try:
        return target.follow_faults()
    except TimeoutError as error:
        raise SysError(errno.EINVAL, f"the host does not answer when asked for process {target.pid}") from error
    except OSError as error:
        why = f"the host does not tell kerneld of process {target.pid}'s page faults: perf_event_open: {error.strerror}"
        raise SysError(errno.EPERM, why) from error


class FaultLog:
    """The one table of page faults of a kernel."""

    def __init__(self, asking: Asking) -> None:
        self._asking = asking
        self._session: _Session | None = None

    @property
    def is_open(self) -> bool:
        """Whether a table is open."""
        return self._session is not None

    @property
    def opener(self) -> Faulting | None:
        """The process that opened the table, or None."""
        return None if self._session is None else self._session.opener

    @property
    def target(self) -> Faulting | HostTarget | None:
        """The process whose faults the table has, or None."""
        return None if self._session is None else self._session.target

    def open(
        self, opener: Faulting, target: Faulting | HostTarget | NoTarget, size_bytes: int, dest: Vaddr, busy: str
    ) -> tuple[int, int]:
        """Open a table of `size_bytes` for `opener`, a superuser, which maps it at `dest`. Any numbers are allowed.

        `busy` names the process that has a table open; "" if there is none. After success this class owns a HostTarget.
        Returns read-only descriptors of the table and of the sequence page, which the caller closes.

        Raises SysError in this order: EINVAL unless the size is at least one and at most MAX_SPT_RANGE bytes of whole
        pages, and the target is alive; EBUSY; EINVAL when the opener's real memory at `dest` is not suitable; ENOMEM.
        For a real target also EPERM if the host does not report its faults to this daemon, and EINVAL if the host does
        not answer. Raises WouldWait before it changes anything.
        """
        if size_bytes & ~PAGE_MASK or not 0 < size_bytes <= MAX_SPT_RANGE:
            raise SysError(errno.EINVAL, f"size {size_bytes:#x} is not of 1 to {MAX_SPT_RANGE >> 12} whole pages")
        if isinstance(target, NoTarget):
            raise SysError(errno.EINVAL, target.why)
        if not (target.is_alive() if isinstance(target, HostTarget) else not target.ended):
            raise SysError(errno.EINVAL, f"process {target.pid} has ended")
        if busy:
            raise SysError(errno.EBUSY, busy)
        check_opener(opener, dest, size_bytes, self._asking)
        try:
            session = _Session(opener, target, size_bytes)
            try:
                fds = session.table.client_fds()
            except OSError:
                session.close()
                raise
        except OSError as error:
            raise SysError(errno.ENOMEM, f"no shared memory for the table: {error.strerror or error}") from error
        self._session = session
        if not isinstance(target, HostTarget):
            target.on_page_fault = session.table.record
        _log.info("fault table opened", opener=opener.pid, target=target.pid, size=size_bytes)
        return fds

    def close(self, caller: Faulting) -> None:
        """Empty the table and forget it. Raises SysError(EPERM) unless the caller opened it; it must be open."""
        session = self._session
        assert session is not None
        if session.opener is not caller:
            opener = session.opener
            raise SysError(errno.EPERM, f"only who opened the table may: process {opener.pid} ({opener.comm})")
        self._close(session)

    def opener_gone(self, process: object) -> None:
        """Close the table if its opener has ended."""
        if self._session is not None and self._session.opener is process:
            self._close(self._session)

    def refresh(self) -> None:
        """Store the faults of a real target that the host has reported since the last call."""
        session = self._session
        if session is None or session.host_faults is None:
            return
        for vaddr in session.host_faults.read():
            session.table.record(vaddr)

    def _close(self, session: _Session) -> None:
        self._session = None
        if isinstance(session.target, HostTarget):
            session.target.close()
        else:
            session.target.on_page_fault = None
        session.table.empty()
        session.table.publish()
        session.close()
        _log.info("fault table closed", opener=session.opener.pid, target=session.target.pid)
