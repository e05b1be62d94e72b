"""malloc on the simulated heap: glibc's, with one arena, a fixed mmap threshold and no caches.

Owns the book of chunks. The size words are also written into the simulated memory, because glibc's malloc touches
pages in this way. malloc trusts only the book: a program that overwrites a header does not confuse it.

A chunk is a header of 16 bytes (the size of the chunk before it, if that is free; its own size and flags) and the bytes
for the program, which may extend 8 bytes into the next header. Sizes are multiples of 16, at least 32.

Invariants: chunks, free chunks and the top lie back to back from the heap's start to the break, where the top ends. No
two free chunks touch, and none touches the top. `_free` is sorted by size, then address: the first that is large
enough is the best fit.

Answers to glibc malloc/malloc.c: _int_malloc(), sysmalloc(), _int_free(), systrim(). Differs: the mmap threshold
stays at 128 KiB, as after mallopt(M_MMAP_THRESHOLD), and counts the bytes asked for.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_left, insort

from shared.client.memory import Memory
from shared.client.mman import MemoryCalls
from shared.uapi.mman import Map, Mremap, Prot
from shared.uapi.page import PAGE_MASK, page_align

MMAP_THRESHOLD = 128 << 10
TOP_PAD = 128 << 10
TRIM_THRESHOLD = 128 << 10
HEADER = 16
MIN_CHUNK = 32
PTRDIFF_MAX = (1 << 63) - 1
PREV_INUSE = 1
IS_MMAPPED = 2


class Malloc:
    """One process's heap."""

    def __init__(self, calls: MemoryCalls, mem: Memory) -> None:
        self._calls = calls
        self._mem = mem
        self._used: dict[int, int] = {}
        self._mapped: dict[int, int] = {}
        self._free: list[tuple[int, int]] = []
        self._free_sizes: dict[int, int] = {}
        self._free_by_end: dict[int, int] = {}
        self._top = 0
        self._top_bytes = 0

    def malloc(self, size: int) -> int:
        """Return the address, aligned to 16, of `size` fresh bytes. Raises OSError(ENOMEM). Source: malloc(3)."""
        _check_size(size)
        if size >= MMAP_THRESHOLD:
            return self._map(size)
        wanted = _chunk_bytes(size)
        place = bisect_left(self._free, (wanted, 0))
        chunk = self._take_free(place, wanted) if place < len(self._free) else self._take_top(wanted)
        return chunk + HEADER

    def calloc(self, count: int, size: int) -> int:
        """Return the address of `count` times `size` zero bytes. Raises OSError(ENOMEM). Source: malloc(3)."""
        if count < 0:
            raise ValueError("a negative count")
        total = count * size
        old_top, old_top_bytes = self._top, self._top_bytes
        ptr = self.malloc(total)
        chunk = ptr - HEADER
        if chunk not in self._mapped:
            # The memory that brk has just added behind the old top is zero already. glibc does not clear it either.
            dirty = min(total, old_top_bytes - HEADER) if chunk == old_top else total
            self._mem.store(ptr, bytes(dirty))
        return ptr

    def realloc(self, ptr: int, size: int) -> int:
        """Resize the block at `ptr` and return its new address; the old bytes stay. `ptr` or `size` 0: as in malloc(3).

        Raises OSError(ENOMEM), with the old block untouched, and ValueError for a pointer that is not allocated.
        """
        if not ptr:
            return self.malloc(size)
        _check_size(size)
        chunk = ptr - HEADER
        if chunk not in self._used and chunk not in self._mapped:
            raise ValueError("realloc(): invalid pointer")
        if not size:
            self.free(ptr)
            return 0
        if chunk in self._mapped:
            return self._remap(chunk, size)
        old_bytes, wanted = self._used[chunk], _chunk_bytes(size)
        if size < MMAP_THRESHOLD and (old_bytes >= wanted or self._absorb_next(chunk, wanted)):
            self._cut(chunk, wanted)
            return ptr
        return self._move(ptr, min(old_bytes - 8, size), size)

    def free(self, ptr: int) -> None:
        """Free a block of malloc, calloc or realloc. A `ptr` of 0 does nothing.

        Raises ValueError, with glibc's words, for a pointer that is not allocated. Source: malloc(3).
        """
        if not ptr:
            return
        chunk = ptr - HEADER
        if chunk in self._mapped:
            self._calls.munmap(chunk, self._mapped[chunk])
            del self._mapped[chunk]
        elif chunk in self._used:
            self._release(chunk, self._used[chunk])
        else:
            raise ValueError(self._why_invalid(chunk))

    def usable_size(self, ptr: int) -> int:
        """Return the number of bytes that the program may use at `ptr`, a pointer from malloc.

        Source: malloc_usable_size(3).
        """
        chunk = ptr - HEADER
        if chunk in self._mapped:
            return self._mapped[chunk] - HEADER
        return self._used[chunk] - 8

    def _take_free(self, place: int, wanted: int) -> int:
        """Hand out the free chunk at `place` in the list, and keep the rest of it as a free chunk."""
        size, chunk = self._free[place]
        end, rest = chunk + size, size - wanted
        if rest < MIN_CHUNK:
            words = [(chunk + 8, size | PREV_INUSE), *self._next_header(end, PREV_INUSE)]
            wanted = size
        else:
            words = [(chunk + 8, wanted | PREV_INUSE), (chunk + wanted + 8, rest | PREV_INUSE), (end, rest)]
        self._mem.store_words(words)
        self._forget_free(chunk)
        if wanted != size:
            self._remember_free(chunk + wanted, end)
        self._used[chunk] = wanted
        return chunk

    def _take_top(self, wanted: int) -> int:
        """Hand out the start of the top. The top always keeps at least MIN_CHUNK bytes."""
        if self._top_bytes < wanted + MIN_CHUNK:
            self._grow_top(wanted + MIN_CHUNK + TOP_PAD)
        chunk, rest = self._top, self._top_bytes - wanted
        self._mem.store_words([(chunk + 8, wanted | PREV_INUSE), (chunk + wanted + 8, rest | PREV_INUSE)])
        self._top, self._top_bytes = chunk + wanted, rest
        self._used[chunk] = wanted
        return chunk

    def _grow_top(self, wanted: int) -> None:
        """Make the top `wanted` bytes long by moving the break.

        If the program itself has moved the break, start a new top.
        """
        top_end = self._top + self._top_bytes
        current = self._calls.brk(0)
        if current < top_end:
            raise ValueError("break adjusted to free malloc space")
        start = self._top if current == top_end else -(-current // HEADER) * HEADER
        end = page_align(start + wanted)
        if self._calls.brk(end) != end:
            raise _no_memory()
        if start != self._top and self._top:
            self._abandon_top()
        self._top, self._top_bytes = start, end - start

    def _abandon_top(self) -> None:
        """Turn the top into a free chunk with a fence behind it.

        The fence is never freed: the memory after it is not malloc's.
        """
        size = self._top_bytes - MIN_CHUNK
        fence = self._top + size
        if size < MIN_CHUNK:
            return
        self._mem.store_words([(self._top + 8, size | PREV_INUSE), (fence, size), (fence + 8, MIN_CHUNK)])
        self._remember_free(self._top, fence)

    def _release(self, chunk: int, size: int) -> None:
        """Free a chunk: merge it with its free neighbours or with the top, and trim the top."""
        start = self._free_by_end.get(chunk, chunk)
        end = chunk + size
        end += self._free_sizes.get(end, 0)
        if end == self._top:
            top_bytes = end - start + self._top_bytes
            self._mem.store_words([(start + 8, top_bytes | PREV_INUSE)])
        else:
            words = [(start + 8, (end - start) | PREV_INUSE), (end, end - start)]
            self._mem.store_words([*words, *self._next_header(end, 0)])
        self._used.pop(chunk, None)
        if start != chunk:
            self._forget_free(start)
        if end != chunk + size:
            self._forget_free(chunk + size)
        if end == self._top:
            self._top, self._top_bytes = start, top_bytes
            self._trim_top()
        else:
            self._remember_free(start, end)

    def _trim_top(self) -> None:
        """Give the whole pages of the top that exceed the pad back to the kernel.

        Source: glibc malloc/malloc.c:systrim().
        """
        if self._top_bytes < TRIM_THRESHOLD:
            return
        extra = (self._top_bytes - MIN_CHUNK - 1 - TOP_PAD) & PAGE_MASK
        end = self._top + self._top_bytes
        if extra <= 0 or self._calls.brk(0) != end or self._calls.brk(end - extra) != end - extra:
            return
        self._top_bytes -= extra
        self._mem.store_words([(self._top + 8, self._top_bytes | PREV_INUSE)])

    def _absorb_next(self, chunk: int, wanted: int) -> bool:
        """Grow a used chunk into the top or the free chunk behind it.

        Return False if that does not give `wanted` bytes.
        """
        size = self._used[chunk]
        following = chunk + size
        flag = self._prev_inuse(chunk)
        if following == self._top:
            rest = size + self._top_bytes - wanted
            if rest < MIN_CHUNK:
                return False
            self._mem.store_words([(chunk + 8, wanted | flag), (chunk + wanted + 8, rest | PREV_INUSE)])
            self._top, self._top_bytes = chunk + wanted, rest
            self._used[chunk] = wanted
            return True
        total = size + self._free_sizes.get(following, 0)
        if total < wanted:
            return False
        self._mem.store_words([(chunk + 8, total | flag), *self._next_header(chunk + total, PREV_INUSE)])
        self._forget_free(following)
        self._used[chunk] = total
        return True

    def _cut(self, chunk: int, wanted: int) -> None:
        """Free the part of a used chunk after `wanted` bytes, if it is large enough for a chunk."""
        rest = self._used[chunk] - wanted
        if rest < MIN_CHUNK:
            return
        self._mem.store_words([(chunk + 8, wanted | self._prev_inuse(chunk))])
        self._used[chunk] = wanted
        self._release(chunk + wanted, rest)

    def _map(self, size: int) -> int:
        total = _mapped_bytes(size)
        chunk = self._calls.mmap(0, total, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        self._mapped[chunk] = total
        self._mem.store_words([(chunk + 8, total | IS_MMAPPED)])
        return chunk + HEADER

    def _remap(self, chunk: int, size: int) -> int:
        """Resize a chunk that has a mapping of its own."""
        total, wanted = self._mapped[chunk], _mapped_bytes(size)
        if total == wanted:
            return chunk + HEADER
        try:
            moved = self._calls.mremap(chunk, total, wanted, Mremap.MAYMOVE)
        except OSError:
            if total >= wanted:
                return chunk + HEADER
            return self._move(chunk + HEADER, total - HEADER, size)
        del self._mapped[chunk]
        self._mapped[moved] = wanted
        self._mem.store_words([(moved + 8, wanted | IS_MMAPPED)])
        return moved + HEADER

    def _move(self, ptr: int, kept: int, size: int) -> int:
        new = self.malloc(size)
        self._mem.store(new, self._mem.load(ptr, kept))
        self.free(ptr)
        return new

    def _remember_free(self, start: int, end: int) -> None:
        insort(self._free, (end - start, start))
        self._free_sizes[start] = end - start
        self._free_by_end[end] = start

    def _forget_free(self, chunk: int) -> None:
        size = self._free_sizes.pop(chunk)
        del self._free_by_end[chunk + size]
        del self._free[bisect_left(self._free, (size, chunk))]

    def _prev_inuse(self, chunk: int) -> int:
        return 0 if chunk in self._free_by_end else PREV_INUSE

    def _next_header(self, chunk: int, flag: int) -> list[tuple[int, int]]:
        """Return the size word of a used chunk with PREV_INUSE as `flag` says; nothing for a fence."""
        return [(chunk + 8, self._used[chunk] | flag)] if chunk in self._used else []

    def _why_invalid(self, chunk: int) -> str:
        if self._top <= chunk < self._top + self._top_bytes:
            return "double free or corruption (top)"
        if any(start <= chunk < start + size for size, start in self._free):
            return "double free or corruption (!prev)"
        return "free(): invalid pointer"


def _chunk_bytes(size: int) -> int:
    """Size of the chunk for a request: 8 bytes of header are added; the other 8 are shared with the next chunk."""
    return max(MIN_CHUNK, (size + 8 + HEADER - 1) & -HEADER)


def _mapped_bytes(size: int) -> int:
    return page_align(_chunk_bytes(size) + 8)


def _check_size(size: int) -> None:
    if size < 0:
        raise ValueError("a negative size")
    if size > PTRDIFF_MAX:
        raise _no_memory()


def _no_memory() -> OSError:
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
