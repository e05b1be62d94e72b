"""Who may look into another process, and reach into its memory.

Owns the one answer for process_vm_readv and its kind, for /proc and for traces. Answers to Linux v6.8
kernel/ptrace.c:__ptrace_may_access() and security/commoncap.c:cap_ptrace_access_check().

| the other process                                          | allowed                |
|------------------------------------------------------------|------------------------|
| is the caller                                              | always                 |
| has another user or group                                  | to the superuser       |
| has more rights                                            | to the superuser       |
| is not dumpable: it has changed its user since its execve  | to the superuser       |
| else                                                       | yes                    |
"""

from __future__ import annotations

from kerneld.task.task import Process


def ptrace_may_access(caller: Process, process: Process) -> bool:
    """Tell whether `caller` may look into `process`, as PTRACE_MODE_READ and PTRACE_MODE_ATTACH ask alike."""
    if process is caller or caller.cred.superuser:
        return True
    theirs, ours = process.cred, caller.cred
    if (theirs.uid, theirs.gid) != (ours.uid, ours.gid) or theirs.superuser:
        return False
    return process.mm is None or process.mm.dumpable
