"""Tracing for a client: opens a trace with the kernel and hands out the reader of its ring."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence

from shared.client.calls import SystemCalls
from shared.client.errors import KerneldError
from shared.trace.attr import TraceAttr
from shared.trace.reader import Reader
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr

DEFAULT_RING_BYTES = 4 << 20


class TraceSession:
    """One open trace. `reader` has its records, until `close`."""

    def __init__(
        self,
        calls: SystemCalls,
        globs: Sequence[str] = ("*",),
        pids: Sequence[int] = (),
        ring_bytes: int = DEFAULT_RING_BYTES,
        functions: Sequence[str] = (),
        graph_functions: Sequence[str] = (),
    ) -> None:
        """Open a trace of the events that the globs name, for `pids` or for all processes. `ring_bytes` is rounded up.

        `functions` and `graph_functions` are for the function tracer: see `shared.trace.attr`. Raises OSError: EINVAL
        for a glob without events or functions, ESRCH, EPERM, EMFILE, ENOSPC, ENOMEM, ENOSYS.
        """
        data_pages = 1 << max(0, (max(1, ring_bytes) - 1) // PAGE_SIZE).bit_length()
        packed = TraceAttr(tuple(globs), tuple(pids), data_pages, tuple(functions), tuple(graph_functions)).pack()
        memory = ctypes.create_string_buffer(packed, len(packed))
        self._calls = calls
        reply, fds = calls.call_for_fds(Nr.PERF_EVENT_OPEN, ctypes.addressof(memory), data=packed)
        if len(fds) != 2:
            for fd in fds:
                os.close(fd)
            raise KerneldError("kerneld opened a trace without its ring")
        self.handle = reply.ret
        self.reader = Reader(*fds)

    def stop(self) -> None:
        """Tell the kernel to end the trace. The records in the ring can still be read. Raises OSError, KerneldGone."""
        self._calls.call(Nr.CLOSE, self.handle)

    def close(self) -> None:
        """Unmap the ring. The kernel's side ends with `stop`, or with the connection."""
        self.reader.close()
