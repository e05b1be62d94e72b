"""The five calls of the shadow page table: raw arguments in, typed ones to the session.

Owns nothing. Knows the order of the checks that come before the session's own: ABI.md, "Shadow page table".
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.syscalls.answer import Answer, Call
from shared.uapi.shadowpt import USER_SHADOW_PT


def shadowpt_open(call: Call) -> Answer:
    """Open a table: args are the target's pid, a pointer and the layout; inline a user_shadow_pt.

    Returns it as updated, and read-only descriptors of the table and of the sequence page. Raises SysError(EPERM)
    unless the caller is the superuser, EFAULT without a whole structure, EINVAL for a layout other than 0, then as
    ShadowPt.open() does.
    """
    _check_superuser(call)
    if len(call.data) != USER_SHADOW_PT.size:
        raise SysError(errno.EFAULT)
    pid, _dest, layout = call.args[:3]
    if layout != 0:
        raise SysError(errno.EINVAL)
    start, end, entries = USER_SHADOW_PT.unpack(call.data)
    target = call.kernel.processes.get(pid)
    end, fds = call.kernel.shadowpt.open(call.process, target, start, end, entries)
    return Answer(0, USER_SHADOW_PT.pack(start, end, entries), fds=fds)


def shadowpt_close(call: Call) -> int:
    """Close the caller's table. Raises SysError(EINVAL) where none is open, EPERM for anyone but its opener."""
    call.kernel.shadowpt.close(call.process)
    return 0


def shadowpt_start(call: Call) -> int:
    """Fill the caller's table and follow every change. Raises as shadowpt_close() does."""
    call.kernel.shadowpt.start(call.process)
    return 0


def shadowpt_stop(call: Call) -> int:
    """Follow no longer. Raises as shadowpt_close() does."""
    call.kernel.shadowpt.stop(call.process)
    return 0


def shadowpt_page_contents(call: Call) -> Answer:
    """Read a frame that the target maps in the range: args are the pfn and a pointer; returns its 4,096 bytes inline.

    Raises SysError(EPERM) unless the caller is the superuser, then as ShadowPt.page_contents() does.
    """
    _check_superuser(call)
    return Answer(0, call.kernel.shadowpt.page_contents(call.args[0]))


def _check_superuser(call: Call) -> None:
    if not call.process.cred.superuser:
        raise SysError(errno.EPERM)
