"""/proc/kpagecount and /proc/kpageflags: a 64-bit word for each frame.

Answers to Linux v6.8 fs/proc/page.c: kpagecount_read(), stable_page_flags(), and linux/kernel-page-flags.h.
"""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt

from kerneld.errors import SysError
from kerneld.mm.frames.frames import (
    PG_ACTIVE,
    PG_ANON,
    PG_DIRTY,
    PG_LRU,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_TABLE,
    PG_UNEVICTABLE,
    ZERO_PFN,
    Frames,
)
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE

Mask = npt.NDArray[np.bool_]

_ENTRY_BYTES = 8
KPF_REFERENCED, KPF_UPTODATE, KPF_DIRTY, KPF_LRU, KPF_BUDDY, KPF_MMAP = 2, 3, 4, 5, 10, 11
KPF_ACTIVE, KPF_ANON, KPF_SWAPCACHE, KPF_SWAPBACKED, KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL = 6, 12, 13, 14, 15, 16
KPF_UNEVICTABLE, KPF_THP, KPF_ZERO_PAGE, KPF_PGTABLE = 18, 22, 24, 26
"""Bit numbers in the word of a frame."""
_OF_HEADS = PG_REFERENCED | PG_DIRTY | PG_LRU | PG_ACTIVE | PG_SWAPBACKED | PG_UNEVICTABLE
"""Flags that Linux keeps only in the `page->flags` of a huge page's first page. Tail pages have none of them."""


def _window(frames: Frames, offset: int, length: int) -> slice:
    """Return the frames of a read. Raises SysError(EINVAL) unless offset and length are multiples of 8."""
    if offset % _ENTRY_BYTES or length % _ENTRY_BYTES:
        raise SysError(errno.EINVAL)
    first = min(offset // _ENTRY_BYTES, frames.ram.nr_frames)
    return slice(first, min(first + length // _ENTRY_BYTES, frames.ram.nr_frames))


def read_kpagecount(frames: Frames, offset: int, length: int) -> bytes:
    """Return for each frame from offset / 8 on the number of page-table entries that map it.

    Raises as `_window` does.
    """
    return frames.mapcount[_window(frames, offset, length)].astype(np.uint64).tobytes()


def read_kpageflags(frames: Frames, offset: int, length: int) -> bytes:
    """Return the KPF_* bits of each frame from offset / 8 on. Raises as `_window` does.

    Frames on the per-cpu list have no bits: they are free, but in no free block.
    """
    window = _window(frames, offset, length)
    flags = frames.flags[window]
    anon = (flags & PG_ANON) != 0
    is_large = (flags & PG_LARGE) != 0
    is_tail = is_large & (np.arange(window.start, window.stop) % HPAGE_PMD_NR != 0)
    # The flags of a huge page are kept only at its first frame.
    flags = np.where(is_tail, flags & ~np.uint32(_OF_HEADS), flags)
    cached = (frames.mapping[window] != 0) & ~anon
    is_zero = _zero_pages(frames)
    in_block = frames.buddy.is_free()
    in_block[frames.buddy.pcp] = False
    words = np.zeros(len(flags), dtype=np.uint64)
    for bit, mask in (
        (KPF_REFERENCED, (flags & PG_REFERENCED) != 0),
        (KPF_UPTODATE, (anon | cached | ((flags & PG_SWAPCACHE) != 0)) & ~is_tail),
        (KPF_DIRTY, (flags & PG_DIRTY) != 0),
        (KPF_LRU, (flags & PG_LRU) != 0),
        (KPF_ACTIVE, (flags & PG_ACTIVE) != 0),
        (KPF_BUDDY, in_block[window]),
        (KPF_MMAP, frames.mapcount[window] > 0),
        (KPF_ANON, anon),
        (KPF_SWAPCACHE, (flags & PG_SWAPCACHE) != 0),
        (KPF_UNEVICTABLE, (flags & PG_UNEVICTABLE) != 0),
        (KPF_SWAPBACKED, (flags & PG_SWAPBACKED) != 0),
        (KPF_COMPOUND_HEAD, is_large & ~is_tail),
        (KPF_COMPOUND_TAIL, is_tail),
        (KPF_THP, is_large),
        (KPF_ZERO_PAGE, is_zero[window]),
        (KPF_PGTABLE, (flags & PG_TABLE) != 0),
    ):
        words[mask] |= np.uint64(1 << bit)
    return words.tobytes()


def _zero_pages(frames: Frames) -> Mask:
    """Return for each frame whether it is the zero page, or a part of the huge zero page."""
    is_zero = np.zeros(frames.ram.nr_frames, dtype=np.bool_)
    is_zero[ZERO_PFN] = True
    zero = frames.huge.zero_pfn
    if zero is not None:
        is_zero[zero : zero + HPAGE_PMD_NR] = True
    return is_zero
