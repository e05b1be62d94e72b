"""Real mappings of files in this process. They show what the host's kernel says about a file.

The daemon never accesses the file's memory through them: if another program truncated the file, that would be a SIGBUS.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable
from typing import Any

from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE

_FAILED = (1 << 64) - 1
MREMAP_MAYMOVE = 1
_WORD, _INT = ctypes.c_uint64, ctypes.c_int


@functools.cache
def libc_call(name: str) -> Callable[..., Any]:
    """Return a function of libc whose addresses and lengths are 64-bit words. Check its result with `to_os_error`."""
    call = ctypes.CDLL(None, use_errno=True)[name]
    call.restype, *arguments = {
        "mmap": (_WORD, _WORD, _WORD, _INT, _INT, _INT, ctypes.c_int64),
        "mremap": (_WORD, _WORD, _WORD, _WORD, _INT),
        "munmap": (_INT, _WORD, _WORD),
        "mincore": (_INT, _WORD, _WORD, ctypes.c_char_p),
        "process_vm_writev": (ctypes.c_int64, _INT, ctypes.c_void_p, _WORD, ctypes.c_void_p, _WORD, _WORD),
    }[name]
    call.argtypes = arguments
    return call


def to_os_error(result: int) -> int:
    """Return the result of a libc function. Raises OSError if the result means failure."""
    if result in (-1, _FAILED):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def map_file(fd: int, offset: int, length: int, prot: int, flags: int) -> int:
    """Map a file anywhere, and return the address. Raises OSError."""
    return to_os_error(libc_call("mmap")(0, length, prot, flags, fd, offset))


def try_to_map(fd: int, flags: int) -> int:
    """Map a file's first page, private and readable, with additional MAP_ `flags`. Return the errno, 0 for success.

    The mapping is removed again.
    """
    try:
        addr = map_file(fd, 0, PAGE_SIZE, Prot.READ.value, Map.PRIVATE.value | flags)
    except OSError as error:
        return error.errno or errno.EINVAL
    libc_call("munmap")(addr, PAGE_SIZE)
    return 0


class ResidentPages:
    """Tells which pages of a file are in the host's memory. It keeps a mapping of the file without rights, for mincore.

    The mapping is private, so that programs can still seal the file.
    """

    def __init__(self) -> None:
        self._addr = self._length = 0

    def mincore(self, fd: int, first: int, count: int) -> bytes:
        """Return for each of `count` pages from `first` 1 if it is in the host's memory, else 0. `fd` is the file.

        If our user neither owns the file nor may write to it, all pages count as in memory. Pages that the host has
        swapped out count as not in memory. Raises OSError. Source: mincore(2).
        """
        end = (first + count) * PAGE_SIZE
        if end > self._length:
            self.close()
            length = end + _MAPPED_AHEAD - 1 & -_MAPPED_AHEAD
            self._addr, self._length = map_file(fd, 0, length, Prot.NONE.value, Map.PRIVATE.value), length
        vector = ctypes.create_string_buffer(count)
        to_os_error(libc_call("mincore")(self._addr + first * PAGE_SIZE, count * PAGE_SIZE, vector))
        return vector.raw.translate(_LOW_BIT)

    def close(self) -> None:
        """Unmap the file. The next call of mincore maps it again."""
        if self._length:
            libc_call("munmap")(self._addr, self._length)
            self._addr = self._length = 0


_MAPPED_AHEAD = 64 << 20
_LOW_BIT = bytes(byte & 1 for byte in range(256))
"""Keeps bit 0 of each byte. The other bits of mincore are reserved."""
