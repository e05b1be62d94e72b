"""The inline data of execve: argv and envp as bytes. Pure; the kernel reads the program's file itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence

from shared import wire


def pack_strings(argv: Sequence[str | bytes], envp: Mapping[str, str] | Sequence[str | bytes]) -> bytes:
    """Return argv, an empty string, envp (NAME=VALUE strings, or a mapping), each string NUL-ended.

    Raises ValueError for a string that is empty or holds a NUL byte, which this form cannot carry, and OSError(E2BIG)
    when they do not fit into one datagram. Source: docs/abi.md, execve.
    """
    environment = [f"{name}={value}" for name, value in envp.items()] if isinstance(envp, Mapping) else envp
    packed = b"".join([*map(_ended, argv), b"\0", *map(_ended, environment)])
    if len(packed) > wire.MAX_DATAGRAM - wire.REQUEST.size:
        raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
    return packed


def _ended(string: str | bytes) -> bytes:
    encoded = os.fsencode(string)
    if not encoded or b"\0" in encoded:
        raise ValueError("a program's arguments and environment cannot hold an empty string or a NUL byte here")
    return encoded + b"\0"
