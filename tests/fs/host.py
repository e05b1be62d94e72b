"""The host's kernel as the referee: its /proc, and real memory to show in it."""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.uapi.page import PAGE_SIZE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)

MAPS_LINE = re.compile(
    r"^[0-9a-f]{8,16}-[0-9a-f]{8,16} [r-][w-][x-][ps] [0-9a-f]{8,} [0-9a-f]{2,}:[0-9a-f]{2,} \d+ (?: *(?P<name>\S.*))?$"
)


def proc(path: str) -> str:
    return Path(f"/proc/{path}").read_text(errors="surrogateescape")


@contextmanager
def host_memory(nr_pages: int, flags: int = mmap.MAP_PRIVATE) -> Iterator[int]:
    """Real anonymous memory in a mapping of its own: what lies beside it has no rights, so that nothing merges."""
    length = (nr_pages + 2) * PAGE_SIZE
    base = _libc.mmap(None, length, 0, flags | mmap.MAP_ANONYMOUS, -1, 0)
    start = base + PAGE_SIZE
    assert _libc.mprotect(start, nr_pages * PAGE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    yield start
    assert _libc.munmap(base, length) == 0


def smaps_of(text: str, start: int) -> dict[str, str]:
    """Return the lines of smaps about the mapping that starts at an address, by key."""
    found: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        if MAPS_LINE.match(line):
            inside = line.startswith(f"{start:08x}-")
        elif inside:
            key, _, value = line.partition(":")
            found[key] = value.strip()
    return found


def pagemap_of(start: int, nr_pages: int) -> list[int]:
    with open("/proc/self/pagemap", "rb") as pagemap:
        pagemap.seek(start // PAGE_SIZE * 8)
        return memoryview(pagemap.read(nr_pages * 8)).cast("Q").tolist()
