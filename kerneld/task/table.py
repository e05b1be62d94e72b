"""Who is there: the processes by pid, and the fork tokens that wait for a child.

Owns attach, fork's token and the record of privileges given up. Knows no socket; facts about real processes come
from the /proc of the host. Answers, for fork, to Linux v6.8 kernel/fork.c:kernel_clone() and copy_mm().

Invariants: `processes` holds exactly the processes that live; a token belongs to a parent that lives, and is good once.
"""

from __future__ import annotations

import errno
import secrets
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path

from kerneld.errors import SysError
from kerneld.hw.processor import INIT_PKRU
from kerneld.mm.calls.fork import dup_in_pieces, new_copy
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import exit_mmap, mmput
from kerneld.task.mmap_lock import MmapLocks
from kerneld.task.real_process import RealProcess, find_comm, find_ppid
from kerneld.task.task import Cred, Process, Thread
from shared.uapi.page import Pid
from shared.uapi.signals import Disposition

MAX_TOKENS = 16
"""Forks that one process may have begun and not yet finished; more is EAGAIN, as fork's at RLIMIT_NPROC. From the
second on they have no more mappings together than a process may have: each takes memory of the daemon's."""
_LAST_UID = (1 << 32) - 2


@dataclass(slots=True)
class _Token:
    """A copy of a parent that waits for the child to attach."""

    parent: Process
    mm: MmStruct
    cred: Cred
    dispositions: dict[int, Disposition]
    pkru: int


class ProcessTable:
    """The processes of one machine."""

    def __init__(self, superuser_uid: int, new_mm: Callable[[], MmStruct]) -> None:
        """`superuser_uid` is the daemon's user, a superuser beside root; `new_mm` makes a fresh process's memory."""
        self._superuser_uid = superuser_uid
        self._new_mm = new_mm
        self.processes: dict[Pid, Process] = {}
        self._tokens: dict[int, _Token] = {}
        self.mmap_locks = MmapLocks()
        self.ended: list[Process] = []
        """Those that have ended since take_ended()."""
        self._dropped: dict[Pid, tuple[RealProcess, Cred, bool]] = {}
        """Real processes that gave the superuser's rights up, by pid, and whether they are dumpable: they stay so if
        they close every connection and attach again."""

    def attach(self, pid: Pid, uid: int, gid: int, tid: Pid, token: int) -> Thread:
        """Make a thread of the real process `pid`: its first makes the process, with a token as the child of a fork.

        Raises SysError(EINVAL) for a tid that is no thread of it or is attached already, or a token that is unknown or
        not for a child of that parent, and SysError(ENOMEM) without a frame for its memory.
        """
        tid = tid or pid
        if tid != pid and not Path(f"/proc/{pid}/task/{tid}").exists():
            raise SysError(errno.EINVAL)
        process = self.processes.get(pid)
        if process is None:
            process, pkru = self._new_process(pid, uid, gid, token)
        elif token or any(thread.tid == tid for thread in process.threads):
            raise SysError(errno.EINVAL)
        else:
            pkru = process.threads[0].pkru
        thread = Thread(tid, process)
        thread.pkru = pkru
        process.threads.append(thread)
        return thread

    def _new_process(self, pid: Pid, uid: int, gid: int, token: int) -> tuple[Process, int]:
        """Return a process and the PKRU that its first thread has."""
        pkru = INIT_PKRU
        if token:
            copy = self._take_token(pid, token)
            process = Process(pid, copy.cred, copy.mm, copy.parent.comm, time.monotonic())
            process.dispositions = copy.dispositions
            pkru = copy.pkru
        else:
            fresh = Cred(uid, gid, uid in (0, self._superuser_uid)), True
            cred, dumpable = self._find_dropped(pid) or fresh
            process = Process(pid, cred, self._new_mm(), find_comm(pid), time.monotonic())
            process.live_mm.dumpable = dumpable
        self.add(process)
        return process, pkru

    def add(self, process: Process) -> None:
        """Take a process in; it leaves the table when it ends."""
        process.live_mm.is_superusers = process.cred.superuser
        process.on_exit = self._forget
        self.processes[process.pid] = process

    def _take_token(self, pid: Pid, token: int) -> _Token:
        copy = self._tokens.get(token)
        if copy is None or find_ppid(pid) != copy.parent.pid:
            raise SysError(errno.EINVAL)
        del self._tokens[token]
        return copy

    def clone(self, thread: Thread) -> Generator[None, None, int]:
        """Copy the memory of a thread's process, and its PKRU, and return the token for the child's attach.

        It yields where others may be served; other threads of the process wait meanwhile.

        Raises SysError(EAGAIN) with too many copies waiting, or too many mappings in them, SysError(ENOMEM).
        """
        parent = thread.process
        copies = self.copies_of(parent)
        if len(copies) >= MAX_TOKENS:
            raise SysError(errno.EAGAIN)
        nr_maps = sum(len(mm.vmas) for mm in [*copies, parent.live_mm])
        if copies and nr_maps > parent.live_mm.sysctl.max_map_count:
            raise SysError(errno.EAGAIN)
        # It is the parent's from the beginning: for the OOM killer, and should the parent end meanwhile.
        old, mm, token = parent.live_mm, new_copy(parent.live_mm), secrets.randbits(62) + 1
        self._tokens[token] = _Token(parent, mm, parent.cred, parent.dispositions.copy(), mm.frames.processor.pkru)
        try:
            with self.mmap_locks.write(thread):
                yield from dup_in_pieces(old, mm)
        except BaseException:
            if self._tokens.pop(token, None) is not None:
                exit_mmap(mm)
            raise
        return token

    def share(self, parent: Process) -> int:
        """Return a token with which a child attaches to the parent's own memory, as with CLONE_VM.

        Raises SysError(EAGAIN) with too many waiting. Source: Linux v6.8 kernel/fork.c:copy_mm().
        """
        if sum(copy.parent is parent for copy in self._tokens.values()) >= MAX_TOKENS:
            raise SysError(errno.EAGAIN)
        mm, token = parent.live_mm, secrets.randbits(62) + 1
        mm.users += 1
        self._tokens[token] = _Token(parent, mm, parent.cred, parent.dispositions.copy(), mm.frames.processor.pkru)
        return token

    def copies_of(self, parent: Process) -> list[MmStruct]:
        """Return the copies of a process's memory that wait for a child."""
        tokens = self._tokens.values()
        return [copy.mm for copy in tokens if copy.parent is parent and copy.mm is not parent.mm]

    def find_parent(self, mm: MmStruct) -> Process | None:
        """Return the process whose memory an address space is a copy of that waits for a child, or None."""
        return next((copy.parent for copy in self._tokens.values() if copy.mm is mm), None)

    def setuid(self, process: Process, uid: int) -> None:
        """Change who a process acts as; a superuser that becomes somebody else is none for good.

        Raises SysError(EINVAL) for no uid, SysError(EPERM) where somebody who is not the superuser takes another's,
        SysError(EAGAIN) where that cannot be remembered of it.
        Source: Linux v6.8 kernel/sys.c:__sys_setuid().
        """
        if uid > _LAST_UID:
            raise SysError(errno.EINVAL)
        cred = process.cred
        if not cred.superuser and uid != cred.uid:
            raise SysError(errno.EPERM)
        real = _held(process.pid) if cred.superuser and uid != 0 else None
        process.cred = replace(cred, uid=uid, superuser=cred.superuser and uid == 0)
        process.live_mm.is_superusers = process.cred.superuser
        if uid != cred.uid:
            # It may still know what others of its new user are not to see: kernel/cred.c:commit_creds().
            process.live_mm.dumpable = False
        if real is not None:
            for pid in [pid for pid in self._dropped if self._find_dropped(pid) is None]:
                del self._dropped[pid]
            self._dropped[process.pid] = (real, process.cred, process.live_mm.dumpable)

    def close(self) -> None:
        """The machine ends: let go of what the host is held to."""
        self._dropped.clear()

    def _find_dropped(self, pid: Pid) -> tuple[Cred, bool] | None:
        dropped = self._dropped.get(pid)
        if dropped is None or not dropped[0].has_its_pid():
            return None
        return dropped[1:]

    def _forget(self, process: Process) -> None:
        del self.processes[process.pid]
        for token in [token for token, copy in self._tokens.items() if copy.parent is process]:
            mmput(self._tokens.pop(token).mm)
        self.ended.append(process)

    def take_ended(self) -> list[Process]:
        """Return the processes that have ended since the last call."""
        ended = self.ended.copy()
        self.ended.clear()
        return ended

    def address_spaces(self) -> list[MmStruct]:
        """Return every address space there is, once: of processes, and of copies that wait for a child."""
        mms = [process.live_mm for process in self.processes.values()]
        return list(dict.fromkeys([*mms, *(copy.mm for copy in self._tokens.values())]))


def _held(pid: Pid) -> RealProcess:
    """Return a real process so that it is known again. Raises SysError(EAGAIN) where this daemon has no descriptor."""
    try:
        return RealProcess(pid)
    except OSError:
        raise SysError(errno.EAGAIN) from None
