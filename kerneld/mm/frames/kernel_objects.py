"""The account of the daemon's own memory for mappings. It is not in the machine's frames, but it needs a limit too.

In Linux, VMAs and anon_vmas are in the machine's own memory (kmem_cache_alloc(vm_area_cachep, GFP_KERNEL)): a process
that makes too many gets ENOMEM, or the OOM killer comes. Here the limit is a share of the machine's size. Knows only
the number of VMAs. Answers to Linux v6.8 kernel/fork.c:vm_area_alloc(), vm_area_dup() and mm/rmap.c:anon_vma_alloc().

A user may have at most as many VMAs as are still free; the superuser has no such limit. So one user takes at most half
of all, the next at most half of the rest. Differs from Linux: there a memory cgroup limits a user's share.
"""

from __future__ import annotations

import errno
from weakref import WeakValueDictionary

from kerneld.errors import SysError

VMA_BYTES = 512
"""The size of a VMA with its anon_vma, rounded up. In forks of 24,000 VMAs 445 bytes were measured."""
_LEAST_BYTES = 128 << 20
"""The least memory for mappings, also on a small machine: a user may have two processes at vm.max_map_count."""


class Owner:
    """The account of mappings: one user, or the superuser."""

    __slots__ = ("__weakref__", "is_superuser", "nr_vmas")

    def __init__(self, *, is_superuser: bool = False) -> None:
        self.is_superuser = is_superuser
        self.nr_vmas = 0
        """The mappings of its processes, and of copies that wait for a child."""


class KernelObjects:
    """The mappings of one machine, of processes and of copies that wait for a child."""

    def __init__(self, ram_bytes: int) -> None:
        self.nr_vmas = 0
        self.max_vmas = max(ram_bytes // 2, _LEAST_BYTES) // VMA_BYTES
        """The number of VMAs that take half of the size of the machine's RAM."""
        self.superuser = Owner(is_superuser=True)
        self._owners: WeakValueDictionary[int, Owner] = WeakValueDictionary()

    def owner_of(self, uid: int, *, is_superuser: bool) -> Owner:
        """Return the account of a process that acts as this user."""
        if is_superuser:
            return self.superuser
        owner = self._owners.get(uid)
        if owner is None:
            owner = self._owners[uid] = Owner()
        return owner

    def check_room(self, owner: Owner, more: int, *, in_fork: bool = False) -> None:
        """Raise SysError(ENOMEM) if `more` VMAs would exceed the limit. A fork may not use the last eighth."""
        most = self.max_vmas - self.max_vmas // 8 if in_fork else self.max_vmas
        free = most - self.nr_vmas - more
        if free < 0 or (not owner.is_superuser and owner.nr_vmas + more > free):
            raise SysError(errno.ENOMEM)
