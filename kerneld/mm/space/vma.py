"""Virtual memory areas: `Vma` is one mapping, with its bounds, rights and file. `VmaTree` has them by address.

Knows no page table and counts nothing: `MmStruct` alone inserts, removes or changes a VMA. Answers to Linux v6.8
include/linux/mm_types.h (vm_area_struct). Invariant: a VMA is page-aligned and not empty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kerneld.mm.vm_flags import VM_GROWSDOWN, VM_RAND_READ, VM_SEQ_READ, VM_SOFTDIRTY
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Vaddr

if TYPE_CHECKING:
    from kerneld.mm.files.file import File
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.rmap import AnonVma
    from kerneld.mm.space.userfaultfd import UserfaultfdCtx

STACK_GUARD_GAP_BYTES = 256 * PAGE_SIZE
"""Kept free below a mapping that grows down (Linux: stack_guard_gap)."""


class Traits(NamedTuple):
    """What two VMAs have in common if they merge, besides flags, file, offsets and anon_vmas. Most have none of it."""

    policy: int = 0
    """The policy by mbind (Linux: vm_policy); see `kerneld.mm.space.mempolicy`."""
    anon_name: str = ""
    """What prctl has named the memory, as maps shows it: `[anon:NAME]`; "" for no name (Linux: anon_name)."""
    userfaultfd_ctx: UserfaultfdCtx | None = None
    """The userfaultfd that watches the VMA; None exactly without VM_UFFD_FLAGS."""


PLAIN = Traits()


class Vma:
    """One mapping: the pages of [start, end), bytes, page-aligned (Linux: struct vm_area_struct)."""

    __slots__ = (
        "anon_vma", "chain_top", "dev_zero", "end", "file", "link_order", "pgoff", "start", "tracks_writes", "traits",
        "vm_flags", "vm_mm",
    )  # fmt: skip

    def __init__(
        self,
        start: Vaddr,
        end: Vaddr,
        vm_flags: int,
        pgoff: int,
        file: File | None = None,
        dev_zero: File | None = None,
    ) -> None:
        self.start = start
        self.end = end
        self.vm_flags = vm_flags
        self.pgoff = pgoff
        """Offset of `start` in the file, in pages; for anonymous memory the page number it was first mapped at."""
        self.file = file
        self.dev_zero = dev_zero
        """The open /dev/zero of a private mapping: anonymous memory with a name, and with offsets of its own."""
        self.vm_mm: MmStruct | None = None
        """The address space that contains the VMA."""
        self.anon_vma: AnonVma | None = None
        self.chain_top: AnonVma | None = None
        """The last anon_vma of the VMA's chain: see `kerneld.mm.space.rmap`."""
        self.traits = PLAIN
        self.tracks_writes = False
        """Whether fresh entries of shared memory are read-only, so that the first write makes them soft-dirty. It is
        set with the rights, and may lag behind VM_SOFTDIRTY: see `vma_set_page_prot`."""
        self.link_order = 0
        """When the VMA was last put into its anon_vmas; who came later has a higher number."""

    def dup(self, start: Vaddr, end: Vaddr, pgoff: int) -> Vma:
        """Return a VMA like this one with other bounds, in no address space and without anon_vmas.

        Source: Linux v6.8 kernel/fork.c:vm_area_dup().
        """
        copy = Vma(start, end, self.vm_flags, pgoff, self.file, self.dev_zero)
        copy.traits = self.traits
        copy.tracks_writes = self.tracks_writes
        return copy

    @property
    def policy(self) -> int:
        """See `Traits`, as for the next two."""
        return self.traits.policy

    @property
    def anon_name(self) -> str:
        """The name that prctl has given."""
        return self.traits.anon_name

    @property
    def userfaultfd_ctx(self) -> UserfaultfdCtx | None:
        """The userfaultfd that watches the VMA."""
        return self.traits.userfaultfd_ctx

    @property
    def anon_vma_chain(self) -> tuple[AnonVma, ...]:
        """The anon_vmas of the frames that the VMA may map, the oldest first."""
        return () if self.chain_top is None else tuple(self.chain_top.chain())[::-1]

    @property
    def vm_file(self) -> File | None:
        """The open file that the mapping was made of (Linux: vm_file). Memory of /dev/zero has one, and no `file`."""
        return self.file or self.dev_zero

    @property
    def is_anonymous(self) -> bool:
        """Linux v6.8 include/linux/mm.h:vma_is_anonymous(): no vm_ops, so shared anonymous memory (a file) is not."""
        return self.file is None

    @property
    def has_close(self) -> bool:
        """Whether no merge may remove the VMA: it is counted, as an attach of System V's is (Linux: vm_ops->close)."""
        return self.file is not None and self.file.is_sysv_shm

    @property
    def nr_pages(self) -> int:
        """The length in pages."""
        return (self.end - self.start) >> PAGE_SHIFT

    def page_index(self, vaddr: Vaddr) -> int:
        """Return an address's page offset in the file (Linux: linear_page_index())."""
        return ((vaddr - self.start) >> PAGE_SHIFT) + self.pgoff

    def __repr__(self) -> str:
        return f"Vma({self.start:#x}-{self.end:#x} flags={self.vm_flags:#x} pgoff={self.pgoff:#x})"


def vm_start_gap(vma: Vma) -> Vaddr:
    """Return the start of the VMA with its guard gap, which no lower neighbour may use.

    Source: Linux v6.8 mm.h:vm_start_gap().
    """
    if vma.vm_flags & VM_GROWSDOWN:
        return max(0, vma.start - STACK_GUARD_GAP_BYTES)
    return vma.start


def vma_soft_dirty_enabled(vma: Vma) -> bool:
    """Return whether the entries of a VMA tell which pages are soft-dirty; without it all its pages are.

    Source: Linux v6.8 mm/internal.h:vma_soft_dirty_enabled().
    """
    return not vma.vm_flags & VM_SOFTDIRTY


def vma_has_recency(vma: Vma) -> bool:
    """Return whether accesses through a VMA say that its pages will be used again: not after MADV_SEQUENTIAL or RANDOM.

    Source: Linux v6.8 include/linux/mm_inline.h:vma_has_recency(), mm/rmap.c:invalid_folio_referenced_vma().
    """
    return not vma.vm_flags & (VM_SEQ_READ | VM_RAND_READ)
