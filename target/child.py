"""A forked child that carries out orders: it reads an order line from its parent, and writes an answer line.

The child is a real process with a copy-on-write copy of its parent's memory in the kernel. It never returns to its
parent's code after the fork: it always ends here. The end of the parent ends the child too, because the order pipe
ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NoReturn

from shared.client import Process

Orders = Mapping[str, Callable[[], str]]
"""The orders by name. Each returns one line with its result."""

_FAILED = 1


class Child:
    """The parent's handle of a child that waits for orders; a context manager that leaves no child behind."""

    def __init__(self, process: Process, orders: Orders) -> None:
        """Fork `process`; the child waits for one of `orders`. Raises OSError or KerneldError when the fork fails."""
        order_read, self._order_write = os.pipe()
        self._answer_read, answer_write = os.pipe()
        self._wait_status: int | None = None
        parent = os.getpid()
        try:
            self.pid = process.fork()
            if self.pid == 0:
                os.close(self._order_write)
                os.close(self._answer_read)
                _carry_out(process, orders, order_read, answer_write)
        except BaseException:
            os.close(self._order_write)
            os.close(self._answer_read)
            raise
        finally:
            if os.getpid() != parent:
                os._exit(_FAILED)
            os.close(order_read)
            os.close(answer_write)

    def order(self, name: str) -> str:
        """Let the child carry out the order `name`, and return its answer; '' if the child ended instead."""
        try:
            os.write(self._order_write, f"{name}\n".encode())
        except BrokenPipeError:
            return ""
        return _read_line(self._answer_read)

    def wait(self) -> int:
        """Let the child end and return its wait status, as waitpid(2) gives it."""
        if self._wait_status is None:
            os.close(self._order_write)
            os.close(self._answer_read)
            self._wait_status = os.waitpid(self.pid, 0)[1]
        return self._wait_status

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wait()


def describe_wait_status(pid: int, status: int) -> str:
    """Return a wait status in words: the signal that killed the process, or its exit status."""
    if os.WIFSIGNALED(status):
        signo = os.WTERMSIG(status)
        return f"waitpid: process {pid} was killed by signal {signo} ({signal.Signals(signo).name})."
    return f"waitpid: process {pid} exited with status {os.WEXITSTATUS(status)}."


def _carry_out(process: Process, orders: Orders, order_read: int, answer_write: int) -> NoReturn:
    """The child's whole life: answer each order until the pipe ends, then exit by a system call."""
    # Ctrl+C reaches the whole foreground group: the parent decides when its child ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    while name := _read_line(order_read):
        os.write(answer_write, f"{orders[name]()}\n".encode())
    process.exit(0)


def _read_line(descriptor: int) -> str:
    """Read one line byte by byte. A buffer could hold more input, and a fork would copy it."""
    line = bytearray()
    while (byte := os.read(descriptor, 1)) not in (b"", b"\n"):
        line += byte
    return line.decode()
