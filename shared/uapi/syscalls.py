"""System-call numbers: Linux's x86-64 ones, the five of the shadow page table, and those of this machine."""

from __future__ import annotations

from enum import IntEnum, IntFlag

ABI_VERSION = 1


class Nr(IntEnum):
    """A request's number. Linux v6.8 arch/x86/entry/syscalls/syscall_64.tbl for the Linux calls."""

    CLOSE = 3
    MMAP = 9
    MPROTECT = 10
    MUNMAP = 11
    BRK = 12
    RT_SIGACTION = 13
    IOCTL = 16
    MREMAP = 25
    MSYNC = 26
    MINCORE = 27
    MADVISE = 28
    SHMGET = 29
    SHMAT = 30
    SHMCTL = 31
    GETPID = 39
    EXECVE = 59
    EXIT = 60
    SHMDT = 67
    MBIND = 237
    SET_MEMPOLICY = 238
    GET_MEMPOLICY = 239
    GETRUSAGE = 98
    SYSINFO = 99
    GETUID = 102
    SETUID = 105
    GETPPID = 110
    PERSONALITY = 135
    MLOCK = 149
    MUNLOCK = 150
    MLOCKALL = 151
    MUNLOCKALL = 152
    PRCTL = 157
    GETTID = 186
    REMAP_FILE_PAGES = 216
    EXIT_GROUP = 231
    PERF_EVENT_OPEN = 298
    PRLIMIT64 = 302
    PROCESS_VM_READV = 310
    PROCESS_VM_WRITEV = 311
    USERFAULTFD = 323
    MLOCK2 = 325
    PKEY_MPROTECT = 329
    PKEY_ALLOC = 330
    PKEY_FREE = 331
    PROCESS_MADVISE = 440
    SHADOWPT_OPEN = 462
    SHADOWPT_CLOSE = 463
    SHADOWPT_START = 464
    SHADOWPT_STOP = 465
    SHADOWPT_PAGE_CONTENTS = 466
    ATTACH = 0x1000
    LOAD = 0x1001
    STORE = 0x1002
    TOUCH = 0x1003
    PROCREAD = 0x1004
    RAM = 0x1005
    CLONE = 0x1006
    RDPKRU = 0x1007
    WRPKRU = 0x1008
    NATIVE = 0x1009
    FAULT = 0x100A
    FILE_SYNC = 0x100B
    CONNECT = 0x100C
    CREDS = 0x100D
    RING = 0x100E
    RING_BELL = 0x100F
    MEM_RW = 0x1010
    PROCWRITE = 0x1011


class Access(IntEnum):
    """The third argument of `touch`: how the processor accesses each page."""

    READ = 0
    WRITE = 1
    FETCH = 2


class Exec(IntFlag):
    """args[3] of `execve`: where its strings are, and what it returns."""

    COUNTED = 1
    """args[4] strings of argv, args[5] strings of envp, then the program's name as it was given; each ended by NUL."""
    STRINGS_FD = 2
    """The strings do not fit into a datagram. They are the contents of a memory file, the second descriptor."""
    ENTRY = 4
    """The reply has the address of the first instruction and the stack pointer inline, 64 bits each."""
    AUXV = 8
    """args[1] and args[2] are AT_SYSINFO_EHDR and AT_MINSIGSTKSZ of the program; 0 for none."""
    CHECK = 16
    """Nothing is executed, no string is read. Only the file, and that of its interpreter, are checked."""
    INTERPRETER_FD = 32
    """The last descriptor is the interpreter's: the caller has opened what PT_INTERP names, below its own root."""
