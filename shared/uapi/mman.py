"""Flags of the memory calls: include/uapi/linux/mman.h, asm-generic/mman-common.h and arch/x86's, of Linux v6.8."""

from __future__ import annotations

from enum import IntEnum, IntFlag


class Prot(IntFlag):
    """Protection of a mapping."""

    NONE = 0
    READ = 0x1
    WRITE = 0x2
    EXEC = 0x4
    SEM = 0x8
    GROWSDOWN = 0x0100_0000
    GROWSUP = 0x0200_0000


class Pkey(IntFlag):
    """The accesses to the new key's memory that pkey_alloc denies to the caller's thread."""

    DISABLE_ACCESS = 0x1
    DISABLE_WRITE = 0x2


class Map(IntFlag):
    """Flags of mmap. SHARED_VALIDATE is the value 3 of the two-bit type field MAP_TYPE."""

    FILE = 0x0
    SHARED = 0x01
    PRIVATE = 0x02
    SHARED_VALIDATE = 0x03
    FIXED = 0x10
    ANONYMOUS = 0x20
    BIT32 = 0x40
    ABOVE4G = 0x80
    GROWSDOWN = 0x0100
    DENYWRITE = 0x0800
    EXECUTABLE = 0x1000
    LOCKED = 0x2000
    NORESERVE = 0x4000
    POPULATE = 0x8000
    NONBLOCK = 0x1_0000
    STACK = 0x2_0000
    HUGETLB = 0x4_0000
    SYNC = 0x8_0000
    FIXED_NOREPLACE = 0x10_0000
    UNINITIALIZED = 0x400_0000


MAP_HUGE_SIZES = 0x7C00_0000
"""The bits of MAP_HUGE_2MB and MAP_HUGE_1GB."""
MAP_TYPE = 0x0F
"""Mask of the bits of `Map` that say shared or private."""


class Mremap(IntFlag):
    """Flags of mremap."""

    MAYMOVE = 1
    FIXED = 2
    DONTUNMAP = 4


class Ms(IntFlag):
    """Flags of msync."""

    ASYNC = 1
    INVALIDATE = 2
    SYNC = 4


class Mcl(IntFlag):
    """Flags of mlockall."""

    CURRENT = 1
    FUTURE = 2
    ONFAULT = 4


class Pr(IntEnum):
    """Options of prctl about memory, PR_SET_THP_DISABLE and its like."""

    GET_DUMPABLE = 3
    SET_DUMPABLE = 4
    SET_THP_DISABLE = 41
    GET_THP_DISABLE = 42
    SET_MDWE = 65
    GET_MDWE = 66
    SET_MEMORY_MERGE = 67
    GET_MEMORY_MERGE = 68
    SET_VMA = 0x53564D41


PR_MDWE_REFUSE_EXEC_GAIN, PR_MDWE_NO_INHERIT = 1, 2
"""The flags of PR_SET_MDWE."""
PR_SET_VMA_ANON_NAME = 0
"""What PR_SET_VMA sets."""
ANON_VMA_NAME_MAX_LEN = 80
"""The most bytes of a name, with its NUL."""
MLOCK_ONFAULT = 1
"""The one flag of mlock2."""


class Madv(IntEnum):
    """Advice of madvise."""

    NORMAL = 0
    RANDOM = 1
    SEQUENTIAL = 2
    WILLNEED = 3
    DONTNEED = 4
    FREE = 8
    REMOVE = 9
    DONTFORK = 10
    DOFORK = 11
    MERGEABLE = 12
    UNMERGEABLE = 13
    HUGEPAGE = 14
    NOHUGEPAGE = 15
    DONTDUMP = 16
    DODUMP = 17
    WIPEONFORK = 18
    KEEPONFORK = 19
    COLD = 20
    PAGEOUT = 21
    POPULATE_READ = 22
    POPULATE_WRITE = 23
    DONTNEED_LOCKED = 24
    COLLAPSE = 25
    HWPOISON = 100
    SOFT_OFFLINE = 101
