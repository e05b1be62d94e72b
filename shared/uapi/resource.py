"""Resource limits: include/uapi/asm-generic/resource.h of Linux v6.8."""

from __future__ import annotations

from enum import IntEnum

RLIM_INFINITY = (1 << 64) - 1
RLIM_NLIMITS = 16
RLIMIT_NOFILE = 7
NR_OPEN = 1 << 20
"""The most open files that any limit may allow: fs.nr_open as it is at the start (Linux v6.8 fs/file.c)."""


class Rlimit(IntEnum):
    """The limits that memory management enforces."""

    DATA = 2
    STACK = 3
    MEMLOCK = 8
    AS = 9
