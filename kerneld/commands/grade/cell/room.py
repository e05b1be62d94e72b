"""The room of one submission: its user, its scratch directory, and what it uses. Ends everything in it.

Owns the identity of the programs and the count of what they use. A hostile program can use up its own room only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

from kerneld.commands.grade.cell.isolation import Walls, scratch_bytes
from kerneld.commands.grade.limits import Limits

_PAGE = os.sysconf("SC_PAGE_SIZE")
_MIB = 1 << 20
_NICE = 5
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 8, 24, 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAP_DAC_READ_SEARCH = 2
_CAPABILITY_VERSION_3 = 0x2008_0522
OPEN_FILES = (256, 4096)
"""RLIMIT_NOFILE of a program, soft and hard. The stub of `kerneld exec` has its descriptors between the two."""
_KILL_ROUNDS = 200

_libc = ctypes.CDLL(None, use_errno=True)


class TooMuch(Exception):
    """The submission has used more than its limits allow: one line for people."""


@dataclass(frozen=True, slots=True)
class Room:
    """One submission's room."""

    directory: Path
    """Writable for the programs. Nothing else is."""
    uid: int | None
    """The user of the programs; None: the user that grades."""
    walls: Walls
    limits: Limits
    deadline: float
    """By time.monotonic()."""
    has_own_count: bool
    """Whether Linux counts the programs' processes apart from all others: RLIMIT_NPROC is theirs alone then."""

    def give(self, path: Path) -> None:
        """Make a file or a directory the programs' own."""
        if self.uid is not None:
            os.chown(path, self.uid, self.uid, follow_symlinks=False)

    def become_program(self) -> None:
        """In a child: take on the limits and the user, for good. Raises OSError."""
        limits = self.limits
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits.file_mib * _MIB,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (limits.all_seconds, limits.all_seconds + 1))
        resource.setrlimit(resource.RLIMIT_NOFILE, open_files())
        if self.has_own_count:
            resource.setrlimit(resource.RLIMIT_NPROC, (limits.processes,) * 2)
        os.nice(_NICE)
        # For a root whose user cannot be changed: no program that it executes gets capabilities back.
        for capability in range(64):
            _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        self._set_user()
        # In a user namespace this process has all capabilities until it executes a program; kerneld, which has executed
        # one, may then not look into it.
        _set_capabilities(0)
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)

    def become_kernel(self) -> None:
        """In a child: take on the programs' user, with the right to read Python's files wherever they are.

        A process with a capability more cannot be traced by the programs (Linux v6.8 security/commoncap.c:
        cap_ptrace_access_check()). So they cannot change what the kernel says.
        """
        if self.uid is None:
            return
        _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
        self._set_user()
        if _set_capabilities(1 << _CAP_DAC_READ_SEARCH):
            _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_READ_SEARCH, 0, 0)

    def is_counted(self) -> bool:
        """Return whether Linux makes no more processes for the programs than their limit.

        Not if they are a user who has other processes, and not for the machine's superuser, also as the root of a user
        namespace: Linux v6.8 kernel/fork.c:copy_process(), INIT_USER. So a program is asked that may make none.
        """
        if not self.has_own_count:
            return False
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        status = 1
        with contextlib.suppress(BaseException):
            replace(self, limits=replace(self.limits, processes=0)).become_program()
            try:
                os.waitpid(os.fork(), 0)
            except BlockingIOError:
                status = 0
        os._exit(status)

    def _set_user(self) -> None:
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)

    def check(self) -> None:
        """Raise TooMuch when the programs use more than they may, or longer."""
        if time.monotonic() > self.deadline:
            raise TooMuch(f"everything together took more than {self.limits.all_seconds} s")
        members = self.members()
        if len(members) > self.limits.processes:
            raise TooMuch(f"more than {self.limits.processes} processes at once")
        used = sum(map(_resident_bytes, members)) + scratch_bytes(self.walls)
        if used > self.limits.memory_mib * _MIB:
            raise TooMuch(f"more than {self.limits.memory_mib} MiB of memory")

    def members(self) -> list[int]:
        """Return the processes of the room but this one."""
        everyone = [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
        if self.walls.processes:
            return everyone
        if self.uid is not None:
            return [pid for pid in everyone if _uid_of(pid) == self.uid]
        return _descendants(everyone)

    def kill_all(self, keep: frozenset[int] = frozenset()) -> None:
        """Kill every process of the room but `keep`, and those that they make meanwhile, and reap them."""
        for _round in range(_KILL_ROUNDS):
            members = [pid for pid in self.members() if pid not in keep]
            if not members:
                return
            for pid in members:
                # Stopped first: a process that forks all the time has no time for it then.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGSTOP)
            for pid in members:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            _reap(keep)
            time.sleep(0.005)


def _set_capabilities(bits: int) -> bool:
    """Have these capabilities and no others from now on. Return whether it was possible. Source: capset(2)."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(bits, bits, bits, 0, 0, 0)
    return bool(_libc.capset(header, data) == 0)


def open_files() -> tuple[int, int]:
    """Return RLIMIT_NOFILE of the programs, soft and hard: OPEN_FILES, or less where the host has less."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES[1] if hard == resource.RLIM_INFINITY else min(OPEN_FILES[1], hard)
    return min(OPEN_FILES[0], most), most


def _reap(keep: frozenset[int]) -> None:
    """Reap the children that have ended, but not `keep`, whose status somebody waits for."""
    for pid in _descendants([int(name) for name in os.listdir("/proc") if name.isdigit()]):
        if pid not in keep:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on; empty for a process that has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return []
    return text[text.rfind(")") + 2 :].split()


def _descendants(pids: list[int]) -> list[int]:
    """Return those of `pids` that descend from this process."""
    parents = {pid: int(fields[1]) for pid in pids if (fields := _stat_fields(pid))}
    found: list[int] = []
    for pid in parents:
        at = pid
        while at in parents and parents[at] != os.getpid():
            at = parents[at]
        if at in parents:
            found.append(pid)
    return found


def _uid_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _resident_bytes(pid: int) -> int:
    try:
        words = Path(f"/proc/{pid}/statm").read_text().split()
        # Shared pages would be counted once a process.
        return max(0, int(words[1]) - int(words[2])) * _PAGE
    except (OSError, ValueError, IndexError):
        return 0
