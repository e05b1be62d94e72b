"""Packs the strings of execve: argv, envp and the program's name. Long ones travel in a memory file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from shared import wire


class ExecStrings(NamedTuple):
    """argv, envp and the name in one byte string, each string NUL-ended, and the numbers of strings in argv and
    envp."""

    data: bytes
    argc: int
    envc: int

    @property
    def fit_inline(self) -> bool:
        """Whether the strings fit into a datagram."""
        return len(self.data) <= wire.MAX_DATAGRAM - wire.REQUEST.size


def pack_strings(
    name: bytes, argv: Sequence[str | bytes], envp: Mapping[str, str] | Sequence[str | bytes]
) -> ExecStrings:
    """Return the strings of an execve; envp is NAME=VALUE strings, or a mapping.

    Raises ValueError for a string with a NUL byte: a program's strings end at the first NUL. Source: docs/abi.md,
    execve.
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
