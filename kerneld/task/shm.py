"""System V shared memory: segments with keys, their owners and rights. A segment lives until it is removed.

Owns the table of segments. A segment's pages are those of a file in memory, which every attach maps by a File of its
own. Knows no system call. Answers to Linux v6.8 ipc/shm.c and ipc/util.c.

Invariants: the table holds the cache of each segment that is not removed (`AddressSpace.nr_holds`); a removed segment
has no key, and goes with its last VMA.

Differs from Linux: SHM_LOCK only sets the flag, reclaim may still take the pages; a user has no other group than its
first; the times of a segment are those of shmat and shmdt, not of fork and exit.
"""

from __future__ import annotations

import errno
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from kerneld.errors import SysError
from kerneld.mm.files.file import File, shmem_zero_setup
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import Frames
from kerneld.mm.limits import OVERCOMMIT_NEVER
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.overcommit import check_enough_memory
from kerneld.task.capability import CAP_IPC_LOCK, CAP_IPC_OWNER, CAP_SYS_ADMIN
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pid
from shared.uapi.shm import IPC_CREAT, IPC_EXCL, IPC_PRIVATE, SHM_DEST, SHM_HUGETLB, SHM_LOCKED, SHM_NORESERVE

SHMMAX = (1 << 64) - 1 - (1 << 24)
SHMALL = SHMMAX
SHMMNI = 4096
IPC_MNI = 32_768
"""The most segments, and the most that kernel.shmmni may be."""
_MIN_CYCLE = 64
"""So many indexes are used in turn, even with few segments."""
_ID_SHIFT, _MOST_SEQ = 15, 1 << 16
_INDEX = (1 << _ID_SHIFT) - 1
"""The bits of an id that are its index."""
_RIGHTS = 0o777


@dataclass(slots=True, eq=False)
class Segment:
    """One segment (Linux: struct shmid_kernel)."""

    id: int
    key: int
    mapping: AddressSpace
    size_bytes: int
    uid: int
    gid: int
    mode: int
    """The rights, and the SHM_ flags."""
    cpid: Pid
    cuid: int = field(init=False)
    cgid: int = field(init=False)
    lpid: Pid = 0
    atime: int = 0
    dtime: int = 0
    ctime: int = 0

    def __post_init__(self) -> None:
        """The maker is the first owner."""
        self.cuid, self.cgid = self.uid, self.gid
        self.ctime = int(time.time())

    @property
    def nr_pages(self) -> int:
        """Its size in pages."""
        return self.size_bytes + PAGE_SIZE - 1 >> PAGE_SHIFT

    @property
    def nattch(self) -> int:
        """The VMAs that map it."""
        return len(self.mapping.i_mmap)

    def open(self, *, writable: bool) -> File:
        """Return the file of a new attach."""
        name = f"/SYSV{self.key & 0xFFFF_FFFF:08x} (deleted)"
        file = File(self.mapping, name, readable=True, writable=writable, dev=1, ino=self.id)
        file.is_sysv_shm = True
        return file


class Caller(NamedTuple):
    """Who makes a call."""

    uid: int
    gid: int
    pid: Pid
    caps: int

    def capable(self, capability: int) -> bool:
        """Return whether the caller has a capability."""
        return self.caps >> capability & 1 != 0


class ShmSegments:
    """The segments of the machine (Linux: the ids of struct ipc_namespace)."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._by_index: dict[int, Segment] = {}
        self._by_key: dict[int, Segment] = {}
        self.nr_pages = 0
        """Of all segments, attached or not (Linux: ipc_namespace.shm_tot)."""
        self._seq, self._last_index, self._next_index = 0, -1, 0
        self.ctlmax, self.ctlall, self.ctlmni = SHMMAX, SHMALL, SHMMNI
        """kernel.shmmax: the most bytes of a segment; shmall: the most pages of all; shmmni: the most segments."""
        self.next_id = -1
        """kernel.shm_next_id: the id that the next new segment is to have; -1: any."""

    def __iter__(self) -> Iterator[Segment]:
        """Yield the segments, by index."""
        return iter([self._by_index[index] for index in sorted(self._by_index)])

    def from_index(self, first: int) -> Iterator[tuple[int, Segment]]:
        """Yield the segments from an index on, each with its own. Some may go meanwhile."""
        for index in sorted(index for index in self._by_index if index >= first):
            segment = self._by_index.get(index)
            if segment is not None:
                yield index, segment

    def mappings(self) -> list[AddressSpace]:
        """Return the caches that live although nobody may map them."""
        return [segment.mapping for segment in self._by_index.values() if not segment.mode & SHM_DEST]

    def _destroy(self, segment: Segment) -> None:
        """Forget a removed segment that nothing maps any more. Source: Linux v6.8 ipc/shm.c:shm_destroy()."""
        del self._by_index[segment.id & _INDEX]
        self.nr_pages -= segment.nr_pages

    def shmget(self, caller: Caller, mm: MmStruct, key: int, size_bytes: int, flags: int) -> int:
        """Return the id of the segment of a key, or of a new one. `mm` is the caller's memory.

        Raises SysError(ENOENT, EEXIST, EACCES), SysError(EINVAL) for a bad size or a larger one than the segment has,
        SysError(ENOSPC) beyond a limit, SysError(EPERM) for huge pages without CAP_IPC_LOCK, SysError(ENOMEM).
        Source: Linux v6.8 ipc/util.c:ipcget(), ipc/shm.c:newseg(), shm_more_checks().
        """
        found = None if key == IPC_PRIVATE else self._by_key.get(key)
        if found is None:
            if key != IPC_PRIVATE and not flags & IPC_CREAT:
                raise SysError(errno.ENOENT)
            return self._new(caller, mm, key, size_bytes, flags).id
        if flags & IPC_CREAT and flags & IPC_EXCL:
            raise SysError(errno.EEXIST)
        if found.size_bytes < size_bytes:
            raise SysError(errno.EINVAL)
        check_rights(found, caller, flags)
        return found.id

    def _new(self, caller: Caller, mm: MmStruct, key: int, size_bytes: int, flags: int) -> Segment:
        pages = size_bytes + PAGE_SIZE - 1 >> PAGE_SHIFT
        if not 1 <= size_bytes <= self.ctlmax:
            raise SysError(errno.EINVAL)
        if self.nr_pages + pages > self.ctlall:
            raise SysError(errno.ENOSPC)
        if flags & SHM_HUGETLB:
            # The pool is empty. Source: Linux v6.8 fs/hugetlbfs/inode.c:hugetlb_file_setup().
            raise SysError(errno.ENOMEM if caller.capable(CAP_IPC_LOCK) else errno.EPERM)
        noreserve = flags & SHM_NORESERVE != 0 and mm.sysctl.overcommit_memory != OVERCOMMIT_NEVER
        if not noreserve:
            check_enough_memory(mm, pages)
        if len(self._by_index) >= self.ctlmni:
            raise SysError(errno.ENOSPC)
        number = self._new_id()
        mapping = shmem_zero_setup(self._frames, size_bytes, noreserve=noreserve).mapping
        mapping.nr_holds += 1
        mode = flags & _RIGHTS
        segment = Segment(number, key, mapping, size_bytes, caller.uid, caller.gid, mode, caller.pid)
        mapping.on_evict = partial(self._destroy, segment)
        self._by_index[number & _INDEX] = segment
        if key != IPC_PRIVATE:
            self._by_key[key] = segment
        self.nr_pages += pages
        return segment

    def _new_id(self) -> int:
        """Return the id of a new segment: the one that kernel.shm_next_id asks for, or one with the next free index.

        If the index of the one asked for is in use, it is the next one above. Raises SysError(ENOSPC).
        Source: Linux v6.8 ipc/util.c:ipc_idr_alloc().
        """
        wanted, self.next_id = self.next_id, -1
        if wanted >= 0:
            index = next((at for at in range(wanted & _INDEX, _INDEX + 1) if at not in self._by_index), None)
            if index is None:
                raise SysError(errno.ENOSPC)
            return wanted & ~_INDEX | index
        end = min(max(len(self._by_index) * 3 // 2, _MIN_CYCLE), IPC_MNI)
        order = itertools.chain(range(self._next_index, end), range(end))
        index = next((at for at in order if at not in self._by_index), None)
        if index is None:
            raise SysError(errno.ENOSPC)
        self._next_index = index + 1
        if index <= self._last_index:
            self._seq = (self._seq + 1) % _MOST_SEQ
        self._last_index = index
        return self._seq << _ID_SHIFT | index

    def at(self, index: int) -> Segment:
        """Return the segment of an index; of an id, its index counts. Raises SysError(EINVAL).

        Source: Linux v6.8 ipc/util.c:ipc_obtain_object_idr().
        """
        segment = self._by_index.get(index & _INDEX)
        if segment is None:
            raise SysError(errno.EINVAL)
        return segment

    def get(self, number: int) -> Segment:
        """Return the segment of an id. Raises SysError(EINVAL), SysError(EIDRM) if another one has its index now."""
        if number < 0:
            raise SysError(errno.EINVAL)
        segment = self.at(number)
        if segment.id != number:
            raise SysError(errno.EIDRM)
        return segment

    def most_used_index(self) -> int:
        """Return the highest index in use, 0 if there is none (Linux: ipc_get_maxidx())."""
        return max(self._by_index, default=0)

    def remove(self, segment: Segment) -> None:
        """Remove a segment: at once, or with its last VMA. Source: Linux v6.8 ipc/shm.c:do_shm_rmid()."""
        if segment.mode & SHM_DEST:
            return
        segment.mode |= SHM_DEST
        if segment.key != IPC_PRIVATE:
            del self._by_key[segment.key]
            segment.key = IPC_PRIVATE
        mapping = segment.mapping
        mapping.nr_holds -= 1
        mapping.evict_unused()


def check_rights(segment: Segment, caller: Caller, wanted: int) -> None:
    """Raise SysError(EACCES) unless the caller has all rights in `wanted`. Source: Linux v6.8 ipc/util.c:ipcperms()."""
    requested = wanted >> 6 | wanted >> 3 | wanted
    granted = segment.mode
    if caller.uid in (segment.cuid, segment.uid):
        granted >>= 6
    elif caller.gid in (segment.cgid, segment.gid):
        granted >>= 3
    if requested & ~granted & 7 and not caller.capable(CAP_IPC_OWNER):
        raise SysError(errno.EACCES)


def check_owner(segment: Segment, caller: Caller) -> None:
    """Raise SysError(EPERM) for who may not change a segment. Source: Linux v6.8 ipc/util.c:ipcctl_obtain_check()."""
    if caller.uid not in (segment.cuid, segment.uid) and not caller.capable(CAP_SYS_ADMIN):
        raise SysError(errno.EPERM)


def set_locked(segment: Segment, caller: Caller, *, locked: bool, may_lock: bool) -> None:
    """Do SHM_LOCK and SHM_UNLOCK. `may_lock`: the caller's limit of locked memory is not 0.

    Raises SysError(EPERM). Source: Linux v6.8 ipc/shm.c:ksys_shmctl().
    """
    is_owner = caller.uid in (segment.uid, segment.cuid)
    if not caller.capable(CAP_IPC_LOCK) and (not is_owner or (locked and not may_lock)):
        raise SysError(errno.EPERM)
    segment.mode = segment.mode | SHM_LOCKED if locked else segment.mode & ~SHM_LOCKED
