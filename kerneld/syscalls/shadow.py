"""The five calls of the shadow page table: turn raw arguments into typed calls of the session.

Owns nothing. Knows the order of the checks before those of the session: docs/abi.md, "Shadow page table".
"""

from __future__ import annotations

import errno
import os

from kerneld.errors import SysError
from kerneld.shadowpt.host import HostTarget, find_host_target
from kerneld.shadowpt.layout import FLAGS
from kerneld.shadowpt.refusal import NoTarget, why_no_target
from kerneld.syscalls.answer import Answer, Call
from kerneld.task.real_process import find_effective_ids
from kerneld.task.task import Process
from shared.uapi.page import PAGE_MASK, Pid
from shared.uapi.shadowpt import OPEN_HOST, USER_SHADOW_PT, Layout


def shadowpt_open(call: Call) -> Answer:
    """Open a table: args are the target's pid, a pointer, the layout and OPEN_ flags; inline a user_shadow_pt.

    Returns the updated structure, and read-only descriptors of the table and of the sequence page. Raises
    SysError(EPERM) unless the caller is the superuser, and the effective user of its real process is too; EFAULT
    without a whole structure; EINVAL for an unknown layout; then as ShadowPt.open() does. Layout.F23 rounds unaligned
    bounds down to their pages. Layout.F25_PART1 opens a FaultLog.
    """
    _check_superuser(call)
    if len(call.data) != USER_SHADOW_PT.size:
        raise SysError(errno.EFAULT, f"struct user_shadow_pt has {USER_SHADOW_PT.size} bytes: {len(call.data)} came")
    layout = call.args[2]
    if layout == Layout.F25_PART1:
        return _open_faults(call)
    if layout not in FLAGS:
        raise SysError(errno.EINVAL, f"there is no layout {layout}: {', '.join(str(int(known)) for known in Layout)}")
    start, end, entries = USER_SHADOW_PT.unpack(call.data)
    if layout == Layout.F23:
        start, end = start & PAGE_MASK, end & PAGE_MASK
    target = _find_target(call, call.int_arg(0))
    try:
        end, fds = call.kernel.shadowpt.open(call.process, target, start, end, entries, FLAGS[Layout(layout)])
    except BaseException:
        if isinstance(target, HostTarget):
            target.close()
        raise
    call.process.explanation = call.kernel.shadowpt.caveat
    return Answer(0, USER_SHADOW_PT.pack(start, end, entries), fds=fds)


def _open_faults(call: Call) -> Answer:
    """Open a table of page faults. The structure has 0, the size in bytes, and the address of the table.

    Raises SysError(EINVAL) unless the first word is 0, then as FaultLog.open() does.
    """
    zero, size_bytes, dest = USER_SHADOW_PT.unpack(call.data)
    if zero:
        raise SysError(errno.EINVAL, f"a table of page faults begins at 0, not at {zero:#x}")
    shadowpt = call.kernel.shadowpt
    target = _find_target(call, call.int_arg(0))
    try:
        fds = shadowpt.faults.open(call.process, target, size_bytes, dest, shadowpt.why_busy())
    except BaseException:
        if isinstance(target, HostTarget):
            target.close()
        raise
    if isinstance(target, HostTarget):
        shadowpt.followed_host = target
    call.process.explanation = ""
    return Answer(0, call.data, fds=fds)


def _find_target(call: Call, pid: Pid) -> Process | HostTarget | NoTarget:
    """Return the target: a process of this kernel; else a real process, if the options allow it and the caller asks."""
    process = call.kernel.find_process(pid)
    if process is not None and not process.memory_is_host:
        return process
    is_asked = bool(call.args[3] & OPEN_HOST)
    may_be_real = call.kernel.config.host_targets.allows(asked=is_asked)
    found = _find_host_target(call, pid) if may_be_real else None
    return found or process or why_no_target(pid, are_real_ones_allowed=may_be_real, is_asked=is_asked)


def _find_host_target(call: Call, pid: Pid) -> HostTarget | None:
    cred = call.process.cred
    return find_host_target(pid, cred.uid, cred.gid, call.kernel.shadowpt.asking)


def shadowpt_close(call: Call) -> int:
    """Close the caller's table. Raises SysError(EINVAL) if none is open, EPERM for another process than the opener."""
    call.kernel.shadowpt.close(call.process)
    return 0


def shadowpt_start(call: Call) -> int:
    """Fill the caller's table. From then on it has every change. Raises as shadowpt_close() does."""
    call.kernel.shadowpt.start(call.process)
    return 0


def shadowpt_stop(call: Call) -> int:
    """Freeze the caller's table. Raises as shadowpt_close() does."""
    call.kernel.shadowpt.stop(call.process)
    return 0


def shadowpt_page_contents(call: Call) -> Answer:
    """Read a frame that the target maps in the range: args are the pfn and a pointer; returns its 4,096 bytes inline.

    Raises SysError(EPERM) unless the caller is the superuser, then as ShadowPt.page_contents() does.
    """
    _check_superuser(call)
    return Answer(0, call.kernel.shadowpt.page_contents(call.args[0]))


def _check_superuser(call: Call) -> None:
    """Raise SysError(EPERM) unless the caller is the superuser here, and its real process has such an effective user
    now."""
    cred, own_uid = call.process.cred, os.getuid()
    ids = find_effective_ids(call.process.pid) if cred.superuser else None
    uid = cred.uid if ids is None else ids[0]
    if not cred.superuser or (ids is not None and uid not in (0, own_uid)):
        why = f"only root and the user that runs kerneld (uid {own_uid}) may, not uid {uid}"
        raise SysError(errno.EPERM, why)
