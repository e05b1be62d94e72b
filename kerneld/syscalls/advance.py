"""Which requests see or change what native programs have been given in advance (`kerneld.tlb.advances`)."""

from __future__ import annotations

from kerneld.syscalls.answer import Call
from shared.uapi.mman import Madv, Map
from shared.uapi.native import FILE_SYNC_TRUNCATE, FILE_SYNC_WRITTEN
from shared.uapi.page import PAGE_MASK, TASK_SIZE, Vaddr
from shared.uapi.syscalls import Nr

_LEAVE_IT = {Nr.RING_BELL, Nr.FILE_SYNC, Nr.CONNECT, Nr.CREDS, Nr.RDPKRU, Nr.WRPKRU, Nr.RT_SIGACTION, Nr.PRLIMIT64} | {
    Nr.GETPID, Nr.GETTID, Nr.GETPPID, Nr.GETUID, Nr.SYSINFO,
}  # fmt: skip
"""Requests that neither see nor change an empty page, nor one of a file that is mapped read-only. But where a file has
become shorter (FILE_SYNC), its pages are taken away, and copies of them."""
_OWN = {Nr.MMAP, Nr.MPROTECT, Nr.MUNMAP, Nr.BRK, Nr.MREMAP, Nr.MADVISE, Nr.MINCORE, Nr.MSYNC, Nr.MLOCK, Nr.MUNLOCK} | {
    Nr.LOAD, Nr.STORE, Nr.TOUCH, Nr.EXECVE, Nr.EXIT, Nr.EXIT_GROUP, Nr.CLONE, Nr.NATIVE, Nr.RING,
}  # fmt: skip
"""Requests that see and change the memory of who makes them, and no other process's empty pages."""
_OF_FILES = {Madv.REMOVE, Madv.COLD, Madv.PAGEOUT, Madv.COLLAPSE, Madv.HWPOISON, Madv.SOFT_OFFLINE}
"""Advice that takes pages out of the page cache, or asks who maps them."""
_LEAVES_VMAS = {Nr.MINCORE, Nr.MSYNC}
"""Requests of these that change no mapping."""
_OF_RANGE = {Nr.MUNMAP, Nr.MPROTECT, Nr.MADVISE, Nr.MLOCK, Nr.MUNLOCK}
"""Requests whose first two arguments are the start and the length of what they change."""


def recall_advances(call: Call) -> None:
    """Book what has been taken, and take back what a request other than a fault might see or change: before it runs."""
    call.kernel.advances.book()
    own = call.thread.advances
    if own is not None:
        own.begin_request()
    nr, args = call.nr, call.args
    cuts_file = nr == Nr.FILE_SYNC and args[0] & (FILE_SYNC_WRITTEN | FILE_SYNC_TRUNCATE)
    if nr in _LEAVE_IT and not cuts_file:
        return
    if nr not in _OWN or (nr == Nr.MADVISE and args[2] in _OF_FILES):
        call.kernel.advances.recall()
    elif own is not None:
        own.recall(*_changed(call))


def _changed(call: Call) -> tuple[Vaddr, Vaddr]:
    """Return the range that has all mappings that a call may change, except one that grows or begins."""
    nr, args = call.nr, call.args
    if nr in _OF_RANGE or (nr == Nr.MMAP and args[3] & (Map.FIXED | Map.FIXED_NOREPLACE)):
        return args[0] & PAGE_MASK, args[0] + args[1]
    if nr in _LEAVES_VMAS or nr == Nr.MMAP or (nr == Nr.BRK and not 0 < args[0] < call.mm.brk):
        return 0, 0
    return 0, TASK_SIZE
