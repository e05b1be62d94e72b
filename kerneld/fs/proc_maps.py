"""/proc/PID/maps: one line for each mapping.

Answers to Linux v6.8 fs/proc/task_mmu.c: show_map_vma(), show_vma_header_prefix(), and fs/seq_file.c:seq_file_path().
"""

from __future__ import annotations

import os

from kerneld.fs.file_table import FileTable
from kerneld.fs.seq_file import Records
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_EXEC, VM_MAYSHARE, VM_READ, VM_WRITE
from shared.uapi.page import PAGE_SHIFT, Vaddr

_NAME_COLUMN = 72
"""seq_setwidth(): the width of the padded header, before the blank and the name."""


def show_maps(mm: MmStruct, files: FileTable, key: int) -> Records:
    """Yield the lines of the mappings that end after the address `key`."""
    while (vma := mm.vmas.find(key)) is not None:
        key = vma.end
        yield key, show_map_vma(mm, files, vma)


def show_map_vma(mm: MmStruct, files: FileTable, vma: Vma) -> bytes:
    """Return the line of one mapping. Source: Linux v6.8 fs/proc/task_mmu.c:show_map_vma()."""
    dev = ino = offset = 0
    name = b""
    file = vma.vm_file
    if file is not None:
        dev, ino, offset = file.dev, file.ino, vma.pgoff << PAGE_SHIFT
        path = vma.anon_name or files.find_path(file)
        name = os.fsencode(path).replace(b"\n", b"\\012")
    elif vma_is_initial_heap(mm, vma):
        name = b"[heap]"
    elif vma_is_initial_stack(mm, vma):
        name = b"[stack]"
    else:
        name = vma.anon_name.encode()
    header = vma_header(vma.start, vma.end, vma.vm_flags, offset, dev, ino)
    if name or file is not None:
        header = header.ljust(_NAME_COLUMN) + b" " + name
    return header + b"\n"


def vma_header(start: Vaddr, end: Vaddr, vm_flags: int, offset: int, dev: int, ino: int) -> bytes:
    """Return the part of a line before the mapping's name. Source: Linux v6.8 show_vma_header_prefix()."""
    rights = "".join(
        letter if vm_flags & flag else "-" for letter, flag in (("r", VM_READ), ("w", VM_WRITE), ("x", VM_EXEC))
    )
    kind = "s" if vm_flags & VM_MAYSHARE else "p"
    device = f"{os.major(dev):02x}:{os.minor(dev):02x}"
    return f"{start:08x}-{end:08x} {rights}{kind} {offset:08x} {device} {ino} ".encode()


def show_rollup_header(start: Vaddr, end: Vaddr) -> bytes:
    """Return the first line of smaps_rollup. Source: Linux v6.8 fs/proc/task_mmu.c:show_smaps_rollup()."""
    return vma_header(start, end, 0, 0, 0, 0).ljust(_NAME_COLUMN) + b" [rollup]\n"


def vma_is_initial_heap(mm: MmStruct, vma: Vma) -> bool:
    """Return whether a mapping shares an address with the heap. Source: Linux v6.8 include/linux/mm.h, of that name."""
    return vma.start < mm.brk and vma.end > mm.start_brk


def vma_is_initial_stack(mm: MmStruct, vma: Vma) -> bool:
    """Return whether a mapping holds the stack's start. Source: Linux v6.8 include/linux/mm.h, of that name."""
    return vma.start <= mm.start_stack <= vma.end
