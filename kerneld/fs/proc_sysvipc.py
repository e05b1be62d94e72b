"""/proc/sysvipc/shm: the segments of System V shared memory. Linux v6.8 ipc/shm.c:sysvipc_shm_proc_show()."""

from __future__ import annotations

from collections.abc import Iterable

from kerneld.task.shm import Segment
from shared.uapi.page import PAGE_SHIFT

_HEADER = (
    "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime"
    "      ctime                   rss                  swap\n"
)


def show_sysvipc_shm(segments: Iterable[Segment]) -> bytes:
    """Return one line for each segment, under a line of names."""
    return (_HEADER + "".join(map(_line, segments))).encode()


def _line(each: Segment) -> str:
    resident, swapped = len(each.mapping.pages) << PAGE_SHIFT, len(each.mapping.swapped) << PAGE_SHIFT
    return (
        f"{each.key:10} {each.id:10}  {each.mode:4o} {each.size_bytes:21} {each.cpid:5} {each.lpid:5}  {each.nattch:5} "
        f"{each.uid:5} {each.gid:5} {each.cuid:5} {each.cgid:5} {each.atime:10} {each.dtime:10} {each.ctime:10} "
        f"{resident:21} {swapped:21}\n"
    )
