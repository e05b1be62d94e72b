"""The page faults of one process, as fall 2025's first part shows them: who opened the table, of whom, until when.

    closed --open--> recording --close, or the opener's end--> closed

Owns that session and its table; `ShadowPt` holds one of these, and no table of its own is open beside it. A target is a
process of this kernel, which calls `Process.on_page_fault` at each fault, also one that ends in SIGSEGV; or a real one
of the host, whose faults perf tells: `refresh()` takes them over.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Protocol

import structlog

from kerneld.errors import SysError
from kerneld.shadowpt.asking import Asking
from kerneld.shadowpt.fault_table import FaultTable
from kerneld.shadowpt.host import HostTarget
from kerneld.shadowpt.host_faults import HostFaults
from kerneld.shadowpt.refusal import NoTarget
from kerneld.shadowpt.remap import check_entries
from shared.uapi.page import PAGE_MASK, Pid, Vaddr
from shared.uapi.shadowpt import MAX_SPT_RANGE

_log = structlog.get_logger(__name__)


class Faulting(Protocol):
    """What this module needs of a process."""

    on_page_fault: Callable[[Vaddr], None] | None

    @property
    def pid(self) -> Pid: ...
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
        """Whether there is a table now."""
        return self._session is not None

    @property
    def opener(self) -> Faulting | None:
        """Who opened it."""
        return None if self._session is None else self._session.opener

    @property
    def target(self) -> Faulting | HostTarget | None:
        """Whose faults it has."""
        return None if self._session is None else self._session.target

    def open(
        self, opener: Faulting, target: Faulting | HostTarget | NoTarget, size_bytes: int, dest: Vaddr, busy: str
    ) -> tuple[int, int]:
        """Open a table of `size_bytes` for `opener`, a superuser, who maps it at `dest`; any numbers.

        `busy` says who has a table open, "" where nobody has. A HostTarget is this class's own once open has succeeded.
        Returns read-only descriptors of the table and of the sequence page, which the caller closes.
        Raises SysError(EINVAL) unless the size is of whole pages, at least one, at most MAX_SPT_RANGE, and the target
        alive; then EBUSY; then EINVAL when the opener's real memory at `dest` will not do; then ENOMEM, or EPERM where
        the host lets this daemon not hear of the faults of a real target, EINVAL where it does not answer. Raises
        WouldWait before it changes anything.
        """
        if size_bytes & ~PAGE_MASK or not 0 < size_bytes <= MAX_SPT_RANGE:
            raise SysError(errno.EINVAL, f"size {size_bytes:#x} is not of 1 to {MAX_SPT_RANGE >> 12} whole pages")
        if isinstance(target, NoTarget):
            raise SysError(errno.EINVAL, target.why)
        if not (target.is_alive() if isinstance(target, HostTarget) else not target.ended):
            raise SysError(errno.EINVAL, f"process {target.pid} has ended")
        if busy:
            raise SysError(errno.EBUSY, busy)
        check_entries(opener.pid, dest, size_bytes, self._asking)
        try:
            session = _Session(opener, target, size_bytes)
            try:
                fds = session.table.client_fds()
            except OSError:
                session.close()
                raise
        except OSError as error:
            raise SysError(errno.ENOMEM, f"no shared memory for the table: {error}") from error
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
        """Do as close() does if it is the opener that has ended."""
        if self._session is not None and self._session.opener is process:
            self._close(self._session)

    def refresh(self) -> None:
        """Take over what faults of a real target the host has told since."""
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
