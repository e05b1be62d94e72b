"""The account of what the daemon itself takes for mappings: no frame of the machine is behind it, and it is memory too.

In Linux VMAs and anon_vmas come from the machine's own memory (kmem_cache_alloc(vm_area_cachep, GFP_KERNEL)): who makes
too many gets ENOMEM, or the OOM killer comes. Here a share of the machine's size stands for that. Knows no VMA, only
their number. Answers to Linux v6.8 kernel/fork.c:vm_area_alloc(), vm_area_dup() and mm/rmap.c:anon_vma_alloc().
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError

VMA_BYTES = 512
"""What a VMA takes with its anon_vma, rounded up: 445 bytes were measured, in forks of 24,000 VMAs."""
_LEAST_BYTES = 64 << 20
"""So much there is for mappings however small the machine is: two processes at vm.max_map_count."""


class KernelObjects:
    """The mappings of one machine, of processes and of copies that wait for a child."""

    def __init__(self, ram_bytes: int) -> None:
        self.nr_vmas = 0
        self.max_vmas = max(ram_bytes // 2, _LEAST_BYTES) // VMA_BYTES
        """As many as take half of what the machine's RAM is."""

    def check_room(self, more: int, *, in_fork: bool = False) -> None:
        """Raise SysError(ENOMEM) where so many VMAs more would be too many; forks leave others the last eighth."""
        most = self.max_vmas - self.max_vmas // 8 if in_fork else self.max_vmas
        if self.nr_vmas + more > most:
            raise SysError(errno.ENOMEM)
