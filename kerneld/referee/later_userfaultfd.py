"""Rules of other kernels for userfaultfd. They replace kerneld's own while the referee runs (`known`)."""

from __future__ import annotations

import errno
from collections.abc import Callable

from kerneld.errors import SysError
from kerneld.mm.space.anon_page import prepare_anon_vma
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.userfaultfd import UserfaultfdCtx
from kerneld.mm.space.vma import Vma
from kerneld.mm.space.vma_merge import vma_modify
from kerneld.mm.vm_flags import VM_SHARED, VM_SOFTDIRTY
from shared.uapi.page import Vaddr


def prepares_what_is_not_watched(
    earlier: Callable[[MmStruct, Vaddr, int], Vma],
) -> Callable[[MmStruct, Vaddr, int], Vma]:
    """A private mapping gets its anon_vma before anybody asks whether it is watched.

    Source: Linux v6.9 mm/userfaultfd.c: find_vma_and_prepare_anon(), uffd_mfill_lock().
    """

    def find_dst_vma(mm: MmStruct, start: Vaddr, length: int) -> Vma:
        vma = mm.vmas.lookup(start)
        if vma is not None and not vma.vm_flags & VM_SHARED:
            prepare_anon_vma(mm, vma)
        return earlier(mm, start, length)

    return find_dst_vma


def check_source(_mm: MmStruct, start: int, length: int) -> None:
    """Only a source that wraps is refused. Source: Linux v6.1 fs/userfaultfd.c:userfaultfd_copy()."""
    if not length or start + length >= 1 << 64:
        raise SysError(errno.EINVAL)


def lowest_address(_mm: MmStruct) -> Vaddr:
    """Source: Linux v6.18 fs/userfaultfd.c:validate_unaligned_range(), which does not ask for mmap_min_addr."""
    return 0


def modify(mm: MmStruct, vma: Vma, start: Vaddr, end: Vaddr, vm_flags: int, ctx: UserfaultfdCtx | None) -> None:
    """A neighbour that grows over the part keeps its VM_SOFTDIRTY, or stays without it.

    Source: Linux v6.12 mm/userfaultfd.c:userfaultfd_set_ctx(), which starts from the flags of the VMA as it is then.
    """
    before = [(near, near.vm_flags & VM_SOFTDIRTY) for near in mm.vmas.neighbours(vma) if near is not None]
    merged = vma_modify(mm, vma, start, end, vm_flags, vma.traits._replace(userfaultfd_ctx=ctx))
    for near, soft_dirty in before:
        if near is merged:
            mm.set_vma_flags(merged, merged.vm_flags & ~VM_SOFTDIRTY | soft_dirty)
