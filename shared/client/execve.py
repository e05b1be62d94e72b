"""How execve's strings travel: argv, envp and the program's name, as bytes, or in a memory file where they are many."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shared import wire


class ExecStrings(NamedTuple):
    """argv, envp and the name one after another, each string NUL-ended, and how many of the first two there are."""

    data: bytes
    argc: int
    envc: int

    @property
    def fit_inline(self) -> bool:
        """Whether a datagram holds them."""
        return len(self.data) <= wire.MAX_DATAGRAM - wire.REQUEST.size


def pack_strings(
    name: bytes, argv: Sequence[str | bytes], envp: Mapping[str, str] | Sequence[str | bytes]
) -> ExecStrings:
    """Return the strings of an execve; envp is NAME=VALUE strings, or a mapping.

    Raises ValueError for a string that holds a NUL byte, which no program's can. Source: docs/abi.md, execve.
    """
    environment = [f"{key}={value}" for key, value in envp.items()] if isinstance(envp, Mapping) else envp
    data = b"".join([*map(_ended, argv), *map(_ended, environment), name + b"\0"])
    return ExecStrings(data, len(argv), len(environment))


def _ended(string: str | bytes) -> bytes:
    encoded = os.fsencode(string)
    if b"\0" in encoded:
        raise ValueError("a program's arguments and environment cannot hold a NUL byte")
    return encoded + b"\0"


def memory_file(data: bytes) -> int:
    """Return a descriptor of a new memory file with these contents. Raises OSError."""
    fd = os.memfd_create("execve", os.MFD_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd
