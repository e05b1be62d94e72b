"""/proc/kpagecount and /proc/kpageflags: a 64-bit word for each frame.

Answers to Linux v6.8 fs/proc/page.c: kpagecount_read(), stable_page_flags(), and linux/kernel-page-flags.h.
"""

from __future__ import annotations

import errno

import numpy as np
import numpy.typing as npt

from kerneld.errors import SysError
from kerneld.hw.scalars import u64
from kerneld.mm.frames.frames import (
    PG_ACTIVE,
    PG_ANON,
    PG_DIRTY,
    PG_KSM,
    PG_LRU,
    PG_REFERENCED,
    PG_SWAPBACKED,
    PG_SWAPCACHE,
    PG_TABLE,
    PG_UNEVICTABLE,
    ZERO_PFN,
    Frames,
    Pfns,
)
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR, PG_LARGE

Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]

_ENTRY_BYTES = 8
KPF_REFERENCED, KPF_UPTODATE, KPF_DIRTY, KPF_LRU, KPF_BUDDY, KPF_MMAP = 2, 3, 4, 5, 10, 11
KPF_ACTIVE, KPF_ANON, KPF_SWAPCACHE, KPF_SWAPBACKED, KPF_COMPOUND_HEAD, KPF_COMPOUND_TAIL = 6, 12, 13, 14, 15, 16
KPF_UNEVICTABLE, KPF_KSM, KPF_THP, KPF_ZERO_PAGE, KPF_PGTABLE, KPF_MLOCKED = 18, 21, 22, 24, 26, 33
"""Bit numbers in the word of a frame."""
OF_FOLIOS = sum(
    1 << bit
    for bit in (
        KPF_REFERENCED, KPF_UPTODATE, KPF_DIRTY, KPF_LRU, KPF_ACTIVE, KPF_SWAPBACKED, KPF_UNEVICTABLE, KPF_MLOCKED,
    )
)  # fmt: skip
"""What Linux keeps only in the `page->flags` of a huge page's first page."""


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
    words = stable_page_flags(frames, window)
    in_block = frames.buddy.is_free()
    in_block[frames.buddy.pcp] = False
    words[in_block[window]] |= u64(1 << KPF_BUDDY)
    return words.tobytes()


def stable_page_flags(frames: Frames, at: slice | Pfns) -> Words:
    """Return the KPF_* bits of some frames, without KPF_BUDDY. The cost is that of these frames alone."""
    pfns = np.arange(at.start, at.stop, dtype=np.int64) if isinstance(at, slice) else at
    flags = frames.flags[at]
    anon = (flags & PG_ANON) != 0
    is_large = (flags & PG_LARGE) != 0
    is_tail = is_large & (pfns % HPAGE_PMD_NR != 0)
    cached = (frames.mapping[at] != 0) & ~anon
    words = np.zeros(len(flags), dtype=np.uint64)
    for bit, mask in (
        (KPF_REFERENCED, (flags & PG_REFERENCED) != 0),
        (KPF_UPTODATE, anon | cached | ((flags & PG_SWAPCACHE) != 0)),
        (KPF_DIRTY, (flags & PG_DIRTY) != 0),
        (KPF_LRU, (flags & PG_LRU) != 0),
        (KPF_ACTIVE, (flags & PG_ACTIVE) != 0),
        (KPF_MMAP, frames.mapcount[at] > 0),
        (KPF_ANON, anon),
        (KPF_KSM, (flags & PG_KSM) != 0),
        (KPF_SWAPCACHE, (flags & PG_SWAPCACHE) != 0),
        (KPF_UNEVICTABLE, (flags & PG_UNEVICTABLE) != 0),
        (KPF_MLOCKED, (flags & PG_UNEVICTABLE) != 0),
        (KPF_SWAPBACKED, (flags & PG_SWAPBACKED) != 0),
        (KPF_COMPOUND_HEAD, is_large & ~is_tail),
        (KPF_COMPOUND_TAIL, is_tail),
        (KPF_THP, is_large),
        (KPF_ZERO_PAGE, _is_zero_page(frames, pfns)),
        (KPF_PGTABLE, (flags & PG_TABLE) != 0),
    ):
        words[mask] |= np.uint64(1 << bit)
    if is_tail.any():
        words[is_tail] = words_of_tails(frames, pfns[is_tail], words[is_tail])
    return words


def words_of_tails(_frames: Frames, _pfns: Pfns, words: Words) -> Words:
    """Return the words of frames of huge pages that are not their first: without what only the first has."""
    return words & u64(~OF_FOLIOS)


def _is_zero_page(frames: Frames, pfns: Pfns) -> Mask:
    """Return for each frame whether it is the zero page, or a part of the huge zero page."""
    is_zero: Mask = pfns == ZERO_PFN
    zero = frames.huge.zero_pfn
    if zero is not None:
        is_zero |= (pfns >= zero) & (pfns < zero + HPAGE_PMD_NR)
    return is_zero
