"""Watches the pipes of traces and userfaultfds, and tells the kernel when a pipe has no reader any more.

Owns a second epoll inside the loop's epoll, only while there is a pipe: most machines are never traced. It knows only
the pipes. Invariant: every watched pipe is open. A pipe is removed here before it is closed.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kerneld.syscalls.kernel import Kernel


class PipeWatch:
    """The loop's side of `Kernel.pipe_watch`."""

    def __init__(self, kernel: Kernel, epoll: select.epoll) -> None:
        self._kernel = kernel
        self._outer = epoll
        self._inner: select.epoll | None = None
        self._pipes: set[int] = set()
        self.fd = -1
        """Readable when `tend` has something to do; -1 while there is no pipe."""
        kernel.pipe_watch = self

    def add(self, pipe: int) -> None:
        """Watch the writing end of a pipe. Raises OSError."""
        inner = self._inner or self._open()
        inner.register(pipe, 0)
        self._pipes.add(pipe)

    def _open(self) -> select.epoll:
        inner = select.epoll()
        try:
            self._outer.register(inner.fileno(), select.EPOLLIN)
        except OSError:
            inner.close()
            raise
        self._inner, self.fd = inner, inner.fileno()
        return inner

    def remove(self, pipe: int) -> None:
        """Stop watching a pipe."""
        assert self._inner is not None
        self._inner.unregister(pipe)
        self._pipes.remove(pipe)
        if not self._pipes:
            self._close_inner()

    def tend(self) -> None:
        """Tell the kernel which pipes have no reader any more."""
        assert self._inner is not None
        for pipe, _ in self._inner.poll(0, len(self._pipes)):
            self._kernel.reader_gone(pipe)

    def _close_inner(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner, self.fd = None, -1

    def close(self) -> None:
        """Stop watching all pipes."""
        self._kernel.pipe_watch = None
        self._close_inner()
