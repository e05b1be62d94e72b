"""/proc/meminfo, vmstat and buddyinfo: what the machine's memory is used for.

Counted afresh from the frames at each read: there are no counters that could drift. Answers to Linux v6.8
fs/proc/meminfo.c, mm/vmstat.c, mm/show_mem.c:si_mem_available() and mm/util.c:vm_commit_limit().

Differs from Linux: no page is on an active list; pages of one kind are all inactive or, where locked, unevictable.
Memory promised to forked children that have not attached yet is not in Committed_AS. There is one zone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kerneld.hw.paging import PTE_SPECIAL, present_mask, pte_pfn
from kerneld.mm.frames import FIRST_PFN, PG_ANON, PG_DIRTY, PG_SWAPBACKED, PG_TABLE, Frames
from kerneld.mm.huge_frames import HPAGE_PMD_NR
from kerneld.mm.limits import Sysctl
from kerneld.mm.mm import MmStruct
from kerneld.mm.vm_flags import VM_ACCOUNT, VM_LOCKED
from shared.uapi.page import PAGE_SHIFT, PMD_SIZE, page_align

_VMALLOC_TOTAL_KB = (1 << 45) - 1 >> 10
"""VMALLOC_TOTAL of x86-64 with four-level tables, which nothing takes from."""


class PageCounts(NamedTuple):
    """Frames by use, in pages; file ones include those of shared anonymous memory, as Linux's NR_FILE_PAGES do."""

    total: int
    free: int
    anon: int
    file: int
    shmem: int
    mapped: int
    dirty: int
    tables: int
    locked_anon: int
    """Locked in memory (mlock) and anonymous or shmem."""
    locked_file: int
    committed: int
    anon_huge: int
    """Of the anonymous ones, those in huge pages."""

    @property
    def inactive_anon(self) -> int:
        """Pages that only swap could take."""
        return self.anon + self.shmem - self.locked_anon

    @property
    def inactive_file(self) -> int:
        """Pages that could be dropped or written to their file."""
        return self.file - self.shmem - self.locked_file

    @property
    def locked(self) -> int:
        """Pages locked in memory."""
        return self.locked_anon + self.locked_file


def count_pages(frames: Frames, mms: Iterable[MmStruct]) -> PageCounts:
    """Count every frame by its use; `mms` are the address spaces of all processes."""
    mms = list(mms)
    flags, mapcount = frames.flags[FIRST_PFN:], frames.mapcount[FIRST_PFN:]
    anon = (flags & PG_ANON) != 0
    file = (frames.mapping[FIRST_PFN:] != 0) & ~anon
    shmem = file & ((flags & PG_SWAPBACKED) != 0)
    locked = np.zeros(len(flags) + FIRST_PFN, dtype=np.bool_)
    for mm in mms:
        _mark_locked(mm, locked)
    locked_file = int(np.count_nonzero(locked[FIRST_PFN:] & file & ~shmem))
    return PageCounts(
        total=frames.total_pages,
        free=frames.free_pages,
        anon=int(np.count_nonzero(anon & (mapcount > 0))),
        file=int(np.count_nonzero(file)),
        shmem=int(np.count_nonzero(shmem)),
        mapped=int(np.count_nonzero(file & (mapcount > 0))),
        dirty=int(np.count_nonzero(file & ~shmem & ((flags & PG_DIRTY) != 0))),
        tables=int(np.count_nonzero(flags & PG_TABLE)),
        locked_anon=int(np.count_nonzero(locked)) - locked_file,
        locked_file=locked_file,
        committed=_committed_pages(mms),
        anon_huge=len(frames.huge.entire_mapcount) * HPAGE_PMD_NR,
    )


def _mark_locked(mm: MmStruct, locked: npt.NDArray[np.bool_]) -> None:
    if not mm.locked_vm:
        return
    for vma in mm.vmas:
        if vma.vm_flags & VM_LOCKED:
            for leaf in mm.page_table.leaves(vma.start, vma.end):
                entries = mm.page_table.leaf_entries(leaf)
                entries = entries[present_mask(entries) & ((entries & PTE_SPECIAL) == 0)]
                locked[pte_pfn(entries).astype(np.int64)] = True


def _committed_pages(mms: Iterable[MmStruct]) -> int:
    """Return how much memory has been promised. Source: Linux v6.8 mm/util.c:vm_memory_committed()."""
    private = 0
    shared = {}
    for mm in mms:
        for vma in mm.vmas:
            if vma.vm_flags & VM_ACCOUNT:
                private += vma.nr_pages
            elif vma.file is not None and vma.file.mapping.is_shmem:
                shared[vma.file.mapping.number] = page_align(vma.file.mapping.size_bytes()) >> PAGE_SHIFT
    return private + sum(shared.values())


def show_meminfo(counts: PageCounts, sysctl: Sysctl) -> bytes:
    """Return /proc/meminfo. Source: Linux v6.8 fs/proc/meminfo.c:meminfo_proc_show()."""
    none = 0
    rows = [
        ("MemTotal", counts.total),
        ("MemFree", counts.free),
        ("MemAvailable", counts.free + counts.inactive_file),
        ("Buffers", none),
        ("Cached", counts.file),
        ("SwapCached", none),
        ("Active", none),
        ("Inactive", counts.inactive_anon + counts.inactive_file),
        ("Active(anon)", none),
        ("Inactive(anon)", counts.inactive_anon),
        ("Active(file)", none),
        ("Inactive(file)", counts.inactive_file),
        ("Unevictable", counts.locked),
        ("Mlocked", counts.locked),
        ("SwapTotal", none),
        ("SwapFree", none),
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
        ("CommitLimit", counts.total * sysctl.overcommit_ratio // 100),
        ("Committed_AS", counts.committed),
    ]
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


def _show_val_kb(name: str, size_kb: int) -> str:
    return f"{name + ':':16}{size_kb:8} kB\n"


def show_vmstat(counts: PageCounts, frames: Frames) -> bytes:
    """Return those lines of /proc/vmstat that this machine counts. Source: Linux v6.8 mm/vmstat.c:vmstat_text[]."""
    rows = [
        ("nr_free_pages", counts.free),
        ("nr_zone_inactive_anon", counts.inactive_anon),
        ("nr_zone_active_anon", 0),
        ("nr_zone_inactive_file", counts.inactive_file),
        ("nr_zone_active_file", 0),
        ("nr_zone_unevictable", counts.locked),
        ("nr_zone_write_pending", counts.dirty),
        ("nr_mlock", counts.locked),
        ("nr_inactive_anon", counts.inactive_anon),
        ("nr_active_anon", 0),
        ("nr_inactive_file", counts.inactive_file),
        ("nr_active_file", 0),
        ("nr_unevictable", counts.locked),
        ("nr_anon_pages", counts.anon),
        ("nr_mapped", counts.mapped),
        ("nr_file_pages", counts.file),
        ("nr_dirty", counts.dirty),
        ("nr_writeback", 0),
        ("nr_shmem", counts.shmem),
        ("nr_anon_transparent_hugepages", counts.anon_huge // HPAGE_PMD_NR),
        ("nr_page_table_pages", counts.tables),
        *frames.huge.events.items(),
    ]
    return "".join(f"{name} {pages}\n" for name, pages in rows).encode()


def show_buddyinfo(frames: Frames) -> bytes:
    """Return how many blocks of each order are free. Source: Linux v6.8 mm/vmstat.c:frag_show_print()."""
    return ("Node 0, zone   Normal " + "".join(f"{count:6} " for count in frames.buddy.nr_blocks) + "\n").encode()
