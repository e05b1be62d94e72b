"""The check whether a process may read another process, or access its memory.

process_vm_readv and similar calls, /proc and traces use this one check. Answers to Linux v6.8
kernel/ptrace.c:__ptrace_may_access() and security/commoncap.c:cap_ptrace_access_check().

| the other process                                          | allowed                |
|------------------------------------------------------------|------------------------|
| is the caller                                              | always                 |
| has another user or group                                  | to the superuser       |
| has more rights                                            | to the superuser       |
| is not dumpable: it has changed its user since its execve  | to the superuser       |
| any other process                                          | yes                    |
"""

from __future__ import annotations

from kerneld.task.task import Process


def ptrace_may_access(caller: Process, process: Process) -> bool:
    """Return whether `caller` may access `process`.

    PTRACE_MODE_READ and PTRACE_MODE_ATTACH have the same rules here.
    """
    if process is caller or caller.cred.superuser:
        return True
    theirs, ours = process.cred, caller.cred
    if (theirs.uid, theirs.gid) != (ours.uid, ours.gid) or theirs.superuser:
        return False
    return process.mm is None or process.mm.dumpable
