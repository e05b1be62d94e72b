"""Our target: a process whose memory changes only when it is told so. So each state of the table stays for a while.

Owns the layout of the watched pages. All five states that an entry can have are there from the start: nothing, a file
without and with a frame, anonymous memory without and with a frame.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from kerneld.commands.grade.cell.room import Room
from shared.client import Process
from shared.uapi.mman import Madv, Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Access

BASE = 0x10_0000_0000
PAGES = 16
LARGE_BASE = 0x20_0000_0000
LARGE_PAGES = 2048
_FILLER_PAGES = 0x1000
_LOWEST_PFN = 0x1000
_PAGEMAP_PFN = (1 << 55) - 1
_FILLER_BASE = 0x30_0000_0000
_RW = Prot.READ | Prot.WRITE
_ANONYMOUS = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED
_FILE = Map.PRIVATE | Map.FIXED
_FILE_SUFFIX = ".pages"
_FAR = 32
"""Pages of the file between two mappings: a fault maps what is around it, and mappings that touch are merged."""
STEADY = 14
"""A page that stays allocated until the end."""


class Puppet:
    """The target, seen from the process that tells it what to do."""

    def __init__(self, room: Room, socket_path: str) -> None:
        """Start the process, and lay out its memory. Raises OSError when it ends instead."""
        file = Path(socket_path + _FILE_SUFFIX)
        file.write_bytes(b"kerneld" * (4 * _FAR * PAGE_SIZE // 7))
        file.chmod(0o644)
        room.give(file)
        self._ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _become_puppet(room, theirs, socket_path)
        theirs.close()
        self._wait()

    def tell(self, step: str) -> None:
        """Have the process make a step, and wait until it is made. Raises OSError when the process has ended."""
        self._ours.sendall(step.encode() + b"\n")
        self._wait()

    def _wait(self) -> None:
        if not self._ours.recv(1):
            raise ConnectionResetError("our target has been ended")

    def end(self) -> None:
        """Have the process exit, and wait for its end."""
        with suppress(OSError):
            self._ours.sendall(b"exit\n")
        self._ours.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _become_puppet(room: Room, channel: socket.socket, socket_path: str) -> NoReturn:
    status = 1
    try:
        room.become_program()
        with Process.attach(socket_path) as process:
            _lay_out(process)
            channel.sendall(b".")
            for line in channel.makefile():
                if line == "exit\n":
                    break
                STEPS[line.strip()](process)
                channel.sendall(b".")
        status = 0
    finally:
        os._exit(status)


def _page(index: int) -> int:
    return BASE + index * PAGE_SIZE


def _map(process: Process, index: int, pages: int = 1) -> None:
    process.mmap(_page(index), pages * PAGE_SIZE, _RW, _ANONYMOUS)


def _write(process: Process, *indexes: int) -> None:
    for index in indexes:
        process.mem.store(_page(index), b"kerneld")


def _map_file(process: Process, index: int, far: int) -> None:
    with open(process.socket_path + _FILE_SUFFIX, "rb") as file:
        process.mmap(_page(index), PAGE_SIZE, Prot.READ, _FILE, file.fileno(), far * _FAR * PAGE_SIZE)


def _read(process: Process, index: int) -> None:
    process.mem.load(_page(index), 1)


def _take_low_frames(process: Process) -> None:
    """Take frames until their numbers are unlike the other numbers in a text: indexes, flags, sizes."""
    process.mmap(_FILLER_BASE, 2 * _FILLER_PAGES * PAGE_SIZE, _RW, _ANONYMOUS)
    process.mem.touch(_FILLER_BASE, _FILLER_PAGES * PAGE_SIZE, Access.WRITE)
    for index in range(_FILLER_PAGES, 2 * _FILLER_PAGES):
        page = _FILLER_BASE + index * PAGE_SIZE
        process.mem.touch(page, 1, Access.WRITE)
        entry = process.procread("self/pagemap", page // PAGE_SIZE * 8, 8)
        if int.from_bytes(entry, "little") & _PAGEMAP_PFN >= _LOWEST_PFN:
            return


def _lay_out(process: Process) -> None:
    """The pages at the start: 0 1 5 6 8-11 14 15 anonymous, 3 4 13 of a file, 2 7 12 nothing."""
    _take_low_frames(process)
    for index, pages in ((0, 2), (5, 2), (8, 4), (14, 2)):
        _map(process, index, pages)
    for index, far in ((3, 0), (4, 1), (13, 2)):
        _map_file(process, index, far)
    _write(process, 0, 5, 8, 10, 15)
    _read(process, 4)
    _read(process, 13)
    process.mmap(LARGE_BASE, LARGE_PAGES * PAGE_SIZE, _RW, _ANONYMOUS)
    for index in (0, LARGE_PAGES - 1):
        process.mem.store(LARGE_BASE + index * PAGE_SIZE, b"kerneld")


def _grow(process: Process) -> None:
    """More memory: a new page, two first writes, a read of a file; and another frame for page 0."""
    _map(process, 2)
    _write(process, 2, 1)
    _read(process, 3)
    process.munmap(_page(0), PAGE_SIZE)
    _map(process, 7)
    _write(process, 7)
    _map(process, 0)
    _write(process, 0)


def _shrink(process: Process) -> None:
    """Less memory: munmap of two pages and of a file, frames given back, a file over anonymous memory."""
    process.munmap(_page(5), PAGE_SIZE)
    process.munmap(_page(15), PAGE_SIZE)
    process.munmap(_page(13), PAGE_SIZE)
    process.madvise(_page(8), PAGE_SIZE, Madv.DONTNEED)
    _map_file(process, 10, 3)
    _write(process, 9)


STEPS: dict[str, Callable[[Process], None]] = {"grow": _grow, "shrink": _shrink}
