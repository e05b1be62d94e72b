"""Reads a real process once: the question, the answer, and how the answer is found.

Everything here may block for ever. The host reads the mappings and pages of a process under its mmap_lock, and the
holder of that lock may wait for a file system that never answers. Opening these files, or an event for page faults, may
wait for an execve, which may wait for that lock too. So the daemon leaves this work to a helper process that it can
kill (`kerneld.server.host_reader`). Owns nothing; needs nothing but Python. Answers to Linux v6.8
fs/proc/task_mmu.c: m_start(), pagemap_read(), do_pagemap_scan(), which take mmap_lock, and kernel/fork.c:mm_access()
and kernel/events/core.c:SYSCALL_DEFINE5(perf_event_open), which take exec_update_lock: fs/exec.c:exec_mmap() holds it
while it waits for mmap_lock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from kerneld.shadowpt.host_event import open_page_faults
from kerneld.shadowpt.host_maps import HostMapping, mappings_in
from kerneld.shadowpt.pagemap import read_entries, read_present
from shared.uapi.page import PAGE_SIZE, Pid, Vaddr


class Want(IntEnum):
    """The part of a process that a question asks for."""

    PRESENT = 1
    """Mappings, and entries of which only PM_PRESENT counts."""
    MAPPED = 2
    """Mappings, and the entries of present pages."""
    ENTRIES = 3
    """Mappings, and every entry of the file without a change."""
    CONTENTS = 4
    """The bytes of one page."""
    FAULTS = 5
    """A perf event for the page faults of the thread whose tid is `start`."""


class Question(NamedTuple):
    """A question about [start, end), page-aligned, of process `pid`. `directory_fd` is its /proc directory."""

    pid: Pid
    directory_fd: int
    want: Want
    start: Vaddr
    end: Vaddr

    def is_same(self, other: Question) -> bool:
        """Return whether another question asks for the same. The descriptor does not matter."""
        return self._replace(directory_fd=0) == other._replace(directory_fd=0)


class Seen(NamedTuple):
    """The facts about a mapping that count here."""

    start: Vaddr
    end: Vaddr
    perms: bytes
    is_private_anonymous: bool
    is_anonymous_memory: bool


class Descriptor:
    """A descriptor that comes with an answer. It is closed with the last reference, unless somebody takes it."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def take(self) -> int:
        """Return the descriptor, which the caller must close; -1 if it has been taken."""
        fd, self._fd = self._fd, -1
        return fd

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)


class Look(NamedTuple):
    """The answer: the mappings that overlap the range, in order, and the bytes read."""

    mappings: list[Seen]
    data: bytes
    """8 bytes for each page, or the contents of one page."""
    first_name: bytes
    """The name of the first mapping, for people."""
    event: Descriptor | None = None
    """A perf event."""


_HEAD = struct.Struct("<IIH")
_MAPPING = struct.Struct("<QQ4s??")
_MOST_NAME_BYTES = 255


def look(question: Question) -> Look:
    """Answer a question. It may block for ever. Raises OSError."""
    directory_fd, start, end = question.directory_fd, question.start, question.end
    if question.want is Want.FAULTS:
        return Look([], b"", b"", Descriptor(open_page_faults(start)))
    if question.want is Want.CONTENTS:
        with _opened(directory_fd, "mem") as fd:
            page = os.pread(fd, PAGE_SIZE, start)
        if len(page) != PAGE_SIZE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return Look([], page, b"")
    with _opened(directory_fd, "maps") as fd:
        found = mappings_in(fd, start, end)
    with _opened(directory_fd, "pagemap") as fd:
        if question.want is Want.ENTRIES:
            data = read_entries(fd, start, end)
        else:
            data = read_present(fd, start, end, only_present=question.want is Want.PRESENT)
    return Look([_seen(mapping) for mapping in found], data, found[0].name if found else b"")


def _seen(mapping: HostMapping) -> Seen:
    private, memory = mapping.is_private_anonymous, mapping.is_anonymous_memory
    return Seen(mapping.start, mapping.end, mapping.perms, private, memory)


@contextlib.contextmanager
def _opened(directory_fd: int, name: str) -> Iterator[int]:
    # Each reading opens the file again: an open descriptor of maps or pagemap keeps the address space before an execve.
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def pack_look(found: Look) -> bytes:
    """Return an answer as bytes, for another process. Its descriptor is sent with them."""
    name = found.first_name[:_MOST_NAME_BYTES]
    rows = b"".join(_MAPPING.pack(*mapping) for mapping in found.mappings)
    return _HEAD.pack(len(found.mappings), len(found.data), len(name)) + rows + found.data + name


def unpack_look(packed: bytes, event: Descriptor | None = None) -> Look:
    """Return the answer in the bytes of `pack_look`, with the descriptor that came with them."""
    nr_mappings, data_bytes, _name_bytes = _HEAD.unpack_from(packed)
    data_at = _HEAD.size + nr_mappings * _MAPPING.size
    name_at = data_at + data_bytes
    mappings = [Seen(*row) for row in _MAPPING.iter_unpack(packed[_HEAD.size : data_at])]
    return Look(mappings, packed[data_at:name_at], packed[name_at:], event)
