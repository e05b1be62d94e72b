"""The check of the memory that a caller wants its table mapped over, in the caller's real address space.

Owns nothing; reads /proc/PID/maps and /proc/PID/pagemap of the host. What remap_pfn_range() would find out from the
caller's VMA inside a kernel, this finds out from outside. Answers to Linux v6.8 fs/proc/task_mmu.c:show_map_vma() and
Documentation/admin-guide/mm/pagemap.rst for the formats.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kerneld.errors import SysError
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pid, Vaddr

_PM_ENTRY_BYTES = 8
_PM_PRESENT = 1 << 63
_PM_SWAP = 1 << 62

_ANONYMOUS_NAMES = (b"", b"[heap]", b"[stack]")
_ANON_VMA_NAME = b"[anon:"
"""How a name given by prctl(PR_SET_VMA_ANON_NAME) starts; "[anon_shmem:" is a shared mapping's."""


class _Refusal(Exception):
    """Why the memory will not do, in words."""


class HostMapping(NamedTuple):
    """One line of /proc/PID/maps: [start, end) in bytes."""

    start: Vaddr
    end: Vaddr
    perms: bytes
    dev: bytes
    inode: int
    name: bytes

    @property
    def is_private_anonymous(self) -> bool:
        """Tell whether it is the program's own memory: not shared, of no file, none of the kernel's special ones."""
        nameless = self.name in _ANONYMOUS_NAMES or self.name.startswith(_ANON_VMA_NAME)
        return self.perms[3:4] == b"p" and self.inode == 0 and self.dev == b"00:00" and nameless


def parse_mapping(line: bytes) -> HostMapping:
    """Parse one line of /proc/PID/maps, without its newline.

    A name may hold anything but a newline (the kernel writes that as an escape), so it is whatever stands behind the
    fifth field and its padding. Raises ValueError on any other line.
    """
    addresses, perms, _offset, dev, inode, *rest = line.split(b" ", 5)
    start, _, end = addresses.partition(b"-")
    name = rest[0].lstrip(b" ") if rest else b""
    return HostMapping(int(start, 16), int(end, 16), perms, dev, int(inode), name)


def check_entries(pid: Pid, entries: Vaddr, length: int) -> None:
    """Check that [entries, entries + length) of the real process `pid` can become the kernel's table.

    `entries` in bytes, any number; `length` a multiple of PAGE_SIZE. Raises SysError(EINVAL), which says why, unless it
    is page-aligned, inside one private anonymous mapping, and no page of it has been touched or swapped out; also when
    the process cannot be looked into, or is gone. Source: docs/abi.md, shadowpt_open.
    """
    try:
        if entries & (PAGE_SIZE - 1):
            raise _Refusal("not page-aligned")
        _check_mapping(pid, entries, length)
        _check_untouched(pid, entries, length)
    except _Refusal as refusal:
        why = str(refusal)
    except OSError as error:
        why = f"cannot look into the process: {error.strerror}"
    else:
        return
    raise SysError(errno.EINVAL, f"entries {entries:#x}, {length} bytes for the table: {why}")


def _check_mapping(pid: Pid, entries: Vaddr, length: int) -> None:
    mapping = _find_mapping(pid, entries)
    if mapping is None:
        raise _Refusal("nothing is mapped there")
    if not mapping.is_private_anonymous:
        raise _Refusal(
            f"not private anonymous memory: {mapping.perms.decode()} {mapping.name.decode(errors='replace')}"
        )
    if mapping.end - entries < length:
        raise _Refusal(f"the mapping ends {mapping.end - entries} bytes after it")


def _find_mapping(pid: Pid, address: Vaddr) -> HostMapping | None:
    for line in Path(f"/proc/{pid}/maps").read_bytes().split(b"\n")[:-1]:
        mapping = parse_mapping(line)
        if mapping.start <= address < mapping.end:
            return mapping
    return None


def _check_untouched(pid: Pid, entries: Vaddr, length: int) -> None:
    nr_pages = length >> PAGE_SHIFT
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek((entries >> PAGE_SHIFT) * _PM_ENTRY_BYTES)
        raw = pagemap.read(nr_pages * _PM_ENTRY_BYTES)
    if len(raw) != nr_pages * _PM_ENTRY_BYTES:
        raise _Refusal("its page map is cut short: the process is ending")
    touched = np.flatnonzero(np.frombuffer(raw, dtype=np.uint64) & (_PM_PRESENT | _PM_SWAP))
    if len(touched):
        raise _Refusal(
            f"{len(touched)} pages have been touched, the first at {entries + (int(touched[0]) << PAGE_SHIFT):#x}"
        )
