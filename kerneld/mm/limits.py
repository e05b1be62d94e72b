"""Resource limits of a process and the sysctls of memory management.

Answers to Linux v6.8 include/asm-generic/resource.h (INIT_RLIMITS) and Documentation/admin-guide/sysctl/vm.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from shared.uapi.page import PAGE_SHIFT
from shared.uapi.resource import RLIM_INFINITY, RLIM_NLIMITS, Rlimit

STACK_LIMIT_BYTES = 8 << 20
MEMLOCK_LIMIT_BYTES = 8 << 20
OVERCOMMIT_GUESS, OVERCOMMIT_ALWAYS, OVERCOMMIT_NEVER = 0, 1, 2
"""Values of vm.overcommit_memory: Linux v6.8 include/uapi/linux/mman.h."""


class Rlimits:
    """The soft and hard limit of each resource, in the unit of the resource (bytes for all limits on memory)."""

    __slots__ = ("hard", "soft")

    def __init__(self) -> None:
        self.soft = [RLIM_INFINITY] * RLIM_NLIMITS
        self.hard = [RLIM_INFINITY] * RLIM_NLIMITS
        self.soft[Rlimit.STACK] = STACK_LIMIT_BYTES
        self.soft[Rlimit.MEMLOCK] = self.hard[Rlimit.MEMLOCK] = MEMLOCK_LIMIT_BYTES

    def copy(self) -> Rlimits:
        """Return an independent copy, for fork."""
        new = Rlimits()
        new.soft, new.hard = self.soft.copy(), self.hard.copy()
        return new

    def pages(self, resource: Rlimit) -> int:
        """Return a soft limit in whole pages."""
        return self.soft[resource] >> PAGE_SHIFT


class TransparentHugepage(StrEnum):
    """Which anonymous memory may get huge pages: Linux v6.8 Documentation/admin-guide/mm/transhuge.rst, `enabled`."""

    ALWAYS = "always"
    MADVISE = "madvise"
    NEVER = "never"


@dataclass(slots=True)
class Sysctl:
    """The settings of the whole machine: those of vm.NAME, and some that have other names."""

    max_map_count: int = 65_530
    mmap_min_addr: int = 65_536
    overcommit_memory: int = 0
    overcommit_ratio: int = 50
    transparent_hugepage: TransparentHugepage = TransparentHugepage.MADVISE
    admin_reserve_kbytes: int = 8 << 10
    user_reserve_kbytes: int = 128 << 10
    lsm_mmap_min_addr: int = 0
    """CONFIG_LSM_MMAP_MIN_ADDR: below it a program gets memory only if it asks for that address."""
    overcommit_kbytes: int = 0
    """What may be promised besides swap with overcommit_memory 2, in KiB; 0: overcommit_ratio says it."""
    min_free_kbytes: int = 0
    """The minimum watermark in KiB, for the whole of RAM. The machine sets it at its start."""
    watermark_scale_factor: int = 10
    """The least distance of two watermarks, in 1/10,000 of RAM."""
    unprivileged_userfaultfd: int = 0
    """Whether userfaultfd(2) without UFFD_USER_MODE_ONLY is for every program (1), or for CAP_SYS_PTRACE."""
    swappiness: int = 60
    """The share of anonymous pages in what reclaim scans, of 200."""

    @property
    def lowest_chosen_addr(self) -> int:
        """The lowest address for a hint or a growing stack: Linux v6.8 security/min_addr.c."""
        return max(self.mmap_min_addr, self.lsm_mmap_min_addr)
