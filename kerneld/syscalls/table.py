"""The system-call table: number to handler (Linux: arch/x86/entry/syscall_64.c:sys_call_table)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from kerneld.syscalls import (
    machine,
    memory,
    mempolicy,
    native,
    prctl,
    proc_mem,
    process,
    remote,
    shadow,
    shm,
    trace,
    userfaultfd,
)
from kerneld.syscalls.answer import Answer, Call, Work
from shared.uapi.syscalls import Nr

Handler: TypeAlias = Callable[[Call], "int | Answer | Work"]

_TABLE: dict[Nr, Handler] = {
    Nr.CLOSE: trace.sys_close,
    Nr.IOCTL: userfaultfd.sys_ioctl,
    Nr.USERFAULTFD: userfaultfd.sys_userfaultfd,
    Nr.MMAP: memory.sys_mmap,
    Nr.MPROTECT: memory.sys_mprotect,
    Nr.SHMGET: shm.sys_shmget,
    Nr.SHMAT: shm.sys_shmat,
    Nr.SHMCTL: shm.sys_shmctl,
    Nr.SHMDT: shm.sys_shmdt,
    Nr.MBIND: mempolicy.sys_mbind,
    Nr.SET_MEMPOLICY: mempolicy.sys_set_mempolicy,
    Nr.GET_MEMPOLICY: mempolicy.sys_get_mempolicy,
    Nr.REMAP_FILE_PAGES: memory.sys_remap_file_pages,
    Nr.PKEY_MPROTECT: memory.sys_pkey_mprotect,
    Nr.PKEY_ALLOC: memory.sys_pkey_alloc,
    Nr.PKEY_FREE: memory.sys_pkey_free,
    Nr.MUNMAP: memory.sys_munmap,
    Nr.BRK: memory.sys_brk,
    Nr.MSYNC: memory.sys_msync,
    Nr.MREMAP: memory.sys_mremap,
    Nr.MINCORE: memory.sys_mincore,
    Nr.MADVISE: memory.sys_madvise,
    Nr.MLOCK: memory.sys_mlock,
    Nr.MLOCK2: memory.sys_mlock2,
    Nr.MUNLOCK: memory.sys_munlock,
    Nr.MLOCKALL: memory.sys_mlockall,
    Nr.MUNLOCKALL: memory.sys_munlockall,
    Nr.PRCTL: prctl.sys_prctl,
    Nr.PROCESS_VM_READV: remote.sys_process_vm_readv,
    Nr.PROCESS_VM_WRITEV: remote.sys_process_vm_writev,
    Nr.PROCESS_MADVISE: remote.sys_process_madvise,
    Nr.RT_SIGACTION: process.sys_rt_sigaction,
    Nr.GETPID: process.sys_getpid,
    Nr.EXECVE: process.sys_execve,
    Nr.EXIT: process.sys_exit,
    Nr.GETRUSAGE: process.sys_getrusage,
    Nr.SYSINFO: process.sys_sysinfo,
    Nr.PERSONALITY: process.sys_personality,
    Nr.GETUID: process.sys_getuid,
    Nr.SETUID: process.sys_setuid,
    Nr.GETPPID: process.sys_getppid,
    Nr.GETTID: process.sys_gettid,
    Nr.EXIT_GROUP: process.sys_exit_group,
    Nr.PERF_EVENT_OPEN: trace.sys_perf_event_open,
    Nr.PRLIMIT64: process.sys_prlimit64,
    Nr.SHADOWPT_OPEN: shadow.shadowpt_open,
    Nr.SHADOWPT_CLOSE: shadow.shadowpt_close,
    Nr.SHADOWPT_START: shadow.shadowpt_start,
    Nr.SHADOWPT_STOP: shadow.shadowpt_stop,
    Nr.SHADOWPT_PAGE_CONTENTS: shadow.shadowpt_page_contents,
    Nr.LOAD: machine.load,
    Nr.STORE: machine.store,
    Nr.TOUCH: machine.touch,
    Nr.PROCREAD: machine.procread,
    Nr.PROCWRITE: machine.procwrite,
    Nr.RAM: machine.ram,
    Nr.RDPKRU: machine.rdpkru,
    Nr.WRPKRU: machine.wrpkru,
    Nr.CLONE: process.clone,
    Nr.NATIVE: native.native,
    Nr.FAULT: native.fault,
    Nr.FILE_SYNC: native.file_sync,
    Nr.CONNECT: native.connect,
    Nr.CREDS: native.creds,
    Nr.RING_BELL: machine.ring_bell,
    Nr.MEM_RW: proc_mem.mem_rw,
}

RESTART = -1
"""The number that continues a request (Linux: restart_syscall). Numbers on the wire are unsigned: no client can send
it."""
HANDLERS: dict[int, Handler] = {int(nr): handler for nr, handler in _TABLE.items()}
HANDLERS[RESTART] = machine.restart_syscall


def find_name(nr: int) -> str:
    """Return the name of a call, or text with its number if it has no name."""
    try:
        return Nr(nr).name.lower()
    except ValueError:
        return f"syscall_{nr:#x}"
