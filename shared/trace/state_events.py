"""The events that a record of the machine needs and a trace for people does not: with them every part of the machine's
memory can be rebuilt from nothing but records (`shared.recording`).

They belong to `shared.trace.events`, whose rules hold here too. Only a reader that names their system gets them: they
are many, and the other events have what people ask for. `filemap` and `kmem` have Linux's names. `mm`, `pgtable`,
`swap_state` and `snapshot` are kerneld's own.

A snapshot is no format of its own: between `snapshot:begin` and `snapshot:end` come the events that would make the
machine, as it is, from an empty one.
"""

from __future__ import annotations

from enum import IntEnum

from shared.trace.event import Event, Field, Show

D, X, P, E, T = Show.DECIMAL, Show.HEX, Show.PFN, Show.ENTRY, Show.TEXT


class Level(IntEnum):
    """Which level of a page table a table has: its entries name pages, or tables of the level below."""

    DEPOSITED = 0
    """Kept for the entry of a huge page, and in no page table."""
    PTE = 1
    PMD = 2
    PUD = 3
    PGD = 4


_TABLE = (Field("mm", "I"), Field("level", "I", D, Level), Field("vaddr", "Q", X), Field("pfn", "Q", P))
_CACHED = (Field("pfn", "Q", P), Field("nr_pages", "I"), Field("mapping", "I"), Field("index", "Q"))
_RUN = (Field("pfn", "Q", P), Field("nr_pages", "I"), Field("order", "I"))

MM_PAGE_PCPU_DRAIN = Event(
    67, "kmem:mm_page_pcpu_drain", _RUN, "Free frames go from the per-cpu list to the blocks of the buddy allocator."
)
MM_PAGE_ALLOC_ZONE_LOCKED = Event(
    68,
    "kmem:mm_page_alloc_zone_locked",
    _RUN,
    "Free frames go from a block of the buddy allocator to the per-cpu list.",
)
MM_PAGE_FREE_BATCHED = Event(
    69, "kmem:mm_page_free_batched", _RUN, "Frames are given back together, to the blocks and not to the per-cpu list."
)
VMA_FILE = Event(
    160,
    "mm:vma_file",
    (
        Field("mm", "I"), Field("mapping", "I"), Field("start", "Q", X), Field("dev", "Q", X), Field("ino", "Q"),
        Field("name", "128s", T),
    ),
    "The VMA that is inserted now maps a file. mapping is the number by which mm_filemap events name the file.",
)  # fmt: skip
MM_LAYOUT = Event(
    161,
    "mm:mm_layout",
    (
        Field("mm", "I"),
        Field("pid", "I"),
        Field("start_brk", "Q", X),
        Field("brk", "Q", X),
        Field("start_stack", "Q", X),
    ),
    "A process has a new address space: where its heap and its stack begin.",
)
MM_BRK = Event(162, "mm:mm_brk", (Field("mm", "I"), Field("brk", "Q", X)), "The heap ends somewhere else now.")
TABLE_ALLOC = Event(168, "pgtable:alloc", _TABLE, "A page table gets a table. vaddr is the first address it covers.")
TABLE_FREE = Event(169, "pgtable:free", _TABLE, "A page table loses a table: it is freed, moved or deposited.")
ACCESSED_DIRTY = Event(
    170,
    "pgtable:accessed_dirty",
    (Field("mm", "I"), Field("nr_pages", "I"), Field("vaddr", "Q", X), Field("old", "Q", E), Field("new", "Q", E)),
    "The processor marks entries as accessed or dirty, or reclaim takes the accessed marks away.",
)
ADD_TO_PAGE_CACHE = Event(
    176, "filemap:mm_filemap_add_to_page_cache", _CACHED, "Pages of a file come into the page cache."
)
DELETE_FROM_PAGE_CACHE = Event(
    177, "filemap:mm_filemap_delete_from_page_cache", _CACHED, "Pages of a file leave the page cache."
)
SHMEM_SWAP = Event(
    178,
    "swap_state:shmem",
    (Field("mapping", "I"), Field("index", "Q"), Field("slot", "Q", P)),
    "A page of a file in memory has a slot of the swap file; 0: it has none any more.",
)
ADD_TO_SWAP_CACHE = Event(
    179, "swap_state:add_to_swap_cache", (Field("slot", "Q", P), Field("pfn", "Q", P)), "A frame gets a swap slot."
)
DELETE_FROM_SWAP_CACHE = Event(
    180,
    "swap_state:delete_from_swap_cache",
    (Field("slot", "Q", P), Field("pfn", "Q", P)),
    "A frame has no swap slot any more.",
)
SNAPSHOT_BEGIN = Event(
    192,
    "snapshot:begin",
    (Field("nr_frames", "Q"), Field("nr_slots", "Q"), Field("first_pfn", "I"), Field("zero_pfn", "I")),
    "What follows makes the machine from an empty one. nr_frames is 0 for a reader that may not see frames.",
)
SNAPSHOT_END = Event(
    193, "snapshot:end", (Field("nr_mms", "I"),), "The machine is whole. nr_mms is the number of address spaces."
)
SNAPSHOT_TASK = Event(
    194,
    "snapshot:task",
    (Field("comm", "16s", T), Field("pid", "I"), Field("ppid", "I"), Field("mm", "I"), Field("uid", "I")),
    "A process that was there before; its parent, if kerneld knows it.",
)

STATE_EVENTS: tuple[Event, ...] = (
    MM_PAGE_PCPU_DRAIN, MM_PAGE_ALLOC_ZONE_LOCKED, MM_PAGE_FREE_BATCHED, VMA_FILE, MM_LAYOUT, MM_BRK, TABLE_ALLOC,
    TABLE_FREE, ACCESSED_DIRTY, ADD_TO_PAGE_CACHE, DELETE_FROM_PAGE_CACHE, SHMEM_SWAP, ADD_TO_SWAP_CACHE,
    DELETE_FROM_SWAP_CACHE, SNAPSHOT_BEGIN, SNAPSHOT_END, SNAPSHOT_TASK,
)  # fmt: skip
