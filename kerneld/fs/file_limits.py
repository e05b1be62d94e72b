"""How many open files the machine keeps for one process, and for one user: who asks for more gets EMFILE, alone.

Owns the counts. A file is on the account of the process that passed it in first, and of that one's user, until it is
closed: a child that maps it still does not pay again. The superuser's account has no limit, a process's has. Answers,
in kind, to Linux v6.8 fs/file.c:alloc_fd() and net/core/scm.c: too_many_unix_fds().

Invariant: the counts are those of the payers that have been charged and not been let go of.
"""

from __future__ import annotations

import errno
import resource
from collections import Counter
from dataclasses import dataclass

from kerneld.errors import SysError
from kerneld.task.task import Process

_SHARE = 8
"""Of the daemon's own limit no account takes more than an eighth: two users at their limits leave room for a third."""


@dataclass(frozen=True, slots=True)
class FileRules:
    """What is kept for whom."""

    of_a_process: int = 1024
    of_a_user: int = 4096
    network_files: bool = False
    """Whether files of file systems that may not answer are used."""


@dataclass(frozen=True, slots=True, eq=False)
class Payer:
    """Whose account some files are on."""

    process: Process
    uid: int | None
    """None for the superuser."""
    nr_files: int


class FileAccounts:
    """The open files of one machine, by who passed them in."""

    def __init__(self, rules: FileRules) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = (limit if limit != resource.RLIM_INFINITY else 1 << 30) // _SHARE
        self._of_a_process = min(rules.of_a_process, most)
        self._of_a_user = min(rules.of_a_user, most)
        self._processes: Counter[Process] = Counter()
        self._users: Counter[int] = Counter()

    def charge(self, process: Process, nr_files: int = 1) -> Payer:
        """Put files on a process's account. Raises SysError(EMFILE) where that would be too many."""
        cred = process.cred
        uid = None if cred.superuser else cred.uid
        if self._processes[process] + nr_files > self._of_a_process:
            raise SysError(errno.EMFILE)
        if uid is not None:
            if self._users[uid] + nr_files > self._of_a_user:
                raise SysError(errno.EMFILE)
            self._users[uid] += nr_files
        self._processes[process] += nr_files
        return Payer(process, uid, nr_files)

    def has_room(self, process: Process) -> bool:
        """Tell whether one file more may go on a process's account."""
        cred = process.cred
        if self._processes[process] >= self._of_a_process:
            return False
        return cred.superuser or self._users[cred.uid] < self._of_a_user

    def uncharge(self, payer: Payer) -> None:
        """The files have been closed."""
        process, uid = payer.process, payer.uid
        self._processes[process] -= payer.nr_files
        if not self._processes[process]:
            del self._processes[process]
        if uid is not None:
            self._users[uid] -= payer.nr_files
            if not self._users[uid]:
                del self._users[uid]

    def __len__(self) -> int:
        """Return how many files are on accounts."""
        return self._processes.total()
