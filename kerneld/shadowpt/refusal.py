"""The reasons of a refused open, in words: EINVAL has a dozen causes, and a person cannot tell them apart.

Owns no check: the caller has found the error already. Reads the host's /proc/PID/status, which takes no mmap_lock.
"""

from __future__ import annotations

from typing import NamedTuple

from shared.real_process import read_status
from shared.uapi.page import PAGE_MASK, TASK_SIZE, Pid, Vaddr

NO_PFNS = "the host shows kerneld no frame numbers, which takes root: every pfn is 0, the flags are right"


class NoTarget(NamedTuple):
    """A target that does not exist or may not be opened, with the reason in words."""

    why: str


def why_no_range(start: Vaddr, end: Vaddr) -> str:
    """Return the error of an invalid range in words. Any numbers are allowed."""
    if start >= end:
        return f"the range is empty: its end {end:#x} is not after its start {start:#x}"
    for name, address in (("start", start), ("end", end)):
        if address & ~PAGE_MASK:
            return f"{name} {address:#x} is not page-aligned"
    return f"end {end:#x} is beyond the end of user space, {TASK_SIZE:#x}"


def why_no_target(pid: Pid, *, are_real_ones_allowed: bool, is_asked: bool) -> NoTarget:
    """Return the reason why no table of process `pid` can be opened. The process is not attached to kerneld."""
    fields = read_status(pid)
    if fields is None:
        # A pid_t is signed: -1 is what a failed fork returns.
        signed = pid - ((pid & 1 << 31) << 1)
        return NoTarget(f"there is no process {signed}, neither kerneld's nor one that this host shows kerneld")
    name = f"process {pid} ({fields.get('Name', '?')})"
    leader = fields.get("Tgid", "")
    if leader != str(pid):
        return NoTarget(f"{pid} is no process but a thread of process {leader}")
    if "VmSize" not in fields:
        return NoTarget(f"{name} has no memory: it has ended, or is a thread of the host's kernel")
    if not are_real_ones_allowed:
        if is_asked:
            return NoTarget(f"{name} is none of kerneld's, and kerneld runs with --no-host-targets")
        return NoTarget(
            f"{name} is none of kerneld's, and the caller does not ask for real ones (kerneld start --host-targets)"
        )
    return NoTarget(f"{name} may not be looked at: it is another user's, not dumpable, or kerneld itself may not")
