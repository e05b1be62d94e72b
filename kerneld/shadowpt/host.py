"""A real process of the host as the target of a table: its mappings and its page table, from the host's /proc.

Owns a descriptor of /proc/PID. It stays valid for this process only, even if the pid is used again. Knows no session.
It describes the state at the time of reading, never a change: the caller reads again. Questions that may block go to a
reader (`asking`). The directory and `status` take no lock of the process's memory. Answers to Linux v6.8
fs/proc/task_mmu.c and Documentation/admin-guide/mm/pagemap.rst, and for the right to read to
kernel/ptrace.c:__ptrace_may_access().

Differs from Linux: PTE_WRITEABLE (layout f23) is inferred, because no file of /proc shows it. If root runs the daemon,
it comes from the page's flags (`kpageflags`). Without root, a mapped page of a writable private mapping counts as
writeable if it is anonymous and no other process maps its frame; a page of a writable shared mapping always does.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from kerneld.hw.scalars import u64
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
"""The positions of the two letters in `rwxp`."""


class HostTarget:
    """One real process that its inspector may look at."""

    def __init__(self, pid: Pid, directory_fd: int, asking: Asking | None = None) -> None:
        self.pid = pid
        self._directory_fd = directory_fd
        self._asking = asking or Asking(DirectReader())
        self.hides_pfns = not can_see_pfns()
        """Whether the host hides frame numbers from this daemon. Then MAPPED is right, and every pfn is 0."""

    def question(self, start: Vaddr, end: Vaddr, layout: Flags) -> Question:
        """Return the question whose answer `described` needs.

        It asks for less without frame numbers and PTE_WRITEABLE.
        """
        is_plain = self.hides_pfns and not layout.pte_writeable
        return Question(self.pid, self._directory_fd, Want.PRESENT if is_plain else Want.MAPPED, start, end)

    def describe(self, start: Vaddr, end: Vaddr, layout: Flags) -> tuple[Words, Words]:
        """Return state_flags and pfn of each page in [start, end), page-aligned.

        All zeros if it cannot be read any more.

        A process cannot be read after its exit, or after an execve that gives it another user. Raises TimeoutError if
        the host has not answered, and WouldWait.
        """
        try:
            found = self._asking.get(self.question(start, end, layout))
        except TimeoutError:
            raise
        except OSError:
            found = Look([], b"", b"")
        return self.described(found, start, end, layout)

    def check_access(self) -> None:
        """Raise OSError if this daemon may not read the process. Raises WouldWait too."""
        self._asking.get(Question(self.pid, self._directory_fd, Want.PRESENT, 0, PAGE_SIZE))

    def described(self, found: Look, start: Vaddr, end: Vaddr, layout: Flags) -> tuple[Words, Words]:
        """Return state_flags and pfn of each page in [start, end), from an answer."""
        flags = np.zeros((end - start) >> PAGE_SHIFT, dtype=np.uint64)
        private = np.zeros(len(flags), dtype=np.uint64)
        for mapping in found.mappings:
            first = (max(mapping.start, start) - start) >> PAGE_SHIFT
            last = (min(mapping.end, end) - start) >> PAGE_SHIFT
            _fill(flags[first:last], private[first:last], mapping, layout)
        entries = np.frombuffer(found.data.ljust(8 * len(flags), b"\0"), dtype=np.uint64)
        # The two files are read one after the other. A mapping may go in between; then its frames do not count.
        present = ((entries & u64(PM_PRESENT)) != 0) & (flags != 0)
        flags[present] |= np.uint64(layout.mapped)
        if layout.pte_writeable:
            own = (entries & private) == (private & u64(PM_MMAP_EXCLUSIVE))
            at = np.flatnonzero(present & own & ((flags & np.uint64(layout.vaddr_writeable)) != 0))
            flags[self._writeable(at, entries, private)] |= np.uint64(layout.pte_writeable)
        return flags, (entries & u64(PM_PFRAME_MASK)) * present

    def _writeable(self, at: Indexes, entries: Words, private: Words) -> Indexes:
        """Return which of these candidate pages are writeable, as far as the host shows it."""
        if self.hides_pfns or not len(at):
            return at
        try:
            return at[writeable(entries[at] & u64(PM_PFRAME_MASK), private[at] != 0)]
        except OSError:
            return at

    def read_page(self, vaddr: Vaddr) -> bytes:
        """Return the 4,096 bytes at a page-aligned address. Raises OSError if they cannot be read, and WouldWait."""
        question = Question(self.pid, self._directory_fd, Want.CONTENTS, vaddr, vaddr + PAGE_SIZE)
        return self._asking.get(question).data

    def follow_faults(self) -> HostFaults:
        """Start following the process's page faults. Raises as HostFaults does. Close the result before this target."""
        return HostFaults(self.pid, self._directory_fd, self._asking)

    def is_alive(self) -> bool:
        """Return whether the process is alive. A zombie is not."""
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
        """Close the descriptor of /proc/PID."""
        os.close(self._directory_fd)


def _fill(flags: Words, private: Words, mapping: Seen, layout: Flags) -> None:
    """Fill in the flags of each page of a mapping that come from the mapping, and whether it is private."""
    value = layout.anonymous if mapping.is_private_anonymous else layout.allocated
    if mapping.perms[_PROT_WRITE_AT : _PROT_WRITE_AT + 1] == b"w":
        value |= layout.vaddr_writeable
    flags[:] = value
    if mapping.perms[_SHARED_AT : _SHARED_AT + 1] == b"p":
        private[:] = PM_MMAP_EXCLUSIVE | PM_FILE


def find_host_target(pid: Pid, uid: int, gid: int, asking: Asking | None = None) -> HostTarget | None:
    """Return the real process `pid`, if user `uid` may read it: the leader of a thread group, with its own memory.

    None if there is no such process, or the user may not read it. Root may read every process that this daemon can
    read. Another user may read a dumpable process whose user and group ids are all their own. Source: Linux v6.8
    kernel/ptrace.c:__ptrace_may_access(). Nobody can read more than the daemon's own user. Raises WouldWait.
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
        # If a process is not dumpable, its files (not the directory) belong to root: fs/proc/base.c:task_dump_owner().
        owners = {*map(int, fields[b"Uid"].split()), os.stat("maps", dir_fd=directory_fd).st_uid}
        if owners != {uid} or {*map(int, fields[b"Gid"].split())} != {gid}:
            return False
    return True
