"""The mistakes of the updates: missing hooks, wrong bounds and frames. Words only: kerneld/bugs/plants makes them."""

from __future__ import annotations

from kerneld.bugs.bug import Bug

BUGS = {
    "no-mmap-update": Bug(
        "mmap has no hook.",
        ("vma_mmap",),
    ),
    "no-merge-update": Bug(
        "The hook of mmap is only where a new VMA is made. A mapping that is merged into its neighbour is not seen.",
        ("vma_mmap_merged",),
    ),
    "no-munmap-update": Bug(
        "munmap has no hook.",
        ("vma_munmap",),
    ),
    "no-partial-munmap": Bug(
        "A munmap that takes a part of a mapping is not seen: the hook is only where a VMA goes as a whole.",
        ("vma_munmap_ends",),
    ),
    "no-middle-munmap": Bug(
        "A munmap that makes two mappings of one is not seen.",
        ("vma_munmap_middle",),
    ),
    "munmap-first-only": Bug(
        "A munmap of several mappings updates the first of them only.",
        ("vma_munmap_many",),
    ),
    "no-brk-update": Bug(
        "brk has no hook: the heap grows without mmap_region().",
        ("vma_brk",),
    ),
    "no-brk-shrink": Bug(
        "brk has no hook for a heap that shrinks: only munmap(2) itself is hooked.",
        ("vma_brk_shrink",),
    ),
    "no-growth-update": Bug(
        "Stack growth has no hook: expand_downwards() moves a VMA's start by a fault.",
        ("vma_growsdown",),
    ),
    "no-exit-update": Bug(
        "The target's exit is not seen: exit_mmap() makes no munmap.",
        ("vma_exit", "pte_exit"),
    ),
    "no-kill-update": Bug(
        "The target's exit is seen only in the exit call, and not when it is killed.",
        ("vma_killed",),
    ),
    "no-execve-update": Bug(
        "execve is not seen: the target has a new mm, and the table keeps the mappings of the old one.",
        ("vma_execve",),
    ),
    "no-mremap-update": Bug(
        "mremap is not seen: it moves VMAs and entries without mmap and faults.",
        ("vma_mremap",),
    ),
    "file-anonymous": Bug(
        "Every mapping is called anonymous.",
        ("vma_file",),
    ),
    "never-anonymous": Bug(
        "No mapping is called anonymous.",
        ("vma_mmap",),
    ),
    "prot-none-unallocated": Bug(
        "A mapping without rights counts as not allocated.",
        ("vma_prot_none",),
    ),
    "anonymous-stays": Bug(
        "ANONYMOUS is set and never unset: a file that takes the place of anonymous memory stays anonymous.",
        ("vma_file_over_anonymous",),
    ),
    "across-start-missed": Bug(
        "A change that begins before the range is ignored as a whole.",
        ("vma_across",),
    ),
    "across-end-missed": Bug(
        "A change that ends behind the range is ignored as a whole.",
        ("vma_last_page", "vma_across"),
    ),
    "first-page-missed": Bug(
        "The first page of the range gets no update: > stands where >= belongs.",
        ("vma_first_page",),
    ),
    "last-page-missed": Bug(
        "The last page of the range gets no update: end_vaddr is taken for the last page.",
        ("vma_last_page",),
    ),
    "outside-clamped": Bug(
        "The page behind the range is written into the last entry: its index is clamped instead of ignored.",
        ("vma_outside",),
    ),
    "any-process": Bug(
        "The hook of mmap does not compare the mm: mappings of other processes come into the table.",
        ("vma_other_process",),
    ),
    "no-updates": Bug(
        "There is no hook at all: the table is what start made it.",
        ("vma_mmap", "pte_write"),
    ),
    "no-fault-update": Bug(
        "The first write to a page is not seen: do_anonymous_page() has no hook.",
        ("pte_write",),
    ),
    "no-read-update": Bug(
        "A read that maps the zero page is not seen: only the branch that writes is hooked.",
        ("pte_read",),
    ),
    "no-zero-page-cow": Bug(
        "The first write after a read is not seen: the entry changes from the zero page to a frame of its own.",
        ("pte_write_after_read",),
    ),
    "no-fork-cow": Bug(
        "Copy-on-write after fork is not seen: the table keeps the frame that now is the child's alone.",
        ("pte_cow",),
    ),
    "no-file-cow": Bug(
        "Copy-on-write of a private page of a file is not seen.",
        ("pte_file_cow",),
    ),
    "no-dontneed-update": Bug(
        "MADV_DONTNEED is not seen: only munmap clears frames in the table.",
        ("pte_dontneed",),
    ),
    "no-populate-update": Bug(
        "Pages that MAP_POPULATE or mlock bring in are not seen: the hook is in the handler of the processor's fault.",
        ("pte_populate", "pte_mlock"),
    ),
    "no-kernel-faults": Bug(
        "Faults that the kernel makes for the process, as in read(2), are not seen.",
        ("pte_by_kernel",),
    ),
    "no-around-update": Bug(
        "A fault in a file maps the pages around its own as well, and only one is noted.",
        ("pte_file_around",),
    ),
    "no-file-faults": Bug(
        "Faults in files are not seen: only anonymous memory is hooked.",
        ("pte_file_read",),
    ),
    "no-mremap-unmap": Bug(
        "The entries that mremap takes away keep MAPPED and pfn.",
        ("pte_mremap",),
    ),
    "mapped-stays": Bug(
        "munmap takes ALLOCATED away and leaves MAPPED and pfn.",
        ("pte_munmap",),
    ),
    "pfn-stays": Bug(
        "MAPPED is unset, and pfn is not cleared.",
        ("pte_pfn_cleared",),
    ),
    "mprotect-unmaps": Bug(
        "Every invalidation is taken for an unmap: after mprotect the pages are no more MAPPED. The notifier must "
        "look at the entries.",
        ("pte_mprotect",),
    ),
    "present-bit": Bug(
        "The hardware's present bit decides. PROT_NONE clears it, and the frame is still there: pte_none() is the "
        "test.",
        ("pte_mprotect_none",),
    ),
    "file-frames-missing": Bug(
        "Frames of the page cache are never MAPPED.",
        ("pte_file_read",),
    ),
    "child-cow": Bug(
        "The hook of copy-on-write does not compare the mm: the child's new frame comes into the table.",
        ("pte_cow_child",),
    ),
    "neighbour-marked": Bug(
        "A fault marks the next page too: the update is a page too long.",
        ("pte_neighbours",),
    ),
    "pfn-is-address": Bug(
        "pfn has the physical address instead of the frame's number.",
        ("pte_pfns_distinct",),
    ),
    "huge-head": Bug(
        "All pages of a huge page have the frame of the first one.",
        ("huge_pfns",),
    ),
    "huge-stops-walk": Bug(
        "start's walk ends at a huge page: the pages behind it have no frames.",
        ("huge_at_start",),
    ),
    "lost-update": Bug(
        "Of many updates in a row one is lost, as when two threads write the table without a lock.",
        ("pte_many",),
    ),
}
