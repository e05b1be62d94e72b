"""/proc/sysvipc/shm: the segments of System V shared memory. Linux v6.8 ipc/shm.c:sysvipc_shm_proc_show()."""

from __future__ import annotations

from kerneld.fs.seq_file import START, Records
from kerneld.task.shm import Segment, ShmSegments
from shared.uapi.page import PAGE_SHIFT

_HEADER = (
    "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime"
    "      ctime                   rss                  swap\n"
)


def show_sysvipc_shm(segments: ShmSegments, key: int) -> Records:
    """Yield a line of names, whose key is START, and one for each segment: its key is its index and one more.

    Source: Linux v6.8 ipc/util.c:sysvipc_proc_next().
    """
    if key == START:
        key = START + 1
        yield key, _HEADER.encode()
    for index, segment in segments.from_index(key - 1):
        yield index + 2, _line(segment).encode()


def _line(each: Segment) -> str:
    resident, swapped = len(each.mapping.pages) << PAGE_SHIFT, len(each.mapping.swapped) << PAGE_SHIFT
    return (
        f"{each.key:10} {each.id:10}  {each.mode:4o} {each.size_bytes:21} {each.cpid:5} {each.lpid:5}  {each.nattch:5} "
        f"{each.uid:5} {each.gid:5} {each.cuid:5} {each.cgid:5} {each.atime:10} {each.dtime:10} {each.ctime:10} "
        f"{resident:21} {swapped:21}\n"
    )
