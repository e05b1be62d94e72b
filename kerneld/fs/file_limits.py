"""Limits on the open files that the machine keeps for one process and for one user. More files are EMFILE.

Owns the counts. A file is charged to the process that passed it in first, and to its user, until it is closed. A child
that still maps it does not pay again. Root and the daemon's user have no limit as users, but each process has one.
Similar to Linux v6.8 fs/file.c:alloc_fd() and net/core/scm.c:too_many_unix_fds().

Invariant: the counts are the sums of the charges that were not given back.
"""

from __future__ import annotations

import errno
import resource
from collections import Counter
from dataclasses import dataclass

from kerneld.errors import SysError
from kerneld.task.task import Process

_SHARE = 8
"""No account gets more than an eighth of the daemon's own limit: two users at their limits leave room for a third."""


@dataclass(frozen=True, slots=True)
class FileRules:
    """The limits on open files, and the kinds of files that may be used."""

    of_a_process: int = 1024
    of_a_user: int = 4096
    network_files: bool = False
    """Whether clients may use files of file systems that may not answer."""


@dataclass(frozen=True, slots=True, eq=False)
class Payer:
    """The account to which files are charged."""

    process: Process
    uid: int | None
    """The user; None for the superuser."""
    nr_files: int


class FileAccounts:
    """The open files of one machine, by account."""

    def __init__(self, rules: FileRules) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = (limit if limit != resource.RLIM_INFINITY else 1 << 30) // _SHARE
        self._of_a_process = min(rules.of_a_process, most)
        self._of_a_user = min(rules.of_a_user, most)
        self._processes: Counter[Process] = Counter()
        self._users: Counter[int] = Counter()

    def charge(self, process: Process, nr_files: int = 1) -> Payer:
        """Charge files to a process. Raises SysError(EMFILE) if that is over the limit."""
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
        """Return whether one more file may be charged to a process."""
        cred = process.cred
        if self._processes[process] >= self._of_a_process:
            return False
        return cred.superuser or self._users[cred.uid] < self._of_a_user

    def uncharge(self, payer: Payer) -> None:
        """Give back the charge of files that were closed."""
        process, uid = payer.process, payer.uid
        self._processes[process] -= payer.nr_files
        if not self._processes[process]:
            del self._processes[process]
        if uid is not None:
            self._users[uid] -= payer.nr_files
            if not self._users[uid]:
                del self._users[uid]

    def __len__(self) -> int:
        """Return the number of charged files."""
        return self._processes.total()
