"""The known differences of the host's configuration. A part of `kerneld.referee.known`."""

from __future__ import annotations

from kerneld.fs import proc_pagemap, proc_smaps
from kerneld.mm.calls import clear_refs, madvise, mmap
from kerneld.mm.space import vma_merge
from kerneld.referee import file_systems, five_levels, this_host, witnesses
from kerneld.referee.difference import Here, Known, OnTop
from kerneld.syscalls import prctl
from shared.uapi.mman import Madv, Pr

KNOWN_OF_HOSTS = (
    Known(
        (0, 0),
        "the file system of the programs' files, as overlayfs",
        "New mappings of regular files do not merge with their neighbours.",
        ((vma_merge, "merge_into_neighbours", OnTop(file_systems.merges_no_new_mapping)),),
        witness=witnesses.merges_no_new_mapping,
    ),
    Known(
        (0, 0),
        "the file system of the programs' files, as overlayfs and btrfs",
        "MAP_SYNC is an unknown flag.",
        ((mmap, "mmap_supported_flags", file_systems.knows_no_map_sync),),
        witness=witnesses.knows_no_map_sync,
    ),
    Known(
        (0, 0),
        "the file system of the programs' files, as btrfs",
        "MAP_SYNC of a private mapping is accepted.",
        ((mmap, "_call_mmap", OnTop(file_systems.takes_map_sync)),),
        witness=witnesses.takes_map_sync,
    ),
    Known(
        (0, 0),
        "CONFIG_X86_5LEVEL, and a processor that has it (LA57)",
        "Addresses from 2^47 to 2^56 are in user space: an access finds nothing mapped there, and munmap has "
        "nothing to do.",
        tuple((module, name, Here(value)) for module, name, value in five_levels.RULES),
        witness=witnesses.has_five_levels,
    ),
    Known(
        (0, 0),
        "CONFIG_TRANSPARENT_HUGEPAGE, and PR_SET_THP_DISABLE of the runner",
        "MADV_COLLAPSE is refused for each mapping, because the runner turns huge pages off.",
        ((madvise, "_madvise_vma", this_host.madvise_vma),),
        witness=witnesses.collapses_nothing,
    ),
    Known(
        (0, 0),
        "no CONFIG_KSM",
        "MADV_MERGEABLE and MADV_UNMERGEABLE are unknown.",
        ((madvise, "_VALID", madvise._VALID - {Madv.MERGEABLE, Madv.UNMERGEABLE}),),
        witness=witnesses.has_no_ksm,
    ),
    Known(
        (0, 0),
        "no CONFIG_MEM_SOFT_DIRTY",
        "No page is soft-dirty: a 4 that is written to /proc/PID/clear_refs has no effect.",
        (
            (clear_refs, "clear_soft_dirty", this_host.clear_soft_dirty),
            (proc_pagemap, "PM_SOFT_DIRTY", 0),
            (proc_smaps, "show_smap_vma_flags", OnTop(this_host.without_soft_dirty)),
        ),
        witness=witnesses.has_no_soft_dirty_pages,
    ),
    Known(
        (0, 0),
        "d7597f59d1d3, and no CONFIG_KSM",
        "PR_SET_MEMORY_MERGE and PR_GET_MEMORY_MERGE are unknown.",
        ((prctl, "PRCTL_OPTIONS", prctl.PRCTL_OPTIONS - {Pr.SET_MEMORY_MERGE, Pr.GET_MEMORY_MERGE}),),
        witness=witnesses.knows_no_memory_merge,
        before=(6, 4),
    ),
)
