"""The real libc: the few functions that Python does not offer, typed. They act only on the real process."""

from __future__ import annotations

import ctypes
import os

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
_LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_LIBC.signal.restype = ctypes.c_void_p
_LIBC.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)

_MAP_FAILED = ctypes.c_void_p(-1).value


def mmap(address: int, length: int, prot: int, flags: int, fd: int = -1, offset: int = 0) -> int:
    """Map real memory and return its address. Raises OSError. Source: mmap(2)."""
    mapped: int | None = _LIBC.mmap(address, length, prot, flags, fd, offset)
    if mapped is None or mapped == _MAP_FAILED:
        raise _last_error()
    return mapped


def munmap(address: int, length: int) -> None:
    """Unmap real memory. Raises OSError. Source: munmap(2)."""
    if _LIBC.munmap(address, length) < 0:
        raise _last_error()


def mprotect(address: int, length: int, prot: int) -> None:
    """Set the protection of real memory. Raises OSError. Source: mprotect(2)."""
    if _LIBC.mprotect(address, length, prot) < 0:
        raise _last_error()


def madvise(address: int, length: int, advice: int) -> None:
    """Give advice about real memory. Raises OSError. Source: madvise(2)."""
    if _LIBC.madvise(address, length, advice) < 0:
        raise _last_error()


def reset_signal(signo: int) -> None:
    """Set a real signal's disposition to SIG_DFL, from any thread. Python's own call works only in the main thread."""
    _LIBC.signal(signo, None)


def _last_error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
