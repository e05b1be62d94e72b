"""/proc/meminfo, vmstat and buddyinfo: the use of the machine's memory.

Each read counts the frames again. So there are no counters that could become wrong. Answers to Linux v6.8
fs/proc/meminfo.c, mm/vmstat.c, mm/show_mem.c:si_mem_available() and mm/util.c:vm_commit_limit().

Differs from Linux: there is one zone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kerneld.mm.frames.frames import PG_ANON, PG_DIRTY, PG_SWAPBACKED, PG_SWAPCACHE, PG_TABLE, Frames
from kerneld.mm.frames.huge_frames import HPAGE_PMD_NR
from kerneld.mm.frames.lru import LruList, lru_sizes_of
from kerneld.mm.limits import Sysctl
from kerneld.mm.space.overcommit import vm_commit_limit
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE

_VMALLOC_TOTAL_KB = (1 << 45) - 1 >> 10
"""VMALLOC_TOTAL of x86-64 with four-level tables. Nothing uses this memory here."""
_NR_COUNTS = 7 + len(LruList) + 1
_WORKINGSET_EVENTS = [
    f"workingset_{what}_{kind}" for what in ("refault", "activate", "restore") for kind in ("anon", "file")
]
_EVENTS_BEFORE_FAULTS = ("allocstall_movable", "pgactivate", "pgdeactivate", "pglazyfree")
_EVENTS_AFTER_FAULTS = (
    "pglazyfreed", "pgrefill", "pgsteal_kswapd", "pgsteal_direct", "pgscan_kswapd", "pgscan_direct", "pgscan_anon",
    "pgscan_file", "pgsteal_anon", "pgsteal_file", "oom_kill",
)  # fmt: skip
"""In the order of /proc/vmstat."""


class PageCounts(NamedTuple):
    """Frames by use, in pages. File pages include those of shared anonymous memory, as in Linux's NR_FILE_PAGES."""

    total: int
    free: int
    anon: int
    file: int
    shmem: int
    mapped: int
    dirty: int
    tables: int
    swap_cached: int
    anon_huge: int
    """The anonymous pages in huge pages."""
    lists: list[int]
    """The pages on each `LruList`; the last number is for unevictable pages."""

    @property
    def active(self) -> int:
        """Pages on the active lists."""
        return self.lists[LruList.ACTIVE_ANON] + self.lists[LruList.ACTIVE_FILE]

    @property
    def inactive(self) -> int:
        """Pages on the inactive lists."""
        return self.lists[LruList.INACTIVE_ANON] + self.lists[LruList.INACTIVE_FILE]

    @property
    def unevictable(self) -> int:
        """Pages locked in memory."""
        return self.lists[-1]


def count_pages(frames: Frames) -> PageCounts:
    """Count every frame by its use."""
    counted = np.sum([_count_part(frames, part) for part in frames.parts()], axis=0).tolist()
    anon, file, shmem, mapped, dirty, tables, swap_cached, *lists = counted
    return PageCounts(
        total=frames.total_pages,
        free=frames.free_pages,
        anon=anon,
        file=file,
        shmem=shmem,
        mapped=mapped,
        dirty=dirty,
        tables=tables,
        swap_cached=swap_cached,
        anon_huge=len(frames.huge.entire_mapcount) * HPAGE_PMD_NR,
        lists=lists,
    )


def _count_part(frames: Frames, part: slice) -> list[int]:
    """Count a part of the frames, in the order of `PageCounts`. A free frame has no flags, and no mapping."""
    flags = frames.flags[part]
    if not flags.any():
        return [0] * _NR_COUNTS
    is_mapped = frames.mapcount[part] > 0
    anon = (flags & PG_ANON) != 0
    file = (frames.mapping[part] != 0) & ~anon
    shmem = file & ((flags & PG_SWAPBACKED) != 0)
    kinds = (
        anon & is_mapped,
        file,
        shmem,
        file & is_mapped,
        file & ~shmem & ((flags & PG_DIRTY) != 0),
        flags & PG_TABLE,
        flags & PG_SWAPCACHE,
    )
    return [*map(int, map(np.count_nonzero, kinds)), *lru_sizes_of([flags])]


def si_mem_available(counts: PageCounts, frames: Frames) -> int:
    """Return the pages available without swapping: free pages beyond the reserve, and most file pages.

    Source: Linux v6.8 mm/show_mem.c:si_mem_available(); the reserve is mm/page_alloc.c:totalreserve_pages.
    """
    files = counts.lists[LruList.ACTIVE_FILE] + counts.lists[LruList.INACTIVE_FILE]
    available = counts.free - frames.watermark_high + files - min(files // 2, frames.watermark_low)
    return max(0, available)


def show_meminfo(frames: Frames, sysctl: Sysctl) -> bytes:
    """Return /proc/meminfo. Source: Linux v6.8 fs/proc/meminfo.c:meminfo_proc_show()."""
    counts = count_pages(frames)
    rows = _meminfo_rows(frames, counts, sysctl)
    text = "".join(_show_val_kb(name, pages << PAGE_SHIFT - 10) for name, pages in rows)
    text += _show_val_kb("VmallocTotal", _VMALLOC_TOTAL_KB)
    for name in ("VmallocUsed", "VmallocChunk", "Percpu"):
        text += _show_val_kb(name, 0)
    text += _show_val_kb("AnonHugePages", counts.anon_huge << PAGE_SHIFT - 10)
    for name in ("ShmemHugePages", "ShmemPmdMapped", "FileHugePages", "FilePmdMapped"):
        text += _show_val_kb(name, 0)
    for name in ("Total", "Free", "Rsvd", "Surp"):
        text += f"HugePages_{name + ':':6}{0:8}\n"
    return (text + _show_val_kb("Hugepagesize", PMD_SIZE >> 10) + _show_val_kb("Hugetlb", 0)).encode()


def _meminfo_rows(frames: Frames, counts: PageCounts, sysctl: Sysctl) -> list[tuple[str, int]]:
    """Return the lines about pages, and how many pages each tells."""
    none, swap, lists = 0, frames.swap, counts.lists
    return [
        ("MemTotal", counts.total),
        ("MemFree", counts.free),
        ("MemAvailable", si_mem_available(counts, frames)),
        ("Buffers", none),
        ("Cached", counts.file),
        ("SwapCached", counts.swap_cached),
        ("Active", counts.active),
        ("Inactive", counts.inactive),
        ("Active(anon)", lists[LruList.ACTIVE_ANON]),
        ("Inactive(anon)", lists[LruList.INACTIVE_ANON]),
        ("Active(file)", lists[LruList.ACTIVE_FILE]),
        ("Inactive(file)", lists[LruList.INACTIVE_FILE]),
        ("Unevictable", counts.unevictable),
        ("Mlocked", counts.unevictable),
        ("SwapTotal", swap.total_pages),
        ("SwapFree", swap.nr_free),
        ("Dirty", counts.dirty),
        ("Writeback", none),
        ("AnonPages", counts.anon),
        ("Mapped", counts.mapped),
        ("Shmem", counts.shmem),
        ("KReclaimable", none),
        ("Slab", none),
        ("SReclaimable", none),
        ("SUnreclaim", none),
        ("KernelStack", none),
        ("PageTables", counts.tables),
        ("SecPageTables", none),
        ("NFS_Unstable", none),
        ("Bounce", none),
        ("WritebackTmp", none),
        ("CommitLimit", vm_commit_limit(frames, sysctl)),
        ("Committed_AS", frames.committed_as),
    ]


def _show_val_kb(name: str, size_kb: int) -> str:
    return f"{name + ':':16}{size_kb:8} kB\n"


def show_vmstat(frames: Frames, faults: tuple[int, int]) -> bytes:
    """Return the lines of /proc/vmstat that this machine counts. `faults` are all faults and the major faults.

    Source: Linux v6.8 mm/vmstat.c:vmstat_text[].
    """
    counts, events = count_pages(frames), frames.vmstat
    lists = ("inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable")
    rows = [("nr_free_pages", counts.free)]
    rows += [(f"nr_zone_{name}", pages) for name, pages in zip(lists, counts.lists, strict=True)]
    rows += [("nr_zone_write_pending", counts.dirty), ("nr_mlock", counts.unevictable)]
    rows += [(f"nr_{name}", pages) for name, pages in zip(lists, counts.lists, strict=True)]
    rows += [(name, events[name]) for name in _WORKINGSET_EVENTS]
    rows += [
        ("nr_anon_pages", counts.anon),
        ("nr_mapped", counts.mapped),
        ("nr_file_pages", counts.file + counts.swap_cached),
        ("nr_dirty", counts.dirty),
        ("nr_writeback", 0),
        ("nr_shmem", counts.shmem),
        ("nr_anon_transparent_hugepages", counts.anon_huge // HPAGE_PMD_NR),
        ("nr_vmscan_write", events["nr_vmscan_write"]),
        ("nr_page_table_pages", counts.tables),
        ("nr_swapcached", counts.swap_cached),
        ("pswpin", events["pswpin"]),
        ("pswpout", events["pswpout"]),
    ]
    rows += [(name, events[name]) for name in _EVENTS_BEFORE_FAULTS]
    rows += [("pgfault", faults[0]), ("pgmajfault", faults[1])]
    rows += [(name, events[name]) for name in _EVENTS_AFTER_FAULTS]
    rows += frames.huge.events.items()
    rows += [(name, events[name]) for name in ("ksm_swpin_copy", "cow_ksm")]
    return "".join(f"{name} {number}\n" for name, number in rows).encode()


def show_buddyinfo(frames: Frames) -> bytes:
    """Return the number of free blocks of each order. Source: Linux v6.8 mm/vmstat.c:frag_show_print()."""
    return ("Node 0, zone   Normal " + "".join(f"{count:6} " for count in frames.buddy.nr_blocks) + "\n").encode()


def show_swaps(frames: Frames) -> bytes:
    """Return /proc/swaps: the swap of the machine, which is no file of anybody's.

    Source: Linux v6.8 mm/swapfile.c:swap_show().
    """
    head = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    swap = frames.swap
    if not swap.total_pages:
        return head.encode()
    size, used = (pages << PAGE_SHIFT - 10 for pages in (swap.total_pages, swap.total_pages - swap.nr_free))
    name = "/dev/kerneld-swap"
    row = f"{name}{' ' * (40 - len(name))}partition\t{size}\t{_tab(size)}{used}\t{_tab(used)}-2\n"
    return (head + row).encode()


def _tab(kilobytes: int) -> str:
    return "\t" if kilobytes < 10_000_000 else ""
