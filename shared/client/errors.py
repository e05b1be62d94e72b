"""Exceptions for failures between this process and kerneld. The text of each is one line for people.

A system call that fails raises OSError with Linux's errno instead.
"""

from __future__ import annotations


class KerneldError(Exception):
    """The library cannot continue. The text says why in one line."""


class KerneldUnavailable(KerneldError):
    """No daemon can be reached at that path."""


class KerneldLocked(KerneldUnavailable):
    """A daemon may be at that path, and this user is not permitted to reach it."""


class KerneldGone(KerneldError):
    """The connection has ended: the daemon stopped, or it released this process."""
