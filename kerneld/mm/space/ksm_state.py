"""What KSM knows of a machine: settings, counters, the address spaces to scan, and the reverse map of merged pages.

Owns the data only. `kerneld.mm.ksm` changes them; the walk from a merged frame to its entries reads them. Answers to
the data structures of Linux v6.8 mm/ksm.c: struct ksm_stable_node, ksm_rmap_item, ksm_mm_slot, ksm_scan.

| object       | is                                                                                              |
|--------------|-------------------------------------------------------------------------------------------------|
| `RmapItem`   | one page of an address space that was scanned: in no tree, in the unstable one, or at a node     |
| `StableNode` | one merged frame, with the items of the pages that it serves; or a chain: frames of one content  |
| `MmSlot`     | one address space with its items, in the order of their addresses                                |

A stable node holds no reference of its frame. The frame's mapping is the number of the node: when the frame is freed
and used again, the number is another one, and the node is stale (Linux: get_ksm_page()).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kerneld.mm.frames.frames import PG_KSM, Frames
from kerneld.mm.space.rmap import AnonVma
from kerneld.mm.treap import Treap, TreapNode
from shared.uapi.page import Pfn, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct

RUN_STOP, RUN_MERGE, RUN_UNMERGE = 0, 1, 2
"""Values of /sys/kernel/mm/ksm/run."""
DEFAULT_PAGES_TO_SCAN = 100
RMAP_ITEM_BYTES = 64
"""sizeof(struct ksm_rmap_item) on x86-64 with NUMA: what each scanned page costs, for the profit."""


class RmapItem(TreapNode):
    """One page of an address space that KSM has scanned."""

    __slots__ = ("address", "age", "anon_vma", "head", "index", "mm", "oldchecksum", "remaining_skips", "seqnr")

    def __init__(self, mm: MmStruct, address: Vaddr) -> None:
        self.mm = mm
        self.address = address
        self.oldchecksum = 0
        self.age = 0
        """How many scans have met the page, at most 255."""
        self.remaining_skips = 0
        self.seqnr: int | None = None
        """The scan in which it was put into the unstable tree; None if it is not there (Linux: UNSTABLE_FLAG)."""
        self.head: StableNode | None = None
        """The node of the merged frame that serves the page (Linux: STABLE_FLAG)."""
        self.anon_vma: AnonVma | None = None
        """The anon_vma of the page's VMA when it was merged: it leads to the entries, also of children."""
        self.index = 0
        """The page offset of the page in its VMA then."""


class StableNode(TreapNode):
    """A merged frame; or a chain, the nodes of frames with the same content, of which each serves many pages."""

    __slots__ = ("__weakref__", "chain", "dups", "has_left", "items", "number", "pfn", "prune_at")

    def __init__(self, frames: Frames, pfn: Pfn) -> None:
        self.number = frames.register_mapping(self)
        self.pfn = pfn
        self.items: dict[RmapItem, None] = {}
        """The pages that the frame serves, the oldest first. Linux's list has the newest first."""
        self.chain: StableNode | None = None
        """The chain that the node is in, instead of in the tree."""
        self.dups: dict[StableNode, None] | None = None
        """Of a chain: its nodes, the last one is tried first. None: this is no chain."""
        self.prune_at = 0.0
        """Of a chain: the time by CLOCK_MONOTONIC, in seconds, of the last search for stale nodes in it."""
        self.has_left = False
        """Whether it has been removed: it serves no page any more, and its last items are still to be set free."""

    def is_current(self, frames: Frames) -> bool:
        """Return whether the frame is still the merged one. Source: Linux v6.8 mm/ksm.c:get_ksm_page()."""
        return frames.mapping_at[self.pfn] == self.number and frames.flags_at[self.pfn] & PG_KSM != 0


class MmSlot:
    """An address space with mergeable memory (Linux: struct ksm_mm_slot)."""

    __slots__ = ("after", "before", "items", "mm")

    def __init__(self, mm: MmStruct) -> None:
        self.mm = mm
        self.items: list[RmapItem] = []
        self.before: MmSlot | None = None
        self.after: MmSlot | None = None
        """The neighbours in `MmSlots`."""


class MmSlots:
    """The address spaces in the order of the scan: a linked list, for thousands may end at once (Linux: mm_node)."""

    __slots__ = ("_nr", "first", "last")

    def __init__(self) -> None:
        self.first: MmSlot | None = None
        self.last: MmSlot | None = None
        self._nr = 0

    def __len__(self) -> int:
        return self._nr

    def __iter__(self) -> Iterator[MmSlot]:
        slot = self.first
        while slot is not None:
            yield slot
            slot = slot.after

    def insert(self, following: MmSlot | None, slot: MmSlot) -> None:
        """Put in a slot before another one, or at the end."""
        before = self.last if following is None else following.before
        slot.before, slot.after = before, following
        if before is None:
            self.first = slot
        else:
            before.after = slot
        if following is None:
            self.last = slot
        else:
            following.before = slot
        self._nr += 1

    def remove(self, slot: MmSlot) -> None:
        """Take out a slot, which must be here."""
        if slot.before is None:
            self.first = slot.after
        else:
            slot.before.after = slot.after
        if slot.after is None:
            self.last = slot.before
        else:
            slot.after.before = slot.before
        slot.before = slot.after = None
        self._nr -= 1


@dataclass(slots=True)
class KsmSettings:
    """The files of /sys/kernel/mm/ksm that can be written. Source: Documentation/admin-guide/mm/ksm.rst."""

    run: int = RUN_STOP
    pages_to_scan: int = DEFAULT_PAGES_TO_SCAN
    sleep_millisecs: int = 20
    max_page_sharing: int = 256
    stable_node_chains_prune_millisecs: int = 2000
    merge_across_nodes: int = 1
    use_zero_pages: bool = False
    smart_scan: bool = True
    advisor_mode: str = "none"
    advisor_max_cpu: int = 70
    advisor_min_pages_to_scan: int = 500
    advisor_max_pages_to_scan: int = 30_000
    advisor_target_scan_time: int = 200


@dataclass(slots=True)
class Scan:
    """The cursor (Linux: struct ksm_scan)."""

    slot: MmSlot | None = None
    """The address space under scan; None between two full scans."""
    address: Vaddr = 0
    place: int = 0
    """The number of the slot's items before the cursor."""
    has_mergeable: bool = False
    """Whether the scan has met a mergeable VMA in the address space (Linux: the address is not 0)."""
    seqnr: int = 0
    """The number of full scans so far."""


@dataclass(slots=True)
class AdvisorContext:
    """What the scan-time advisor remembers of the last full scan (Linux: struct advisor_ctx)."""

    start_scan: float = 0.0
    scan_time: int = 0
    change: int = 0
    cpu_time: float = 0.0


@dataclass(slots=True, eq=False)
class Ksm:
    """KSM of one machine."""

    settings: KsmSettings = field(default_factory=KsmSettings)
    slots: MmSlots = field(default_factory=MmSlots)
    """The address spaces with mergeable memory."""
    scan: Scan = field(default_factory=Scan)
    stable: Treap[StableNode] = field(default_factory=Treap)
    unstable: Treap[RmapItem] = field(default_factory=Treap)
    leaving: list[StableNode] = field(default_factory=list)
    """Nodes that have been removed, and have items that are still to be set free."""
    to_split: list[Pfn] = field(default_factory=list)
    """Frames of huge pages that so many map that the scan splits them in pieces."""
    to_prune: list[StableNode] = field(default_factory=list)
    """Chains that are too long to be looked through in one search: the scan does it in pieces."""
    advisor: AdvisorContext = field(default_factory=AdvisorContext)
    cpu_seconds: float = 0.0
    """The processor time of ksmd."""
    is_held: bool = False
    """Whether a write to a setting that excludes ksmd is under way, in pieces (Linux: ksm_thread_mutex)."""
    pages_scanned: int = 0
    pages_skipped: int = 0
    pages_shared: int = 0
    pages_sharing: int = 0
    pages_unshared: int = 0
    rmap_items: int = 0
    stable_node_chains: int = 0
    stable_node_dups: int = 0

    @property
    def should_run(self) -> bool:
        """Whether ksmd has something to do. Source: Linux v6.8 mm/ksm.c:ksmd_should_run()."""
        return self.settings.run == RUN_MERGE and bool(self.slots) and not self.is_held
