"""The table of processes by pid, and the fork tokens that wait for a child.

Owns attach, the token of fork, and the record of dropped privileges. Knows no socket; facts about real processes come
from the /proc of the host. Answers, for fork, to Linux v6.8 kernel/fork.c:kernel_clone() and copy_mm().

Invariants: `processes` holds exactly the living processes; a token belongs to a living parent, or to a child of a
native program whose connection lives; it is valid once.
"""

from __future__ import annotations

import errno
import secrets
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

from kerneld.errors import SysError
from kerneld.mm.calls.fork import dup_in_pieces, new_copy
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import exit_mmap, mmput
from kerneld.task.capability import CAP_SYS_ADMIN
from kerneld.task.mmap_lock import MmapLocks
from kerneld.task.real_process import RealProcess, find_comm, find_ppid, find_real_creds, find_tid
from kerneld.task.task import Cred, Inherited, Process, Thread
from shared.uapi.page import Pid
from shared.uapi.signals import Disposition

MAX_TOKENS = 16
"""The most unfinished forks of one process; more is EAGAIN, as for a fork at RLIMIT_NPROC. From the second fork on,
they may have together as many mappings as one process, because each mapping takes memory of the daemon."""
_LAST_UID = (1 << 32) - 2


@dataclass(slots=True)
class _Token:
    """A copy of a parent that waits for the child to attach."""

    thread: Thread
    """The thread that forks."""
    mm: MmStruct
    cred: Cred
    dispositions: dict[int, Disposition]
    inherited: Inherited
    may_be_native: bool
    line: int
    """The number of the connection by which the child attaches; 0 if it makes its own."""

    @property
    def parent(self) -> Process:
        """The process of the thread that forks."""
        return self.thread.process


class _Tokens:
    """The copies that wait for a child, by token. Those of one parent are found without a look at all others."""

    def __init__(self) -> None:
        self.all: dict[int, _Token] = {}
        self.given: dict[int, _Token] = {}
        """Those of native programs: the copy is whole, and the thread that forks has the token."""
        self._of: dict[Process, dict[int, _Token]] = {}

    def add(self, token: int, copy: _Token) -> None:
        self.all[token] = self._of.setdefault(copy.parent, {})[token] = copy

    def take(self, token: int) -> _Token:
        """Remove a token, and return its copy."""
        copy = self.all.pop(token)
        self.given.pop(token, None)
        siblings = self._of[copy.parent]
        del siblings[token]
        if not siblings:
            del self._of[copy.parent]
        return copy

    def find(self, token: int) -> _Token | None:
        """Return the copy of a token, or None."""
        return self.all.get(token)

    def of(self, parent: Process) -> Mapping[int, _Token]:
        """Return the copies of a parent."""
        return self._of.get(parent, {})


class ProcessTable:
    """The processes of one machine."""

    def __init__(self, superuser_uid: int, new_mm: Callable[[], MmStruct]) -> None:
        """`superuser_uid` is the daemon's user, a superuser beside root.

        `new_mm` makes the memory of a fresh process.
        """
        self._superuser_uid = superuser_uid
        self._new_mm = new_mm
        self.processes: dict[Pid, Process] = {}
        self._tokens = _Tokens()
        self._admitted: dict[int, Process] = {}
        """By token, the children that have not attached and are processes already. The one thread of each waits for
        its connection."""
        self.mmap_locks = MmapLocks()
        self.ended: list[Process] = []
        """The processes that have ended since take_ended()."""
        self._dropped: dict[Pid, tuple[RealProcess, Cred, bool]] = {}
        """By pid, real processes that gave up the superuser's rights, and whether they are dumpable. They do not get
        the rights back when they close every connection and attach again."""

    def attach(self, pid: Pid, uid: int, gid: int, tid: Pid, token: int, inherited: Inherited | None = None) -> Thread:
        """Make a thread of the real process `pid`. The first thread makes the process; with a token, as a forked child.

        A program knows a thread by `tid`, its number in the program's PID namespace.
        A further thread has what is `inherited`, if it is known who has made it, else what the first thread has.
        Raises SysError(EINVAL) for a tid that is no thread of the process or is attached already, and for a token that
        is unknown or not for a child of that parent; SysError(ENOMEM) without a frame for its memory.
        """
        tid = (find_tid(pid, tid) or 0) if tid else pid
        if not tid:
            raise SysError(errno.EINVAL)
        process = self.processes.get(pid)
        if token and process is not None and self._admitted.get(token) is process and tid == pid:
            return self._admitted.pop(token).threads[0]
        if process is None:
            process, inherited = self._new_process(pid, uid, gid, token)
        elif token or any(thread.tid == tid for thread in process.threads):
            raise SysError(errno.EINVAL)
        else:
            inherited = inherited or Inherited.of(process.threads[0], process.threads[0].pkru)
        return _new_thread(tid, process, inherited)

    def _new_process(self, pid: Pid, uid: int, gid: int, token: int) -> tuple[Process, Inherited]:
        """Return a process, and what its first thread begins with."""
        inherited = Inherited()
        if token:
            copy = self._take_token(pid, token)
            process, inherited = _forked(pid, copy), copy.inherited
        else:
            fresh = Cred(uid, gid, uid in (0, self._superuser_uid)), True
            cred, dumpable = self._find_dropped(pid) or fresh
            process = Process(pid, cred, self._new_mm(), find_comm(pid), time.monotonic())
            process.live_mm.dumpable = dumpable
        self.add(process)
        return process, inherited

    def add(self, process: Process) -> None:
        """Add a process. It leaves the table when it ends."""
        _charge(process)
        process.on_exit = self._forget
        self.processes[process.pid] = process

    def admit(self, pid: Pid, token: int) -> Process:
        """Make the process of a native program's child before the child attaches with its token."""
        copy = self._tokens.take(token)
        process = _forked(pid, copy)
        _new_thread(pid, process, copy.inherited)
        self._admitted[token] = process
        self.add(process)
        return process

    def forking(self) -> list[tuple[int, Thread]]:
        """Return the token of each native program's child that has not attached, and the thread that forks."""
        return [(token, copy.thread) for token, copy in self._tokens.given.items()]

    def give(self, token: int) -> None:
        """Note that the thread that forks a native program's child has the token now."""
        self._tokens.given[token] = self._tokens.all[token]

    def _take_token(self, pid: Pid, token: int) -> _Token:
        copy = self._tokens.find(token)
        # The stub of a native program gives the token to its child alone, which may have another parent (CLONE_PARENT).
        if copy is None or not (copy.may_be_native or find_ppid(pid) == copy.parent.pid):
            raise SysError(errno.EINVAL)
        return self._tokens.take(token)

    def clone(self, thread: Thread) -> Generator[None, None, int]:
        """Copy the memory of a thread's process, and its PKRU. Return the token for the child's attach.

        It yields, so that other clients may be served. The other threads of the process wait until it is done.
        Raises SysError(EAGAIN) for too many waiting copies or too many mappings in them, and SysError(ENOMEM).
        """
        parent = thread.process
        copies = self.copies_of(parent)
        if len(copies) >= MAX_TOKENS:
            raise SysError(errno.EAGAIN)
        nr_maps = sum(len(mm.vmas) for mm in [*copies, parent.live_mm])
        if copies and nr_maps > parent.live_mm.sysctl.max_map_count:
            raise SysError(errno.EAGAIN)
        # The copy belongs to the parent from the beginning: the OOM killer must find it, and the parent may end
        # meanwhile.
        old, mm, token = parent.live_mm, new_copy(parent.live_mm), self._new_number(parent)
        self._tokens.add(token, _new_token(thread, mm))
        try:
            with self.mmap_locks.write(thread):
                yield from dup_in_pieces(old, mm)
        except BaseException:
            if self._tokens.find(token) is not None:
                self._tokens.take(token)
                exit_mmap(mm)
            raise
        return token

    def share(self, thread: Thread) -> int:
        """Return a token with which a child attaches to the parent's own memory, as with CLONE_VM.

        Raises SysError(EAGAIN) with too many waiting. Source: Linux v6.8 kernel/fork.c:copy_mm().
        """
        parent = thread.process
        if len(self._tokens.of(parent)) >= MAX_TOKENS:
            raise SysError(errno.EAGAIN)
        mm, token = parent.live_mm, self._new_number(parent)
        mm.users += 1
        self._tokens.add(token, _new_token(thread, mm))
        return token

    def _new_number(self, parent: Process) -> int:
        """Return a token that nobody can guess. The waiting tokens of a process differ in their last 4 bits.

        So each has a field of its own in a ring: `shared.uapi.ring.CHILDREN_START`.
        """
        used = {token % MAX_TOKENS for token in self._tokens.of(parent)}
        free = min(set(range(MAX_TOKENS)) - used)
        return (secrets.randbits(58) + 1) * MAX_TOKENS + free

    def cancel(self, parent: Process, token: int) -> None:
        """Drop a token of a process: the real fork has failed. Raises SysError(EINVAL) for one that is not its own."""
        if token not in self._tokens.of(parent):
            raise SysError(errno.EINVAL)
        mmput(self._tokens.take(token).mm)

    def line_lost(self, line: int) -> None:
        """Drop the token of a child that will not attach: its connection has ended before."""
        if line:
            for token in [token for token, copy in self._tokens.all.items() if copy.line == line]:
                mmput(self._tokens.take(token).mm)

    def copies_of(self, parent: Process) -> list[MmStruct]:
        """Return the copies of a process's memory that wait for a child."""
        return [copy.mm for copy in self._tokens.of(parent).values() if copy.mm is not parent.mm]

    def find_parent(self, number: int) -> Process | None:
        """Return the parent of the copy of this number that waits for a child; None for another address space."""
        return next((copy.parent for copy in self._tokens.all.values() if copy.mm.number == number), None)

    def unattached_of(self, process: Process) -> list[MmStruct]:
        """Return the memory that goes with a process beside its own: what `copies_of` returns, and what its execves
        fill (Linux counts the latter as the process's: fs/exec.c:acct_arg_size())."""
        return [*self.copies_of(process), *process.new_mms]

    def setuid(self, process: Process, uid: int) -> None:
        """Set the user of a process. A superuser that takes another user loses its privilege for good.

        Raises SysError(EINVAL) for an invalid uid, SysError(EPERM) if a process without privilege takes another user,
        and SysError(EAGAIN) if the daemon cannot keep a record of the dropped privilege.
        Source: Linux v6.8 kernel/sys.c:__sys_setuid().
        """
        if uid > _LAST_UID:
            raise SysError(errno.EINVAL)
        cred = process.cred
        if not cred.superuser and uid != cred.uid:
            raise SysError(errno.EPERM)
        real = _held(process.pid) if cred.superuser and uid != 0 else None
        _commit_creds(process, Cred(uid, cred.gid, superuser=cred.superuser and uid == 0))
        if real is not None:
            for pid in [pid for pid in self._dropped if self._find_dropped(pid) is None]:
                del self._dropped[pid]
            self._dropped[process.pid] = (real, process.cred, process.live_mm.dumpable)

    def take_real_creds(self, process: Process, tid: Pid) -> None:
        """Give a native process the effective user and the capabilities that the thread of its real process has now.

        For a real process that has ended nothing changes. Source: Linux v6.8 kernel/cred.c:commit_creds().
        """
        found = find_real_creds(process.pid, tid)
        if found is not None:
            uid, gid, caps = found
            cred = Cred(uid, gid, superuser=uid in (0, self._superuser_uid), caps=caps)
            if cred != process.cred:
                _commit_creds(process, cred)

    def close(self) -> None:
        """Close the pidfds, at the end of the machine."""
        self._dropped.clear()

    def _find_dropped(self, pid: Pid) -> tuple[Cred, bool] | None:
        dropped = self._dropped.get(pid)
        if dropped is None or not dropped[0].has_its_pid():
            return None
        return dropped[1:]

    def _forget(self, process: Process) -> None:
        del self.processes[process.pid]
        if self._admitted:
            self._admitted = {token: child for token, child in self._admitted.items() if child is not process}
        # A native program's child may live already: it attaches later, or its connection ends.
        for token in [token for token, copy in self._tokens.of(process).items() if not copy.line]:
            mmput(self._tokens.take(token).mm)
        self.ended.append(process)

    def take_ended(self) -> list[Process]:
        """Return the processes that have ended since the last call."""
        ended = self.ended.copy()
        self.ended.clear()
        return ended

    def address_spaces(self) -> list[MmStruct]:
        """Return every address space there is, once: of processes, of execves, and of copies that wait for a child.

        A process that is at its end has given up its own: it is among the dying ones.
        """
        mms = [process.mm for process in self.processes.values() if process.mm is not None]
        new = [mm for process in self.processes.values() for mm in process.new_mms]
        return list(dict.fromkeys([*mms, *new, *(copy.mm for copy in self._tokens.all.values())]))


def _new_token(thread: Thread, mm: MmStruct) -> _Token:
    parent, inherited = thread.process, Inherited.of(thread, mm.frames.processor.pkru)
    dispositions = parent.dispositions.copy()
    return _Token(thread, mm, parent.cred, dispositions, inherited, parent.may_be_native, thread.line)


def _new_thread(tid: Pid, process: Process, inherited: Inherited) -> Thread:
    thread = Thread(tid, process)
    thread.inherit(inherited)
    process.threads.append(thread)
    return thread


def _forked(pid: Pid, copy: _Token) -> Process:
    process = Process(pid, copy.cred, copy.mm, copy.parent.comm, time.monotonic())
    process.dispositions = copy.dispositions
    process.may_be_native = copy.may_be_native
    process.oom_score_adj, process.oom_score_adj_min = copy.parent.oom_score_adj, copy.parent.oom_score_adj_min
    return process


def _charge(process: Process) -> None:
    process.live_mm.charge_to(process.cred.uid, is_superuser=process.cred.capable(CAP_SYS_ADMIN))


def _commit_creds(process: Process, cred: Cred) -> None:
    """Source: Linux v6.8 kernel/cred.c:commit_creds()."""
    old, process.cred = process.cred, cred
    _charge(process)
    if (old.uid, old.gid) != (cred.uid, cred.gid) or cred.caps & ~old.caps:
        # Its memory may still hold secrets from before, hidden from its new user.
        process.live_mm.dumpable = False


def _held(pid: Pid) -> RealProcess:
    """Return a handle that recognises the real process later. Raises SysError(EAGAIN) if no descriptor is free."""
    try:
        return RealProcess(pid)
    except OSError:
        raise SysError(errno.EAGAIN) from None
