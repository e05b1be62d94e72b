"""Checks the memory over which a caller wants to map its table, in the caller's real address space.

Owns nothing. In a Linux kernel, remap_pfn_range() would check the caller's VMA. This module has to read the same facts
from /proc, which may block for ever (`host_look`). Answers to Linux v6.8 fs/proc/task_mmu.c:show_map_vma() and
Documentation/admin-guide/mm/pagemap.rst for what is looked at.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol

import numpy as np

from kerneld.errors import SysError
from kerneld.hw.scalars import u64
from kerneld.mm.space.mm import MmStruct
from kerneld.shadowpt.asking import Asking, DirectReader
from kerneld.shadowpt.host_look import Look, Question, Want
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pid, Vaddr
from shared.uapi.pagemap import PM_ENTRY_BYTES, PM_PRESENT, PM_SWAP


class Opener(Protocol):
    """The part of a process that this module needs."""

    @property
    def pid(self) -> Pid: ...
    @property
    def mm(self) -> MmStruct | None: ...


def check_opener(opener: Opener, entries: Vaddr, length: int, asking: Asking) -> None:
    """Check that a table can lie at [entries, entries + length) in the memory of its opener, simulated or real.

    Raises as check_own_entries() and check_entries() do.
    """
    mm = opener.mm
    if mm is not None and mm.notifiers.tlb is not None:
        check_own_entries(mm, entries, length)
    else:
        check_entries(opener.pid, entries, length, asking)


class _Refusal(Exception):
    """The memory is not suitable; the text says why."""


def check_entries(pid: Pid, entries: Vaddr, length: int, asking: Asking | None = None) -> None:
    """Check that [entries, entries + length) of the real process `pid` can become the kernel's table.

    `entries` may be any number; `length` is a multiple of PAGE_SIZE. Raises SysError(EINVAL) with the reason unless
    `entries` is page-aligned, the memory lies inside one anonymous mapping, private or shared, and no page of it has
    been touched or swapped out. Raises it also if the process cannot be read or has ended. Raises WouldWait. Source:
    docs/abi.md, shadowpt_open.
    """
    try:
        if entries & (PAGE_SIZE - 1):
            raise _Refusal("not page-aligned")
        found = _look(pid, entries, length, asking or Asking(DirectReader()))
        _check_mapping(found, entries, length)
        _check_untouched(found, entries, length)
    except _Refusal as refusal:
        why = str(refusal)
    except OSError as error:
        why = f"cannot look into the process: {error.strerror}"
    else:
        return
    raise SysError(errno.EINVAL, f"entries {entries:#x}, {length} bytes for the table: {why}")


def check_own_entries(mm: MmStruct, entries: Vaddr, length: int) -> None:
    """Do what `check_entries` does, for a native program: its memory is this machine's.

    Raises SysError(EINVAL), which says why.
    """
    why = _why_not_own(mm, entries, length)
    if why:
        raise SysError(errno.EINVAL, f"entries {entries:#x}, {length} bytes for the table: {why}")


def _why_not_own(mm: MmStruct, entries: Vaddr, length: int) -> str:
    if entries & (PAGE_SIZE - 1):
        return "not page-aligned"
    vma = mm.vmas.lookup(entries)
    if vma is None:
        return "nothing is mapped there"
    if vma.file is not None and vma.file.mapping.backing is not None:
        return f"not anonymous memory: {vma.file.path}"
    if vma.end - entries < length:
        return f"the mapping ends {vma.end - entries} bytes after it"
    walk = mm.page_table.walk
    for run in walk.runs(entries, entries + length):
        if walk.page_entries(run).any():
            return "a page of it has been touched"
    return ""


def _look(pid: Pid, entries: Vaddr, length: int, asking: Asking) -> Look:
    if entries >= 1 << 63:
        raise _Refusal("nothing is mapped there")
    directory_fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return asking.get(Question(pid, directory_fd, Want.ENTRIES, entries, entries + length))
    finally:
        os.close(directory_fd)


def _check_mapping(found: Look, entries: Vaddr, length: int) -> None:
    if not found.mappings or found.mappings[0].start > entries:
        raise _Refusal("nothing is mapped there")
    mapping = found.mappings[0]
    if not mapping.is_anonymous_memory:
        name = found.first_name.decode(errors="replace")
        raise _Refusal(f"not anonymous memory: {mapping.perms.decode()} {name}")
    if mapping.end - entries < length:
        raise _Refusal(f"the mapping ends {mapping.end - entries} bytes after it")


def _check_untouched(found: Look, entries: Vaddr, length: int) -> None:
    if len(found.data) != (length >> PAGE_SHIFT) * PM_ENTRY_BYTES:
        raise _Refusal("its page map is cut short: the process is ending")
    touched = np.flatnonzero(np.frombuffer(found.data, dtype=np.uint64) & u64(PM_PRESENT | PM_SWAP))
    if len(touched):
        raise _Refusal(
            f"{len(touched)} pages have been touched, the first at {entries + (int(touched[0]) << PAGE_SHIFT):#x}"
        )
