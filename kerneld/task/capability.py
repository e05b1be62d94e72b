"""Linux's capabilities that memory management asks for, by number: include/uapi/linux/capability.h.

| capability   | without it                                                                          |
|--------------|-------------------------------------------------------------------------------------|
| IPC_LOCK     | RLIMIT_MEMLOCK holds: mlock, MAP_LOCKED, a heap or a stack that is locked           |
| IPC_OWNER    | the rights of a segment of System V shared memory hold                               |
| SYS_PTRACE   | another user's process, or one with more rights, cannot be accessed                 |
| SYS_ADMIN    | pagemap shows no frames; the last 1/32 of RAM (at most 8 MiB) cannot be promised    |
| SYS_NICE     | process_madvise is EPERM; so is mbind with MPOL_MF_MOVE_ALL                         |
| SYS_RESOURCE | a hard limit cannot be raised, and a process of another user cannot be limited      |
"""

from __future__ import annotations

CAP_IPC_LOCK = 14
CAP_IPC_OWNER = 15
CAP_SYS_PTRACE = 19
CAP_SYS_ADMIN = 21
CAP_SYS_NICE = 23
CAP_SYS_RESOURCE = 24
ALL_CAPS = (1 << 41) - 1
"""All capabilities of Linux v6.8."""
