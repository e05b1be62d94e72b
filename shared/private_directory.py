"""A temporary directory for a kerneld of a program's own, in which its socket has a short enough path."""

from __future__ import annotations

import os
import tempfile

from shared.wire import MAX_SOCKET_PATH

_RANDOM = 8
"""The characters that tempfile puts behind a prefix."""
_SOCKET = "/kerneld/kerneld.sock"
"""The longest name that a socket has in it."""


def private_directory(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Return a new directory of the user alone, in TMPDIR, or in /tmp if a socket would have too long a path there.

    It goes as the object is closed. Raises OSError.
    """
    place = tempfile.gettempdir()
    length = len(os.fsencode(f"{place}/{prefix}")) + _RANDOM + len(_SOCKET)
    return tempfile.TemporaryDirectory(prefix=prefix, dir=place if length <= MAX_SOCKET_PATH else "/tmp")
