"""A FUSE file system with one file, `file`, that can be opened, and of which nothing else is ever answered.

With `reads` it can be read and mapped too, and what is written to it is waited for, for ever.

Speaks just enough of the protocol of Linux v6.8 include/uapi/linux/fuse.h, in a child, over /dev/fuse. When the child
is killed the host gives everybody who waits an error.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

LOOKUP, GETATTR, OPEN, READ, WRITE, INIT = 1, 3, 14, 15, 16, 26
SIZE = 4096
IN_HEADER, OUT_HEADER = struct.Struct("=IIQQIIII"), struct.Struct("=IiQ")
INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
ENTRY_OUT = struct.Struct("=QQQQII")
OPEN_OUT = struct.Struct("=QII")
MNT_DETACH = 2
NODE = 2


ATTR_OUT = struct.Struct("=QII")


def _answer(opcode: int, *, reads: bool) -> bytes | None:
    if opcode == INIT:
        return INIT_OUT.pack(7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0)
    if opcode == LOOKUP:
        return ENTRY_OUT.pack(NODE, 0, 0, 0, 0, 0) + _attr()
    if reads and opcode == GETATTR:
        return ATTR_OUT.pack(0, 0, 0) + _attr()
    if reads and opcode == READ:
        return bytes(SIZE)
    return OPEN_OUT.pack(1, 0, 0) if opcode == OPEN else None


def _attr() -> bytes:
    return ATTR.pack(NODE, SIZE, 8, 0, 0, 0, 0, 0, 0, stat.S_IFREG | 0o755, 1, 0, 0, 0, 4096, 0)


def _serve(fd: int, tells: int, *, reads: bool) -> None:
    while True:
        request = os.read(fd, 1 << 17)
        _, opcode, unique, *_rest = IN_HEADER.unpack_from(request)
        if opcode == WRITE:
            os.write(tells, b"w")
        answer = _answer(opcode, reads=reads)
        if answer is not None:
            os.write(fd, OUT_HEADER.pack(OUT_HEADER.size + len(answer), 0, unique) + answer)


class StuckFileSystem:
    """Mounted, with its server; `end` lets everybody go who waits for it."""

    def __init__(self, directory: Path, *, reads: bool = False) -> None:
        """Skips the test where nothing can be mounted."""
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            pytest.skip(f"no FUSE here: {error.strerror}")
        options = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
        self.directory = directory
        self._libc = libc
        if libc.mount(b"stuck", bytes(directory), b"fuse", 0, options) < 0:
            os.close(fd)
            pytest.skip("FUSE cannot be mounted here")
        self._told, tells = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _serve(fd, tells, reads=reads)
            finally:
                os._exit(0)
        os.close(fd)
        os.close(tells)

    def wait_for_a_write(self) -> None:
        """Wait until somebody waits for what it has written."""
        assert os.read(self._told, 1) == b"w"

    @property
    def file(self) -> Path:
        """The file that can be opened."""
        return self.directory / "file"

    def end(self) -> None:
        """Kill the server."""
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)
            self._pid = 0

    def close(self) -> None:
        """Kill the server and unmount."""
        self.end()
        os.close(self._told)
        self._libc.umount2(bytes(self.directory), MNT_DETACH)


@contextlib.contextmanager
def stuck_file_system(directory: Path, *, reads: bool = False) -> Iterator[StuckFileSystem]:
    """Mount one on an empty directory for as long as the block lasts."""
    made = StuckFileSystem(directory, reads=reads)
    try:
        yield made
    finally:
        made.close()
