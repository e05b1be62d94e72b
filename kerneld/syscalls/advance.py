"""Which requests see or change what native programs have been given in advance (`kerneld.tlb.advances`)."""

from __future__ import annotations

from kerneld.syscalls.answer import Call
from shared.uapi.native import FILE_SYNC_TRUNCATE, FILE_SYNC_WRITTEN
from shared.uapi.syscalls import Nr

_LEAVE_IT = {Nr.RING_BELL, Nr.FILE_SYNC, Nr.CONNECT, Nr.CREDS, Nr.RDPKRU, Nr.WRPKRU, Nr.RT_SIGACTION} | {
    Nr.GETPID, Nr.GETTID, Nr.GETPPID, Nr.GETUID,
}  # fmt: skip
"""Requests that neither see nor change an empty page, nor one of a file that is mapped read-only. But where a file has
become shorter (FILE_SYNC), its pages are taken away, and copies of them."""
_OWN = {Nr.MMAP, Nr.MPROTECT, Nr.MUNMAP, Nr.BRK, Nr.MREMAP, Nr.MADVISE, Nr.MINCORE, Nr.MSYNC, Nr.MLOCK, Nr.MUNLOCK} | {
    Nr.LOAD, Nr.STORE, Nr.TOUCH, Nr.EXECVE, Nr.EXIT, Nr.EXIT_GROUP, Nr.CLONE, Nr.NATIVE, Nr.RING,
}  # fmt: skip
"""Requests that see and change the memory of who makes them, and no other process's empty pages."""


def recall_advances(call: Call) -> None:
    """Take back what a request other than a fault might see or change, before it runs."""
    own = call.thread.advances
    if own is not None:
        own.begin_request()
    cuts_file = call.nr == Nr.FILE_SYNC and call.args[0] & (FILE_SYNC_WRITTEN | FILE_SYNC_TRUNCATE)
    if call.nr in _LEAVE_IT and not cuts_file:
        return
    if call.nr not in _OWN:
        call.kernel.advances.recall()
    elif own is not None:
        own.recall()
