"""What goes wrong between this process and kerneld, as exceptions whose text is one line for people.

A failing system call is not among them: that is an OSError with Linux's errno.
"""

from __future__ import annotations


class KerneldError(Exception):
    """The library cannot go on; the text says why in one line."""


class KerneldUnavailable(KerneldError):
    """No daemon can be reached at that path."""


class KerneldLocked(KerneldUnavailable):
    """A daemon may be at that path, and this user is not permitted to reach it."""


class KerneldGone(KerneldError):
    """The connection has ended: the daemon stopped, or it released this process."""
