"""The two exceptions of the kernel: an errno for the caller, and a bug of our own.

Every layer raises them, none but dispatch catches them.
"""

from __future__ import annotations

import errno


class SysError(Exception):
    """A system call fails with this errno: handlers raise it, dispatch alone turns it into `-errno`.

    Where one errno has many causes, `why` says in words which one it was: for the log, and for a caller that asks.
    """

    def __init__(self, code: int, why: str = "") -> None:
        super().__init__(errno.errorcode.get(code, str(code)))
        self.errno = code
        self.why = why


class KernelBug(Exception):
    """An invariant of the kernel's own is broken. Never an errno: an oops ends the task, a broken machine panics."""
