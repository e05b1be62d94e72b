"""Finds the mapped pages of a real process that can be written without a fault, from /proc/kpageflags.

Owns nothing. No file of /proc shows the write bit of an entry. It can be inferred from the page's flags in most cases.
Only root may read them. Answers to Linux v6.8 fs/proc/page.c:stable_page_flags() and, for what they mean, to
include/linux/page-flags.h (PG_anon_exclusive) and mm/mmap.c:vma_wants_writenotify().

| page                                  | written without a fault                                          |
|---------------------------------------|------------------------------------------------------------------|
| anonymous, of a private mapping       | if it is exclusive: a fork clears that for both processes, and a |
|                                       | write by the last owner sets it again                            |
| of a file, of a private mapping       | never: the first write makes a copy                              |
| of a file system that writes back     | if it is dirty: the first write takes a fault, which marks it    |
| of shared memory, tmpfs, a huge page  | always: the first write takes no fault                           |

Differs from Linux: a page that is dirty by a write(2), or by another process, counts as written by this process.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
_KPF_DIRTY, _KPF_ANON, _KPF_SWAPBACKED, _KPF_COMPOUND_TAIL, _KPF_HUGE, _KPF_NOPAGE, _KPF_THP = (
    1 << bit for bit in (4, 12, 14, 16, 17, 20, 22)
)
_KPF_ANON_EXCLUSIVE = 1 << 34
"""KPF_MAPPEDTODISK, later KPF_OWNER_2. For an anonymous page the bit is PG_anon_exclusive."""
_ENTRY_BYTES = 8
_FRAMES_OF_HUGE = 512
_MOST_GAP = 64
"""The largest gap between two wanted frames that is read too: that costs less than another read."""


def writeable(pfns: Words, is_private: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return for each frame of a writable mapping whether a write takes no fault.

    Raises OSError if this process may not read page flags.
    """
    fd = os.open("/proc/kpageflags", os.O_RDONLY | os.O_CLOEXEC)
    try:
        flags = _read(fd, pfns)
        is_tail = (flags & np.uint64(_KPF_COMPOUND_TAIL | _KPF_THP)) == np.uint64(_KPF_COMPOUND_TAIL | _KPF_THP)
        exclusive = flags.copy()
        # Until v6.11 only the head of a huge page has its flags.
        exclusive[is_tail] |= _read(fd, pfns[is_tail] & ~np.uint64(_FRAMES_OF_HUGE - 1))
    finally:
        os.close(fd)
    own = ((flags & np.uint64(_KPF_ANON)) != 0) & ((exclusive & np.uint64(_KPF_ANON_EXCLUSIVE)) != 0)
    noted = (flags & np.uint64(_KPF_DIRTY | _KPF_SWAPBACKED | _KPF_HUGE | _KPF_NOPAGE)) != 0
    result: npt.NDArray[np.bool_] = np.where(is_private, own, noted)
    return result


def _read(fd: int, pfns: Words) -> Words:
    """Return the flags of each frame; neighbours are read together."""
    flags = np.zeros(len(pfns), dtype=np.uint64)
    order = np.argsort(pfns, kind="stable")
    ordered = pfns[order]
    breaks = np.flatnonzero(np.diff(ordered) > np.uint64(_MOST_GAP)) + 1 if len(pfns) else np.zeros(0, dtype=np.int64)
    for run in np.split(np.arange(len(pfns)), breaks):
        if not len(run):
            continue
        low, high = int(ordered[run[0]]), int(ordered[run[-1]])
        raw = os.pread(fd, (high - low + 1) * _ENTRY_BYTES, low * _ENTRY_BYTES)
        words = np.frombuffer(raw.ljust((high - low + 1) * _ENTRY_BYTES, b"\0"), dtype=np.uint64)
        flags[order[run]] = words[(ordered[run] - np.uint64(low)).astype(np.int64)]
    return flags
