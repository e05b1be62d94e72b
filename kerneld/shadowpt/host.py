"""A real process of the host as the target of a table: its mappings and its page table, as the host's /proc shows them.

Owns a descriptor of /proc/PID, which stays that process's even where the pid comes again. Knows no session. What it
says is what was so when it looked, never a change: its caller looks again. What may take for ever is asked of a reader
(`asking`); the directory and `status` wait for nobody's memory. It answers to Linux v6.8 fs/proc/task_mmu.c
and Documentation/admin-guide/mm/pagemap.rst, and for who may look to kernel/ptrace.c:__ptrace_may_access().

Differs from Linux: PTE_WRITEABLE (layout f23) is worked out, as no file of /proc shows it: from the page's flags where
root runs the daemon (`kpageflags`). Without those a mapped page of a private mapping that may be written counts as
writeable where it is a copy of its own and no one else maps its frame, one of a shared mapping always.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from kerneld.shadowpt.asking import Asking, DirectReader
from kerneld.shadowpt.host_faults import HostFaults
from kerneld.shadowpt.host_look import Look, Question, Seen, Want
from kerneld.shadowpt.kpageflags import writeable
from kerneld.shadowpt.layout import Flags
from kerneld.shadowpt.pagemap import can_see_pfns
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pid, Vaddr
from shared.uapi.pagemap import PM_FILE, PM_MMAP_EXCLUSIVE, PM_PFRAME_MASK, PM_PRESENT

Words = npt.NDArray[np.uint64]
Indexes = npt.NDArray[np.intp]
_PROT_WRITE_AT, _SHARED_AT = 1, 3
"""Where in `rwxp` the two letters stand."""


class HostTarget:
    """One real process that its inspector may look at."""

    def __init__(self, pid: Pid, directory_fd: int, asking: Asking | None = None) -> None:
        self.pid = pid
        self._directory_fd = directory_fd
        self._asking = asking or Asking(DirectReader())
        self.hides_pfns = not can_see_pfns()
        """Whether the host shows this daemon no frame numbers: MAPPED is right then, and every pfn 0."""

    def question(self, start: Vaddr, end: Vaddr, layout: Flags) -> Question:
        """Return what is to be asked for `described`; without frames to see and rights to work out it is less."""
        is_plain = self.hides_pfns and not layout.pte_writeable
        return Question(self.pid, self._directory_fd, Want.PRESENT if is_plain else Want.MAPPED, start, end)

    def describe(self, start: Vaddr, end: Vaddr, layout: Flags) -> tuple[Words, Words]:
        """Return state_flags and pfn of each page in [start, end), page-aligned; all zeros once it cannot be looked at.

        A process that has exited, or has become another user's by execve, is not to be looked at. Raises TimeoutError
        where nobody knows, as the host has not answered, and WouldWait.
        """
        try:
            found = self._asking.get(self.question(start, end, layout))
        except TimeoutError:
            raise
        except OSError:
            found = Look([], b"", b"")
        return self.described(found, start, end, layout)

    def check_access(self) -> None:
        """Raise OSError where the host does not let this daemon look; raises WouldWait too."""
        self._asking.get(Question(self.pid, self._directory_fd, Want.PRESENT, 0, PAGE_SIZE))

    def described(self, found: Look, start: Vaddr, end: Vaddr, layout: Flags) -> tuple[Words, Words]:
        """Return what a look says of each page in [start, end): state_flags and pfn."""
        flags = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
        private = np.zeros(len(flags), dtype=np.uint64)
        for mapping in found.mappings:
            first = (max(mapping.start, start) - start) >> PAGE_SHIFT
            last = (min(mapping.end, end) - start) >> PAGE_SHIFT
            _fill(flags[first:last], private[first:last], mapping, layout)
        entries = np.frombuffer(found.data.ljust(8 * len(flags), b"\0"), dtype=np.uint64)
        # The two files are read one after the other: a mapping that went in between leaves no frame without it.
        present = ((entries & np.uint64(PM_PRESENT)) != 0) & (flags != 0)
        flags[present] |= np.uint64(layout.mapped)
        if layout.pte_writeable:
            own = (entries & private) == (private & np.uint64(PM_MMAP_EXCLUSIVE))
            at = np.flatnonzero(present & own & ((flags & np.uint64(layout.vaddr_writeable)) != 0))
            flags[self._writeable(at, entries, private)] |= np.uint64(layout.pte_writeable)
        return flags, (entries & np.uint64(PM_PFRAME_MASK)) * present

    def _writeable(self, at: Indexes, entries: Words, private: Words) -> Indexes:
        """Return which of these pages, all that may be writeable, are, where the host shows what that takes."""
        if self.hides_pfns or not len(at):
            return at
        try:
            return at[writeable(entries[at] & np.uint64(PM_PFRAME_MASK), private[at] != 0)]
        except OSError:
            return at

    def read_page(self, vaddr: Vaddr) -> bytes:
        """Return the 4,096 bytes at a page-aligned address. Raises OSError where they cannot be read, and WouldWait."""
        question = Question(self.pid, self._directory_fd, Want.CONTENTS, vaddr, vaddr + PAGE_SIZE)
        return self._asking.get(question).data

    def follow_faults(self) -> HostFaults:
        """Begin to be told of the process's page faults. Raises as HostFaults does; it ends before this does."""
        return HostFaults(self.pid, self._directory_fd, self._asking)

    def is_alive(self) -> bool:
        """Tell whether the process is there, a zombie not counted among the living."""
        try:
            return b"VmSize:" in self.read_status()
        except OSError:
            return False

    def read_status(self) -> bytes:
        """Return /proc/PID/status, which takes no mmap_lock. Raises OSError."""
        fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory_fd)
        with open(fd, "rb") as status:
            return status.read()

    def close(self) -> None:
        """Let go of /proc/PID."""
        os.close(self._directory_fd)


def _fill(flags: Words, private: Words, mapping: Seen, layout: Flags) -> None:
    """Say of each page of a mapping what the mapping says, and which bits of its entry tell whether it is writeable."""
    value = layout.anonymous if mapping.is_private_anonymous else layout.allocated
    if mapping.perms[_PROT_WRITE_AT : _PROT_WRITE_AT + 1] == b"w":
        value |= layout.vaddr_writeable
    flags[:] = value
    if mapping.perms[_SHARED_AT : _SHARED_AT + 1] == b"p":
        private[:] = PM_MMAP_EXCLUSIVE | PM_FILE


def find_host_target(pid: Pid, uid: int, gid: int, asking: Asking | None = None) -> HostTarget | None:
    """Return the real process `pid`, a thread group's leader with memory of its own, where user `uid` may look at it.

    None where there is none, or it is another's: root may look at all that this daemon can, others at a process all of
    whose user and group ids are theirs and that the host counts as dumpable. Source: Linux v6.8
    kernel/ptrace.c:__ptrace_may_access(). What this daemon's own user may not look at, nobody can through it.
    Raises WouldWait.
    """
    if not 0 < pid < 1 << 31:
        return None
    try:
        directory_fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    target = HostTarget(pid, directory_fd, asking)
    try:
        if target.is_alive() and _may_access(target, directory_fd, uid, gid):
            target.check_access()
            return target
    except OSError:
        pass
    except BaseException:
        target.close()
        raise
    target.close()
    return None


def _may_access(target: HostTarget, directory_fd: int, uid: int, gid: int) -> bool:
    fields = dict(line.split(b":", 1) for line in target.read_status().splitlines() if b":" in line)
    if int(fields[b"Tgid"]) != target.pid:
        return False
    if uid != 0:
        # The files, not the directory, of one that is not dumpable are root's: fs/proc/base.c:task_dump_owner().
        owners = {*map(int, fields[b"Uid"].split()), os.stat("maps", dir_fd=directory_fd).st_uid}
        if owners != {uid} or {*map(int, fields[b"Gid"].split())} != {gid}:
            return False
    return True
