"""The host's perf event for the page faults of one thread. It reports the address of each fault, also without a page.

Owns the opening of the event, which may wait for an execve of that process (`kerneld.shadowpt.host_look`). Needs
nothing but Python. Answers to perf_event_open(2) and Linux v6.8 kernel/events/core.c; the event counts where
arch/x86/mm/fault.c:do_user_addr_fault() begins.
"""

from __future__ import annotations

import ctypes
import os
import struct

from shared.uapi.page import Pid

_NR_PERF_EVENT_OPEN = 298
_TYPE_SOFTWARE, _COUNT_SW_PAGE_FAULTS = 1, 2
_SAMPLE_ADDR = 1 << 3
_EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 5, 1 << 6
_FLAG_FD_CLOEXEC = 1 << 3
_ATTR = struct.Struct("<IIQQQQQ88x")
"""struct perf_event_attr: type, size, config, sample_period, sample_type, read_format, flags; the rest is 0."""


def open_page_faults(tid: Pid) -> int:
    """Return a descriptor of the event for a thread's page faults. Raises OSError if the host does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _EXCLUDE_KERNEL | _EXCLUDE_HV
    attr = _ATTR.pack(_TYPE_SOFTWARE, _ATTR.size, _COUNT_SW_PAGE_FAULTS, 1, _SAMPLE_ADDR, 0, flags)
    fd: int = libc.syscall(_NR_PERF_EVENT_OPEN, attr, tid, -1, -1, _FLAG_FD_CLOEXEC)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd
