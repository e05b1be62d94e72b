"""The check whether a process may read another process, or access its memory.

process_vm_readv and similar calls, /proc and traces use this one check. Answers to Linux v6.8
kernel/ptrace.c:__ptrace_may_access() and security/commoncap.c:cap_ptrace_access_check().

| the other process                                          | allowed                |
|------------------------------------------------------------|------------------------|
| is the caller                                              | always                 |
| has another user or group                                  | with CAP_SYS_PTRACE    |
| has more rights                                            | with CAP_SYS_PTRACE    |
| is not dumpable: it has changed its user since its execve  | with CAP_SYS_PTRACE    |
| any other process                                          | yes                    |
"""

from __future__ import annotations

from kerneld.task.capability import CAP_SYS_PTRACE
from kerneld.task.task import Process


def ptrace_may_access(caller: Process, process: Process) -> bool:
    """Return whether `caller` may access `process`.

    PTRACE_MODE_READ and PTRACE_MODE_ATTACH have the same rules here.
    """
    if process is caller or caller.cred.capable(CAP_SYS_PTRACE):
        return True
    theirs, ours = process.cred, caller.cred
    if (theirs.uid, theirs.gid) != (ours.uid, ours.gid) or theirs.caps & ~ours.caps:
        return False
    return process.mm is None or process.mm.dumpable
