"""The rules by which VMAs merge, and the change of a part of a VMA.

Knows no page table. Answers to Linux v6.8 mm/mmap.c: can_vma_merge_before(), can_vma_merge_after(), vma_merge(),
vma_modify(), is_mergeable_vm_userfaultfd_ctx().

What `vma_modify` makes of [start, end), a part of `vma` that gets other flags, between `prev` and `next` where they
touch it and could merge with it:

| prev merges | next merges | result (Linux's case numbers)                                          |
|-------------|-------------|------------------------------------------------------------------------|
| yes         | yes         | prev grows over vma and next, if their anon_vmas agree (6), else as below |
| yes         | no          | prev grows up to `end`; vma shrinks (5) or goes (7)                     |
| no          | yes         | next grows down to `start`; vma shrinks (4) or goes (8)                 |
| no          | no          | vma is split at `start` and at `end` and the middle gets the flags      |
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.files.file import File
from kerneld.mm.space.mm import MmStruct, vma_set_page_prot
from kerneld.mm.space.rmap import AnonVma, dup_anon_vma
from kerneld.mm.space.vma import PLAIN, Traits, Vma
from kerneld.mm.vm_flags import VM_SOFTDIRTY, VM_UFFD_FLAGS
from shared.uapi.page import PAGE_SHIFT, Vaddr


def _mergeable(vma: Vma, vm_flags: int, file: File | None, traits: Traits) -> bool:
    """Source: Linux v6.8 mm/mmap.c:is_mergeable_vma()."""
    return not (vma.vm_flags ^ vm_flags) & ~VM_SOFTDIRTY and vma.vm_file is file and vma.traits == traits


def is_mergeable_anon_vma(one: AnonVma | None, other: AnonVma | None, vma: Vma | None) -> bool:
    """Return whether memory of two anon_vmas may lie in one VMA; `vma` is the VMA that would be absorbed, if any.

    A forked VMA has a longer chain; merging it would lengthen the chains of all of them. A VMA without a chain is
    refused too if the other side has an anon_vma: v6.8 does so (v6.16 fixed it).
    Source: Linux v6.8 mm/mmap.c:is_mergeable_anon_vma().
    """
    if (one is None or other is None) and (vma is None or (vma.chain_top is not None and vma.chain_top.is_singular)):
        return True
    return one is other


def can_merge_after(
    vma: Vma, vm_flags: int, anon_vma: AnonVma | None, file: File | None, pgoff: int, traits: Traits = PLAIN
) -> bool:
    """Return whether memory with these properties may be appended to `vma`."""
    return (
        _mergeable(vma, vm_flags, file, traits)
        and is_mergeable_anon_vma(anon_vma, vma.anon_vma, vma)
        and vma.pgoff + vma.nr_pages == pgoff
    )


def can_merge_before(
    vma: Vma, vm_flags: int, anon_vma: AnonVma | None, file: File | None, pgoff_end: int, traits: Traits = PLAIN
) -> bool:
    """Return whether memory with these properties, whose offsets end at `pgoff_end`, may be put in front of `vma`."""
    return (
        _mergeable(vma, vm_flags, file, traits)
        and is_mergeable_anon_vma(anon_vma, vma.anon_vma, vma)
        and vma.pgoff == pgoff_end
        and may_begin_lower(vma)
    )


def may_begin_lower(vma: Vma) -> bool:
    """Return whether a VMA may grow at its start. v6.8 does not ask whether the merge would remove it instead.

    Source: Linux v6.8 mm/mmap.c:is_mergeable_vma(), `may_remove_vma`.
    """
    return not vma.has_close


def can_take_in(vma: Vma, following: Vma) -> bool:
    """Return whether a VMA may grow over the one behind it, which is removed; all else fits.

    Source: Linux v6.8 mm/mmap.c:vma_merge(), cases 1 and 6.
    """
    return is_mergeable_anon_vma(vma.anon_vma, following.anon_vma, None) and not following.has_close


def userfaultfd_drop(vma: Vma, mm: MmStruct | None = None) -> None:
    """Take the userfaultfd from a VMA of an address space, or from one that is in none yet. No neighbour is looked at.

    Source: Linux v6.8 fs/userfaultfd.c: dup_userfaultfd(), mremap_userfaultfd_prep(), without the features for it.
    """
    vma.traits = vma.traits._replace(userfaultfd_ctx=None)
    vm_flags = vma.vm_flags & ~VM_UFFD_FLAGS
    if mm is None:
        vma.vm_flags = vm_flags
    else:
        mm.set_vma_flags(vma, vm_flags)


def check_map_count(mm: MmStruct, more: int) -> None:
    """Raise SysError(ENOMEM) if `more` further VMAs would exceed vm.max_map_count or the machine's total."""
    mm.frames.kernel_objects.check_room(mm.owner, more)
    if mm.map_count + more > mm.sysctl.max_map_count:
        raise SysError(errno.ENOMEM)


def vma_modify(
    mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, vm_flags: int | None, traits: Traits | None = None
) -> Vma:
    """Give [start, end), a page-aligned part of `vma`, other flags, and return the VMA that covers it afterwards.

    It gets other traits too, unless `traits` is None. All of a VMA that grows over the part gets the part's
    VM_SOFTDIRTY, or loses its own. It keeps its flags where `vm_flags` is None, for the same flags.
    Source of that: Linux v6.8 vm_flags_reset() after vma_modify() in mm/mprotect.c and others, but not in mempolicy.c.

    Raises SysError(ENOMEM) if a split would exceed vm.max_map_count; then nothing has changed, except for an earlier
    split.
    """
    if traits is None:
        traits = vma.traits
    asked = vma.vm_flags if vm_flags is None else vm_flags
    if start == vma.start or end == vma.end:
        merged = _merge_part(mm, vma, start, end, asked, traits)
        if merged is not None:
            if vm_flags is not None and merged.vm_flags != vm_flags:
                mm.set_vma_flags(merged, vm_flags)
            return merged
    if vma.start < start:
        check_map_count(mm, 1)
        vma = mm.split_vma(vma, start)
    if end < vma.end:
        check_map_count(mm, 1)
        mm.split_vma(vma, end)
    vma.traits = traits
    mm.set_vma_flags(vma, asked)
    return vma


def _merge_part(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, vm_flags: int, traits: Traits) -> Vma | None:
    """Let the neighbours of [start, end), a part of `vma`, grow over it; return the one that covers it then.

    Returns None if neither has these flags and traits, and is mergeable otherwise; or if `vma` would go, and may not.
    Source: Linux v6.8 mm/mmap.c:vma_merge(), cases 4 to 8.
    """
    if vma.has_close and start == vma.start and end == vma.end:
        return None
    prev, following = mm.vmas.neighbours(vma)
    pgoff = vma.page_index(start)
    pgoff_end = pgoff + ((end - start) >> PAGE_SHIFT)
    merge_next = (
        following is not None
        and end == vma.end == following.start
        and can_merge_before(following, vm_flags, vma.anon_vma, vma.vm_file, pgoff_end, traits)
    )
    if (
        prev is not None
        and prev.end == vma.start == start
        and can_merge_after(prev, vm_flags, vma.anon_vma, vma.vm_file, pgoff, traits)
    ):
        if merge_next and following is not None and can_take_in(prev, following):
            dup_anon_vma(prev, following)
            dup_anon_vma(prev, vma)
            mm.remove_vma(vma)
            mm.remove_vma(following)
            mm.move_vma_bounds(prev, prev.start, following.end)
            return prev
        dup_anon_vma(prev, vma)
        _shrink_to(mm, vma, end, vma.end)
        mm.move_vma_bounds(prev, prev.start, end)
        return prev
    if merge_next and following is not None:
        dup_anon_vma(following, vma)
        _shrink_to(mm, vma, vma.start, start)
        mm.move_vma_bounds(following, start, following.end)
        return following
    return None


def _shrink_to(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr) -> None:
    if start == end:
        mm.remove_vma(vma)
    else:
        mm.move_vma_bounds(vma, start, end)


def vma_expanded(mm: MmStruct, vma: Vma) -> Vma:
    """Make all of a VMA soft-dirty that has grown by new memory, and return it: that what is there is new shows.

    Source: Linux v6.8 mm/mmap.c: mmap_region(), do_brk_flags().
    """
    if not vma.vm_flags & VM_SOFTDIRTY:
        mm.set_vma_flags(vma, vma.vm_flags | VM_SOFTDIRTY)
    vma_set_page_prot(vma)
    return vma


def merge_into_neighbours(
    mm: MmStruct, start: Vaddr, end: Vaddr, vm_flags: int, file: File | None, pgoff: int
) -> Vma | None:
    """Merge a new mapping of the free range [start, end) into its neighbours, and return the VMA, or None.

    Source: Linux v6.8 mm/mmap.c:mmap_region() and vma_expand(): the next VMA is tried first; the previous one grows
    over both if its anon_vma agrees with the next one's.
    """
    prev, following = mm.vmas.around(start)
    pgoff_end = pgoff + ((end - start) >> PAGE_SHIFT)
    if following is not None and not (
        following.start == end and can_merge_before(following, vm_flags, None, file, pgoff_end)
    ):
        following = None
    anon_vma = following.anon_vma if following is not None else None
    if prev is not None and prev.end == start and can_merge_after(prev, vm_flags, anon_vma, file, pgoff):
        if following is not None:
            dup_anon_vma(prev, following)
            mm.remove_vma(following)
            end = following.end
        mm.move_vma_bounds(prev, prev.start, end)
        return prev
    if following is not None:
        mm.move_vma_bounds(following, start, following.end)
    return following
