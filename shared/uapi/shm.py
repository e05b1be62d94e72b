"""System V shared memory: Linux v6.8 include/uapi/linux/ipc.h, shm.h, and asm-generic/shmbuf.h."""

from __future__ import annotations

import struct

IPC_PRIVATE = 0
IPC_CREAT, IPC_EXCL = 0o1000, 0o2000
IPC_RMID, IPC_SET, IPC_STAT, IPC_INFO = range(4)
SHM_LOCK, SHM_UNLOCK, SHM_STAT, SHM_INFO, SHM_STAT_ANY = range(11, 16)
SHM_HUGETLB, SHM_NORESERVE = 0o4000, 0o10000
"""Flags of shmget."""
SHM_RDONLY, SHM_RND, SHM_REMAP, SHM_EXEC = 0o10000, 0o20000, 0o40000, 0o100000
"""Flags of shmat."""
SHM_DEST, SHM_LOCKED = 0o1000, 0o2000
"""Flags of a segment's mode."""
SHMID_DS = struct.Struct("<iIIIIIHHIQQQqqqiiQQQ")
"""struct shmid64_ds: key, uid, gid, cuid, cgid, mode, seq, three words of padding; size, atime, dtime, ctime, the pids
of the maker and of the last user, attaches, two words."""
SHMINFO = struct.Struct("<9Q")
"""struct shminfo64: shmmax, shmmin, shmmni, shmseg, shmall."""
SHM_INFO_TEXT = struct.Struct("<i4x5Q")
"""struct shm_info: segments, pages of all, in memory, in swap, two that are 0."""
