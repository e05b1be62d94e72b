"""The caller's own real memory, by address. The shadow table needs addresses, and Python's mmap module hides them.

Everything here acts on the real process. Nothing is sent to kerneld. Addresses are ints, lengths are bytes.
"""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from shared.client import libc
from shared.uapi.mman import Map, Prot
from shared.uapi.page import page_align


def map_anonymous(length: int, prot: int = Prot.READ | Prot.WRITE) -> int:
    """Map fresh private anonymous memory of at least `length` bytes, no page of it touched, and return its address.

    Raises OSError(ENOMEM).
    """
    return libc.mmap(0, page_align(length), prot, Map.PRIVATE | Map.ANONYMOUS)


def map_anonymous_over(address: int, length: int, prot: int, sharing: Map = Map.PRIVATE) -> None:
    """Replace [address, address + length) by fresh anonymous memory, private or Map.SHARED. Raises OSError."""
    libc.mmap(address, page_align(length), prot, sharing | Map.ANONYMOUS | Map.FIXED)


def map_file_over(address: int, length: int, fd: int) -> None:
    """Replace [address, address + length) by a shared, read-only mapping of `fd` from its start, every page mapped.

    Raises OSError.
    """
    libc.mmap(address, length, Prot.READ, Map.SHARED | Map.FIXED | Map.POPULATE, fd)


def map_file(length: int, fd: int) -> int:
    """Map `fd` from its start, shared and read-only, and return the address. Raises OSError."""
    return libc.mmap(0, length, Prot.READ, Map.SHARED, fd)


def unmap(address: int, length: int) -> None:
    """Unmap [address, address + length); the end is rounded up to a page. Raises OSError(EINVAL)."""
    libc.munmap(address, page_align(length))


def protect(address: int, length: int, prot: int) -> None:
    """Set the protection of [address, address + length). Raises OSError."""
    libc.mprotect(address, page_align(length), prot)


def view(address: int, length: int) -> memoryview:
    """Return a view of the memory itself, readable and writable. The memory must stay mapped while the view is used.

    The processor makes the accesses: an access to a page without the right for it is a real SIGSEGV.
    """
    return memoryview((ctypes.c_ubyte * length).from_address(address)).cast("B")


def read(address: int, length: int) -> bytes:
    """Return a copy of [address, address + length)."""
    return ctypes.string_at(address, length)


def read_u64(address: int) -> int:
    """Return the aligned 64-bit word at `address`, in one load."""
    return ctypes.c_uint64.from_address(address).value


class Mapping(NamedTuple):
    """One real mapping: [start, end), its rights, and its file."""

    start: int
    end: int
    protection: Prot
    sharing: Map
    device: str
    """MAJOR:MINOR, as /proc has it."""
    inode: int


def mappings() -> list[Mapping]:
    """Return the real mappings of this process. Source: proc(5), /proc/PID/maps."""
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            bounds, permissions, _offset, device, inode = line.split(maxsplit=5)[:5]
            start, end = (int(bound, 16) for bound in bounds.split("-"))
            sharing = Map.SHARED if "s" in permissions else Map.PRIVATE
            found.append(Mapping(start, end, _protection(permissions), sharing, device, int(inode)))
    return found


def find_mapping(address: int) -> Mapping | None:
    """Return the real mapping that covers `address`, or None."""
    return next((mapping for mapping in mappings() if mapping.start <= address < mapping.end), None)


def mappings_of(status: os.stat_result) -> list[Mapping]:
    """Return the real mappings of a file, wherever they are."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    return [mapping for mapping in mappings() if (mapping.device, mapping.inode) == (device, status.st_ino)]


def _protection(permissions: str) -> Prot:
    prot = Prot.NONE
    for letter, flag in (("r", Prot.READ), ("w", Prot.WRITE), ("x", Prot.EXEC)):
        if letter in permissions:
            prot |= flag
    return prot
