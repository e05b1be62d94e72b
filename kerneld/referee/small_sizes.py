"""Small sizes of kerneld's inner structures, so that short programs cross their borders.

kerneld keeps VMAs in chunks of 256, walks sixteen leaf tables at a time, takes frames in batches of 64. No program can
see these sizes, and a program of 40 calls has few of anything: it would never have two chunks. With these sizes it has
many. Owns the list, which has each size that decides how much is kept or done at once, and none that Linux defines.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kerneld.fs import proc_smaps, seq_file
from kerneld.mm import intervals
from kerneld.mm.calls import mincore, move_page_tables
from kerneld.mm.files import filemap, i_mmap, page_indexes
from kerneld.mm.frames import buddy, swap
from kerneld.mm.reclaim import shrink
from kerneld.mm.space import dying, munmap, pace, pagetable, pagewalk, rmap_walk, truncate, vma_tree
from kerneld.referee.difference import Here, replaced
from shared.uapi.page import PAGE_SIZE, PMD_SIZE

SMALL_SIZES: tuple[tuple[Any, str, Any], ...] = (
    (vma_tree, "CHUNK", 1),
    (intervals, "FEW", Here(2)),
    (i_mmap, "_WALKED_AT_ONCE", Here(1)),
    (filemap, "EVICTED_AT_ONCE", 1),
    (page_indexes, "_NODE_SHIFT", Here(3)),
    (page_indexes, "NODE_INDEXES", 8),
    (page_indexes, "_IN_NODE", Here(7)),
    (page_indexes, "_NODE_BYTES", Here(1)),
    (page_indexes, "_FEW", Here(1)),
    (buddy, "PCP_BATCH", 2),
    (buddy, "PCP_HIGH", 3),
    (buddy, "_SMALL", Here(1)),
    (swap, "_IOV_MAX", Here(1)),
    (swap, "_SCAN_SLOTS", Here(2)),
    (shrink, "BATCH_MAX", 2),
    (dying, "SLICE_SECONDS", 0.0),
    (dying, "_MOST_ALIKE", Here(1)),
    (dying, "_MANY_VMAS", Here(3)),
    (munmap, "_FEW", Here(1)),
    (munmap, "_OF_FILE_AT_ONCE", Here(PMD_SIZE)),
    (truncate, "_UNMAPPED_AT_ONCE", Here(PMD_SIZE)),
    (truncate, "_DROPPED_AT_ONCE", Here(1)),
    (truncate, "_REMOVED_AT_ONCE", Here(1)),
    (pace, "_PIECE_SECONDS", Here(0.0)),
    (pace, "_AT_ONCE", Here(PMD_SIZE)),
    (pace, "_FEW_VMAS", Here(1)),
    (mincore, "_AT_ONCE", Here(PAGE_SIZE)),
    (move_page_tables, "_MOVED_AT_ONCE", Here(PMD_SIZE)),
    (pagetable, "_MAX_CACHED", Here(1)),
    (pagetable, "_FEW_TABLES", Here(1)),
    (pagewalk, "_TABLES_AT_ONCE", Here(1)),
    (pagewalk, "_FEW_TABLES", Here(0)),
    (pagewalk, "FEW_ENTRIES", 1),
    (rmap_walk, "_NEAR", Here(1)),
    (proc_smaps, "_LEAVES_AT_ONCE", Here(1)),
    (seq_file, "_MOST_AT_ONCE", Here(1)),
)
"""A module, a name in it, and the small size: `Here` where modules beside it have another size by this name."""


@contextlib.contextmanager
def small_sizes() -> Iterator[None]:
    """Give kerneld small sizes. No address space may live, and no file be mapped, when they come and when they go."""
    with replaced(SMALL_SIZES):
        yield
