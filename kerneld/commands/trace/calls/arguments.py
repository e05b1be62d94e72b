"""The arguments of every call, by number, and the text of each as strace writes it. Pure.

A trace has pointers, not the memory behind them. The text of a pointer is its address. Answers to
strace(1) and Linux v6.8 include/linux/syscalls.h; this machine's own calls to docs/abi.md.
"""

from __future__ import annotations

from collections.abc import Iterable

import click

from kerneld.commands.trace.calls.values import (
    Show,
    failure,
    flags,
    hexadecimal,
    map_flags,
    number,
    one_of,
    pointer,
    signal_name,
    signed,
)
from shared.trace.text import call_name
from shared.uapi.mman import Madv, Mcl, Mremap, Ms, Pkey, Pr, Prot
from shared.uapi.resource import Rlimit
from shared.uapi.shadowpt import Layout
from shared.uapi.signals import Disposition
from shared.uapi.syscalls import Access, Nr
from shared.uapi.userfaultfd import Uffdio

_MAX_ERRNO = 4095
_DISPOSITIONS: dict[int, str] = {
    Disposition.DEFAULT: "SIG_DFL",
    Disposition.IGNORE: "SIG_IGN",
    Disposition.CAUGHT: "SIG_CAUGHT",
}


def _disposition(value: int) -> str:
    return _DISPOSITIONS.get(value) or hexadecimal(value)


def _mlock_flags(value: int) -> str:
    return "MLOCK_ONFAULT" if value == 1 else hexadecimal(value)


def _open_host(value: int) -> str:
    return "OPEN_HOST" if value == 1 else hexadecimal(value)


_PROT = flags(Prot, "PROT_", zero="PROT_NONE")
_MADVICE, _LIMIT = one_of(Madv, "MADV_"), one_of(Rlimit, "RLIMIT_")
_RANGE = (pointer, number)
_IOVECS = (pointer, number)

_ARGUMENTS: dict[int, tuple[Show, ...]] = {
    Nr.CLOSE: (signed,),
    Nr.MMAP: (*_RANGE, _PROT, map_flags, signed, hexadecimal),
    Nr.MPROTECT: (*_RANGE, _PROT),
    Nr.PKEY_MPROTECT: (*_RANGE, _PROT, signed),
    Nr.PKEY_ALLOC: (hexadecimal, flags(Pkey, "PKEY_")),
    Nr.PKEY_FREE: (signed,),
    Nr.MUNMAP: _RANGE,
    Nr.BRK: (pointer,),
    Nr.RT_SIGACTION: (signal_name, _disposition),
    Nr.MREMAP: (*_RANGE, number, flags(Mremap, "MREMAP_"), pointer),
    Nr.SHMGET: (hexadecimal, number, hexadecimal),
    Nr.SHMAT: (signed, pointer, hexadecimal),
    Nr.SHMCTL: (signed, number, pointer),
    Nr.SHMDT: (pointer,),
    Nr.MBIND: (*_RANGE, number, pointer, number, hexadecimal),
    Nr.SET_MEMPOLICY: (number, pointer, number),
    Nr.GET_MEMPOLICY: (pointer, pointer, number, pointer, hexadecimal),
    Nr.REMAP_FILE_PAGES: (*_RANGE, _PROT, number, map_flags),
    Nr.MSYNC: (*_RANGE, flags(Ms, "MS_")),
    Nr.MINCORE: (*_RANGE, pointer),
    Nr.MADVISE: (*_RANGE, _MADVICE),
    Nr.EXECVE: (pointer, pointer, pointer),
    Nr.EXIT: (signed,),
    Nr.SETUID: (signed,),
    Nr.PERSONALITY: (hexadecimal,),
    Nr.MLOCK: _RANGE,
    Nr.MUNLOCK: _RANGE,
    Nr.MLOCKALL: (flags(Mcl, "MCL_"),),
    Nr.PRCTL: (one_of(Pr, "PR_"), hexadecimal, hexadecimal, hexadecimal, hexadecimal),
    Nr.EXIT_GROUP: (signed,),
    Nr.IOCTL: (signed, one_of(Uffdio, "UFFDIO_"), pointer),
    Nr.USERFAULTFD: (hexadecimal,),
    Nr.PERF_EVENT_OPEN: (pointer,),
    Nr.PRLIMIT64: (signed, _LIMIT, pointer, pointer),
    Nr.GETRUSAGE: (signed, pointer),
    Nr.SYSINFO: (pointer,),
    Nr.PROCESS_VM_READV: (signed, *_IOVECS, *_IOVECS, hexadecimal),
    Nr.PROCESS_VM_WRITEV: (signed, *_IOVECS, *_IOVECS, hexadecimal),
    Nr.MLOCK2: (*_RANGE, _mlock_flags),
    Nr.PROCESS_MADVISE: (signed, *_IOVECS, _MADVICE, hexadecimal),
    Nr.SHADOWPT_OPEN: (signed, pointer, one_of(Layout, "LAYOUT_"), _open_host),
    Nr.SHADOWPT_PAGE_CONTENTS: (hexadecimal, pointer),
    Nr.ATTACH: (signed, signed, hexadecimal),
    Nr.LOAD: _RANGE,
    Nr.STORE: _RANGE,
    Nr.TOUCH: (*_RANGE, one_of(Access, "")),
    Nr.PROCREAD: (hexadecimal, number),
    Nr.PROCWRITE: (hexadecimal, number),
    Nr.RAM: (signed,),
    Nr.WRPKRU: (hexadecimal,),
    Nr.NATIVE: (hexadecimal,),
    Nr.FILE_SYNC: (number, hexadecimal, number),
    Nr.FAULT: (hexadecimal, hexadecimal, hexadecimal),
    Nr.MEM_RW: (signed, hexadecimal, hexadecimal, number, one_of(Access, "")),
    **dict.fromkeys(
        (
            Nr.GETPID, Nr.GETUID, Nr.GETPPID, Nr.MUNLOCKALL, Nr.GETTID, Nr.SHADOWPT_CLOSE, Nr.SHADOWPT_START,
            Nr.SHADOWPT_STOP, Nr.CLONE, Nr.RDPKRU, Nr.CONNECT, Nr.CREDS,
            Nr.RING, Nr.RING_BELL,
        ),
        (),
    ),
}  # fmt: skip
_ADDRESSES = frozenset({Nr.MMAP, Nr.MREMAP, Nr.BRK, Nr.RAM, Nr.CLONE, Nr.RDPKRU})
"""Calls with a result in hexadecimal: an address or a mask."""
_NO_RETURN = frozenset({Nr.EXIT, Nr.EXIT_GROUP})
MACHINE = frozenset(
    {
        int(Nr.LOAD), int(Nr.STORE), int(Nr.TOUCH), int(Nr.RDPKRU), int(Nr.WRPKRU), int(Nr.FAULT), int(Nr.FILE_SYNC),
        int(Nr.CONNECT), int(Nr.CREDS), int(Nr.RING), int(Nr.RING_BELL), int(Nr.MEM_RW),
    }
)  # fmt: skip
"""Operations of the processor, or the stub's. They are not system calls."""
CLASSES: dict[str, frozenset[int]] = {
    "memory": frozenset(
        {
            Nr.MMAP, Nr.MPROTECT, Nr.MUNMAP, Nr.BRK, Nr.MREMAP, Nr.MSYNC, Nr.MINCORE, Nr.MADVISE, Nr.MLOCK, Nr.MUNLOCK,
            Nr.MLOCKALL, Nr.MUNLOCKALL, Nr.MLOCK2, Nr.PROCESS_MADVISE, Nr.PKEY_MPROTECT, Nr.REMAP_FILE_PAGES,
            Nr.SHMGET, Nr.SHMAT, Nr.SHMCTL, Nr.SHMDT, Nr.MBIND, Nr.SET_MEMPOLICY, Nr.GET_MEMPOLICY,
            Nr.PRCTL, Nr.IOCTL, Nr.USERFAULTFD,
        }
    ),
    "process": frozenset({Nr.EXECVE, Nr.EXIT, Nr.EXIT_GROUP, Nr.ATTACH, Nr.CLONE}),
    "signal": frozenset({Nr.RT_SIGACTION}),
    "creds": frozenset({Nr.GETUID, Nr.SETUID}),
    "shadowpt": frozenset(nr for nr in Nr if nr.name.startswith("SHADOWPT_")),
    "machine": MACHINE,
}  # fmt: skip


def call_text(nr: int, args: Iterable[int]) -> str:
    """Return the text of a call and its arguments; an unknown call has all six words."""
    values = list(args)
    shows = _ARGUMENTS.get(nr, (hexadecimal,) * len(values))
    if nr == Nr.MREMAP and not values[3] & (Mremap.FIXED | Mremap.DONTUNMAP):
        shows = shows[:4]
    return f"{call_name(nr)}({', '.join(show(value) for show, value in zip(shows, values, strict=False))})"


def result_text(nr: int, ret: int) -> str:
    """Return the text of a result."""
    if nr in _NO_RETURN:
        return "?"
    if -_MAX_ERRNO <= ret < 0:
        return failure(ret)
    return hexadecimal(ret) if nr in _ADDRESSES else str(ret)


def parse_trace(text: str) -> frozenset[int]:
    """Return the calls that the value of `-e` chooses: `trace=mmap,munmap`, `%memory,machine`, `!brk`, `all`, `none`.

    Raises click.BadParameter for an unknown name.
    """
    names = text.removeprefix("trace=")
    is_negated = names.startswith("!")
    every = frozenset(int(nr) for nr in Nr) - MACHINE
    chosen: frozenset[int] = frozenset()
    for name in names.removeprefix("!").split(","):
        chosen |= _calls_of(name.strip(), every)
    return every - chosen if is_negated else chosen


def _calls_of(name: str, every: frozenset[int]) -> frozenset[int]:
    if name in ("all", "none"):
        return every if name == "all" else frozenset()
    found = CLASSES.get(name.removeprefix("%"))
    if found is not None:
        return frozenset(int(nr) for nr in found)
    try:
        return frozenset({int(Nr[name.upper()])})
    except KeyError:
        raise click.BadParameter(
            f"there is no call '{name}' (classes: {', '.join(sorted(CLASSES))}, all)", param_hint="-e"
        ) from None
