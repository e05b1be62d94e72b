"""A frame of the host, read through the page of the target that it is mapped at.

Owns nothing. The host's process runs on meanwhile: what is read counts only where the frame is still there afterwards.
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
"""How often a frame of the host is looked for anew that has moved while it was read."""


class _Target(Protocol):
    @property
    def pid(self) -> Pid: ...


class Session(Protocol):
    """What this module needs of an open table."""

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
    """Return a frame of the host through the page of its process that it is mapped at, if that holds until it is read.

    Raises SysError(EINVAL) where no page of the range maps it, SysError(EPERM) where the host lets nobody read.
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
    """Say that the target does not map a frame; of frame 0, why it may be shown as one."""
    if pfn == 0 and session.caveat:
        return session.caveat
    where = f"in {session.start:#x}-{session.end:#x}"
    return f"process {session.target.pid} maps no frame {pfn:#x} {where} now"
