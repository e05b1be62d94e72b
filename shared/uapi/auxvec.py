"""The auxiliary vector on a new program's stack: include/uapi/linux/auxvec.h of Linux v6.8, and arch/x86's."""

from __future__ import annotations

from enum import IntEnum


class At(IntEnum):
    """The types of entries."""

    NULL = 0
    PHDR = 3
    PHENT = 4
    PHNUM = 5
    PAGESZ = 6
    BASE = 7
    FLAGS = 8
    ENTRY = 9
    UID = 11
    EUID = 12
    GID = 13
    EGID = 14
    PLATFORM = 15
    HWCAP = 16
    CLKTCK = 17
    SECURE = 23
    RANDOM = 25
    HWCAP2 = 26
    EXECFN = 31
    SYSINFO_EHDR = 33
    MINSIGSTKSZ = 51


CLOCKS_PER_SEC = 100
"""USER_HZ, the unit of times(2)."""
ELF_PLATFORM = b"x86_64"
ELF_HWCAP = 0x178B_FBFF
"""The feature bits of CPUID leaf 1, EDX, that every x86-64 processor has, up to SSE2."""
ELF_HWCAP2 = 0x2
"""HWCAP2_FSGSBASE: programs may use the instructions on FS and GS bases."""
