"""The two exceptions of the kernel: an errno for the caller, and a bug in kerneld.

Every layer raises them. Only dispatch catches them.
"""

from __future__ import annotations

import errno


class SysError(Exception):
    """A system call fails with this errno. Handlers raise it, and only dispatch turns it into `-errno`.

    An errno may have many causes. `why` names the cause in words, for the log and for `kerneld/explanation`.
    """

    def __init__(self, code: int, why: str = "") -> None:
        super().__init__(errno.errorcode.get(code, str(code)))
        self.errno = code
        self.why = why


class KernelBug(Exception):
    """An invariant of the kernel is broken. It is never an errno: an oops ends the task, a broken machine panics."""
