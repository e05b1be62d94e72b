"""Known differences between Linux v6.8, which kerneld follows, and the host's kernel.

Each difference has a rule, which replaces kerneld's own rule, and the release and the commit that brought it (or the
changed function, if the commit was not found). Its witness, a tiny program, runs on the host at the start. If the host
has the difference, kerneld follows the rule while the referee runs. So the consequences of the difference are compared
as exactly as everything else, and no operation is left out. Only the referee uses these rules.

Some differences come from no release: they are intended by kerneld, or depend on the host's configuration or file
system. Their release is (0, 0).

To add a difference, write an entry of KNOWN, its rule beside the other rules (a function in place of kerneld's, or
OnTop of it), its witness in `witnesses`, and its row in docs/fidelity.md. tests/differential/test_known.py plays the
witness with and without the rule.
"""

from __future__ import annotations

from kerneld.mm.calls import brk, madvise, madvise_pages, mmap, mremap, userfaultfd
from kerneld.mm.fault import cow, fault
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.space import dying, munmap, pkeys, truncate, unmapped_area, vma_merge
from kerneld.referee import (
    file_systems,
    later_dontunmap,
    later_merge,
    later_mremap,
    later_pkeys,
    later_rules,
    later_userfaultfd,
    this_host,
    witnesses,
    witnesses_segments,
    witnesses_userfaultfd,
)
from kerneld.referee.difference import Known, OnTop
from kerneld.referee.known_earlier import KNOWN_OF_EARLIER_KERNELS
from kerneld.referee.known_hosts import KNOWN_OF_HOSTS
from kerneld.referee.known_modes import KNOWN_OF_MODES
from kerneld.syscalls import process, remote
from kerneld.task import uaccess

KNOWN = (
    *KNOWN_OF_EARLIER_KERNELS,
    Known(
        (6, 9),
        "631426ba1d45",
        "MADV_POPULATE_READ and _WRITE end at a hole.",
        ((madvise, "madvise_populate_in_pieces", later_rules.madvise_populate_in_pieces),),
        witness=witnesses.populates_nothing_behind_a_hole,
    ),
    Known(
        (6, 12),
        "cacded5e42b9",
        "New memory merges with both of its neighbours, if one of them never faulted.",
        ((vma_merge, "merge_into_neighbours", later_merge.merge_into_neighbours),),
        witness=witnesses.joins_what_never_faulted_and_what_did,
    ),
    Known(
        (6, 12),
        "01c373e9a5ce",
        "A part of an attach of System V shared memory merges with the part above it, if no mapping goes with that. In "
        "v6.8 it merges only with the part below it.",
        ((vma_merge, "may_begin_lower", later_merge.may_begin_lower),),
        applies=lambda facts: facts.has_own_ipc,
        witness=witnesses_segments.merges_with_the_part_above,
    ),
    Known(
        (6, 16),
        "879bca0a2c4f",
        "A VMA that never faulted merges with one that did. If two neighbours cannot merge with each other, new "
        "memory joins the lower one.",
        (
            (vma_merge, "is_mergeable_anon_vma", later_merge.is_mergeable_anon_vma),
            (vma_merge, "merge_into_neighbours", later_merge.merge_into_neighbours),
            (vma_merge, "vma_modify", later_merge.with_source(vma_merge.vma_modify)),
            (mremap, "copy_vma", later_merge.with_source(mremap.copy_vma)),
        ),
        witness=witnesses.merges_with_what_never_faulted,
    ),
    Known(
        (6, 12),
        "f8d112a4e657",
        "If mmap over a mapping fails for lack of memory or at a limit, the old mapping stays, split at both ends "
        "of the new range.",
        ((mmap, "mmap_region", later_rules.mmap_region), (mmap, "clears_in_pieces", later_rules.never)),
        witness=witnesses.failed_mmap_leaves_a_cut,
    ),
    Known(
        (6, 7),
        "e8e17ee90eaf",
        "A file that is sealed against writing cannot be mapped shared, also not for reading.",
        ((mmap, "seal_check_write", later_rules.seal_check_write),),
        witness=witnesses.write_sealed_is_not_shared,
        before=(6, 7),
    ),
    Known(
        (6, 12),
        "5de195060b2e, as in v6.1.119",
        "F_SEAL_WRITE is checked before anything is unmapped.",
        ((mmap, "_check_file", later_rules.check_file_write_seal),),
        witness=witnesses.write_seal_refuses_early,
    ),
    Known(
        (6, 12),
        "5de195060b2e",
        "All seals against writing are checked before anything is unmapped.",
        ((mmap, "_check_file", later_rules.check_file),),
        witness=witnesses.future_write_seal_refuses_early,
    ),
    Known(
        (6, 17),
        "d23cb648e365 and mm/mremap.c:do_mremap()",
        "mremap checks the mapping before it unmaps the new place. With MREMAP_FIXED and the same length it moves "
        "several VMAs. A new length larger than the address space is EINVAL. A move that shrinks needs free "
        "promised memory for the difference.",
        ((mremap, "mremap_in_pieces", later_mremap.mremap_in_pieces),),
        witness=witnesses.mremap_moves_several,
    ),
    Known(
        (0, 0),
        "stable updates of 2026, mm/mremap.c:move_vma()",
        "MREMAP_DONTUNMAP splits the moved part off a locked mapping first: the rest stays locked.",
        ((mremap, "move_vma", OnTop(later_dontunmap.cuts_what_is_locked)),),
        witness=witnesses.dontunmap_cuts_what_is_locked,
    ),
    Known(
        (0, 0),
        "stable updates of 2026, mm/vma.c:copy_vma()",
        "With MREMAP_DONTUNMAP memory that was never faulted does not merge with itself at the new place.",
        (
            (mremap, "move_vma", OnTop(later_dontunmap.tells_of_dontunmap)),
            (mremap, "copy_vma", OnTop(later_dontunmap.merges_not_with_itself)),
        ),
        witness=witnesses.dontunmap_merges_not_with_itself,
    ),
    Known(
        (0, 0),
        "stable updates of 2026, mm/mmap.c:copy_vma() of 6.1",
        "If it could merge with itself there, it merges with no other neighbour either.",
        (
            (mremap, "move_vma", OnTop(later_dontunmap.tells_of_dontunmap)),
            (mremap, "copy_vma", OnTop(later_dontunmap.merges_with_no_neighbour)),
        ),
        witness=witnesses.dontunmap_merges_with_no_neighbour,
    ),
    Known(
        (0, 0),
        "stable updates of 2026, mm/mremap.c:move_vma()",
        "The old memory after MREMAP_DONTUNMAP has the offsets of its place, and merges with its neighbours.",
        ((mremap, "move_vma", OnTop(later_dontunmap.takes_its_own_offsets)),),
        witness=witnesses.dontunmap_gives_its_own_offsets,
    ),
    Known(
        (6, 15),
        "mm/mremap.c:vrm_stat_account()",
        "If mremap moves locked memory with MREMAP_DONTUNMAP, VmLck grows: the old mapping is unlocked, but still "
        "counts.",
        ((mremap, "locked_vm_after_dontunmap", later_mremap.locked_vm_after_dontunmap),),
        witness=witnesses.dontunmap_counts_twice,
    ),
    Known(
        (6, 10),
        "mm/mmap.c:do_mmap()",
        "mmap of execute-only memory allocates its protection key before it searches an address.",
        (
            (mmap, "do_mmap", OnTop(later_pkeys.takes_a_key_before_a_place)),
            (mmap, "clears_in_pieces", later_rules.never),
        ),
        witness=witnesses.takes_a_key_before_a_place,
    ),
    Known(
        (0, 0),
        "arch/x86/include/asm/pkeys.h:mm_pkey_alloc(), also in stable kernels",
        "On a processor without protection keys the first pkey_alloc is ENOSPC too, not EINVAL.",
        ((pkeys, "pkey_alloc", OnTop(later_pkeys.has_no_key_to_give)),),
        witness=witnesses.has_no_key_to_give,
    ),
    Known(
        (6, 12),
        "86e6b1547b3d",
        "An address between user space and the middle of all addresses is refused before the access, as before v6.4.",
        ((uaccess, "access_ok", later_rules.access_ok),),
        witness=witnesses.refuses_the_middle_before_access,
    ),
    Known(
        (6, 12),
        "d4148aeab412",
        "Only anonymous mappings whose length is a multiple of 2 MiB are aligned to 2 MiB.",
        ((unmapped_area, "_aligned_to_pmd", OnTop(later_rules.aligns_whole_huge_pages_alone)),),
        witness=witnesses.aligns_whole_huge_pages_alone,
    ),
    Known(
        (6, 13),
        "249608ee4713",
        "Anonymous mappings with a hint are not aligned to 2 MiB.",
        ((unmapped_area, "_aligned_to_pmd", OnTop(later_rules.aligns_nothing_with_a_hint)),),
        witness=witnesses.aligns_nothing_with_a_hint,
    ),
    Known(
        (6, 18),
        "74207de2ba10",
        "A read past the end of a regular file maps no pages around it, if these begin with the file's last page "
        "and there is no page table yet.",
        (
            (fault, "handle_mm_fault", later_rules.handle_mm_fault),
            (fault, "map_pages_around", later_rules.map_pages_around),
        ),
        witness=witnesses.maps_no_last_page_alone,
    ),
    Known(
        (6, 16),
        "mm/filemap.c:do_sync_mmap_readahead()",
        "A fault of an executable mapping whose page is not cached reads in the following pages of the mapping, not "
        "the pages around.",
        ((fault, "window_to_read", later_rules.window_to_read),),
        witness=witnesses.reads_ahead_what_is_executable,
    ),
    Known(
        (6, 13),
        "22af8caff7d1 (v6.12), mm/madvise.c:process_madvise_remote_valid()",
        "process_madvise takes any advice for the caller's own memory, from any user.",
        ((remote, "check_process_madvise", later_rules.check_process_madvise),),
        witness=witnesses.advises_own_memory_anything,
    ),
    Known(
        (6, 9),
        "2864f3d0f583",
        "MADV_PAGEOUT clears no accessed bit: a page that it cannot reclaim is as young as before.",
        ((madvise_pages, "madvise_pageout", later_rules.madvise_pageout),),
        witness=witnesses.pages_out_nothing_by_its_accessed_bit,
    ),
    Known(
        (6, 14),
        "6375e95f381e, CONFIG_PT_RECLAIM",
        "MADV_DONTNEED frees the page tables that lie completely in its range.",
        ((madvise, "madvise_dontneed", later_rules.madvise_dontneed),),
        witness=witnesses.frees_tables_of_what_is_not_needed,
    ),
    Known(
        (0, 0),
        "ext4, where the programs' files lie",
        "If a file is truncated in the middle of a page, or to its current size, that page is in the cache, dirty. "
        "A page of a hole is there, but not read.",
        ((truncate, "truncate_in_pieces", this_host.truncate_in_pieces),),
        witness=witnesses.zeroes_the_page_that_is_cut,
    ),
    Known(
        (6, 13),
        "c7fc0366c656",
        "On ext4 the same holds for a file that ended in the middle of a page and is made longer. The rest of the "
        "page is zeroed.",
        ((truncate, "pagecache_isize_extended", this_host.pagecache_isize_extended),),
        witness=witnesses.zeroes_the_page_that_is_filled_up,
    ),
    Known(
        (6, 16), "fs/proc/task_mmu.c:show_smap_vma_flags()", "VmFlags shows VM_LOCKONFAULT as lf, where v6.8 shows ??."
    ),
    Known(
        (0, 0),
        "the rights of who runs the referee",
        "A superuser without CAP_SYS_RESOURCE raises no hard limit.",
        ((process, "may_raise_limits", this_host.may_raise_limits),),
        this_host.root_raises_no_limits,
    ),
    Known(
        (0, 0),
        "on purpose",
        "The first write to a page of a memory file that was read before takes one more minor fault: kerneld has to "
        "notice it, because it writes pages back to the process's file when a mapping goes. With the last mapping "
        "it drops the cached pages; while the referee runs it keeps them, as Linux does.",
        (
            (cow, "wp_page_shared", this_host.wp_page_shared),
            (munmap, "write_unmapped", this_host.write_unmapped),
            (dying, "write_back", this_host.write_back),
            (AddressSpace, "evict_unused", this_host.evict_unused),
        ),
        applies=lambda facts: not facts.is_kerneld,
    ),
    Known(
        (0, 0),
        "the file system of the programs' files, as overlayfs",
        "Long mappings of regular files are not aligned to 2 MiB.",
        ((unmapped_area, "_aligned_to_pmd", OnTop(file_systems.aligns_no_file)),),
        witness=witnesses.aligns_no_file,
    ),
    *KNOWN_OF_HOSTS,
    Known(
        (6, 17),
        "mm/vma.c:__mmap_region(), do_brk_flags()",
        "In an address space that PR_SET_MEMORY_MERGE has made mergeable, new memory is mergeable before it is tried "
        "to merge with its neighbours.",
        (
            (mmap, "mmap_region", OnTop(later_merge.maps_as_mergeable)),
            (brk, "do_brk_flags", OnTop(later_merge.grows_as_mergeable)),
        ),
        witness=witnesses.maps_as_mergeable,
    ),
    Known(
        (0, 0),
        "fs/userfaultfd.c:userfaultfd_copy()",
        "UFFDIO_COPY does not check where it copies from.",
        ((userfaultfd, "check_source", later_userfaultfd.check_source),),
        applies=lambda facts: facts.has_userfaultfd,
        witness=witnesses_userfaultfd.copies_from_anywhere,
        before=(6, 6),
    ),
    Known(
        (6, 18),
        "fs/userfaultfd.c:validate_unaligned_range(), in v6.18 at the latest",
        "The ranges of a userfaultfd may begin below vm.mmap_min_addr.",
        ((userfaultfd, "lowest_address", later_userfaultfd.lowest_address),),
        applies=lambda facts: facts.has_userfaultfd,
        witness=witnesses_userfaultfd.takes_the_lowest_addresses,
    ),
    Known(
        (6, 9),
        "mm/userfaultfd.c:uffd_mfill_lock()",
        "UFFDIO_COPY and UFFDIO_ZEROPAGE prepare a private mapping for copies, also one that nobody watches.",
        ((userfaultfd, "_find_dst_vma", OnTop(later_userfaultfd.prepares_what_is_not_watched)),),
        applies=lambda facts: facts.has_userfaultfd,
        witness=witnesses_userfaultfd.prepares_what_is_not_watched,
    ),
    Known(
        (6, 12),
        "mm/userfaultfd.c:userfaultfd_set_ctx()",
        "A mapping that grows over a part which has got or lost its userfaultfd stays as soft-dirty as it was.",
        ((userfaultfd, "_modify", later_userfaultfd.modify),),
        applies=lambda facts: facts.has_userfaultfd,
        witness=witnesses_userfaultfd.keeps_what_is_soft_dirty,
    ),
    *KNOWN_OF_MODES,
)
