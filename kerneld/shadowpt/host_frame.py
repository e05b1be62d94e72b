"""Reads a frame of the host through a page of the target that maps it.

Owns nothing. The target runs meanwhile. So the bytes count only if the page still maps the frame afterwards.
"""

from __future__ import annotations

import errno
from typing import Protocol

import numpy as np

from kerneld.errors import SysError
from kerneld.shadowpt.host import HostTarget
from kerneld.shadowpt.layout import Flags
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pfn, Pid, Vaddr

_HOST_READS = 8
"""The number of attempts for a frame that moves while it is read."""


class _Target(Protocol):
    @property
    def pid(self) -> Pid: ...


class Session(Protocol):
    """The part of an open table that this module needs."""

    @property
    def start(self) -> Vaddr: ...
    @property
    def end(self) -> Vaddr: ...
    @property
    def layout(self) -> Flags: ...
    @property
    def target(self) -> _Target: ...
    @property
    def caveat(self) -> str: ...


def read_host_frame(session: Session, host: HostTarget, pfn: Pfn) -> bytes:
    """Return the contents of a frame of the host, read through a page of its process that maps it.

    Raises SysError(EINVAL) if no page of the range maps it, and SysError(EPERM) if the host does not allow the reading.
    """
    try:
        return _find_host_frame(session, host, pfn)
    except TimeoutError:
        raise SysError(errno.EINVAL, f"process {host.pid} cannot be looked into: the host does not answer") from None


def _find_host_frame(session: Session, host: HostTarget, pfn: Pfn) -> bytes:
    for _attempt in range(_HOST_READS):
        flags, pfns = host.describe(session.start, session.end, session.layout)
        at = np.flatnonzero((pfns == np.uint64(pfn)) & ((flags & session.layout.mapped) != 0))
        if not len(at) or pfn == 0:
            raise SysError(errno.EINVAL, why_not_mapped(session, pfn))
        vaddr = session.start + (int(at[0]) << PAGE_SHIFT)
        try:
            page = host.read_page(vaddr)
        except PermissionError:
            raise SysError(errno.EPERM, f"the host lets kerneld not read process {host.pid}'s memory") from None
        except TimeoutError:
            raise
        except OSError:
            continue
        _flags, again = host.describe(vaddr, vaddr + PAGE_SIZE, session.layout)
        if int(again[0]) == pfn:
            return page
    raise SysError(errno.EINVAL, f"page {vaddr:#x} does not keep frame {pfn:#x} for long enough to read it")


def why_not_mapped(session: Session, pfn: Pfn) -> str:
    """Return words for a frame that the target does not map; for frame 0 also why the table may show it."""
    if pfn == 0 and session.caveat:
        return session.caveat
    where = f"in {session.start:#x}-{session.end:#x}"
    return f"process {session.target.pid} maps no frame {pfn:#x} {where} now"
