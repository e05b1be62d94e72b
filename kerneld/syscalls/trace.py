"""The calls that open and close a trace. The layer `kerneld.trace` above does the work.

Answers to Linux v6.8 kernel/events/core.c:SYSCALL_DEFINE5(perf_event_open). Differs from Linux: a trace is named by a
handle, not by a descriptor; two descriptors come with it, of the ring and of the pipe that wakes the reader.
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.syscalls.answer import Answer, Call, Pieces, Work
from kerneld.task.task import Thread


def sys_perf_event_open(call: Call) -> int | Answer | Work:
    """args: a pointer; inline: a kd_trace_attr (`shared.trace.attr`). Returns a handle and two descriptors.

    Raises SysError(ENOSYS) on a machine that cannot be traced, and as `Tracing.open` does.
    """
    return Work(_open(call, call.thread, call.data)).go_on()


def _open(call: Call, thread: Thread, data: bytes) -> Pieces:
    tracing = yield from call.kernel.find_tracing()
    if tracing is None:
        raise SysError(errno.ENOSYS)
    handle, fds = yield from tracing.open(thread, data)
    return Answer(handle, fds=fds)


def sys_close(call: Call) -> int:
    """args: the handle of a trace of the caller's process. The trace ends. Raises SysError(EBADF) for other numbers."""
    tracing = call.kernel.tracing
    if tracing is None:
        raise SysError(errno.EBADF)
    tracing.close(call.thread, call.args[0])
    return 0
