"""Maps the segments of a program and of its interpreter.

Takes descriptions from `kerneld.task.elf` and calls memory management. Reads no file and knows no process. Addresses
are not randomised, as under `setarch -R`. Arithmetic is modulo 2^64, as in the kernel's C code: numbers of the file are
checked where Linux checks them, and wrap where they wrap in Linux. Answers to Linux v6.8
fs/binfmt_elf.c: elf_map(), elf_load(), load_elf_binary(), load_elf_interp().

| file                         | address of the first segment                                           |
|------------------------------|------------------------------------------------------------------------|
| ET_EXEC                      | the address in the file, for all segments                              |
| ET_DYN with an interpreter   | ELF_ET_DYN_BASE, rounded down to the largest alignment                 |
| ET_DYN without (static PIE)  | the top of the mmap area: a loader must not take the place of programs |
| interpreter, ET_DYN          | the top of the mmap area                                               |
"""

from __future__ import annotations

import errno
from contextlib import suppress
from dataclasses import dataclass

from kerneld.errors import SysError
from kerneld.mm.calls.brk import do_brk_flags
from kerneld.mm.calls.mlock import mlock_future_ok
from kerneld.mm.calls.mmap import do_mmap
from kerneld.mm.files.file import File
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.unmapped_area import get_unmapped_area
from kerneld.mm.vm_flags import VM_EXEC
from kerneld.task.elf import U64_MASK, ElfImage, ElfSegment
from kerneld.task.uaccess import copy_to_user
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, TASK_SIZE, Vaddr, page_align

ELF_ET_DYN_BASE: Vaddr = TASK_SIZE // 3 * 2
"""Source: Linux v6.8 arch/x86/include/asm/elf.h. The page of this address is 0x555555554000, as debuggers show it."""

_PRIVATE = Map.PRIVATE.value
_FIXED = (Map.PRIVATE | Map.FIXED).value
_FIXED_NOREPLACE = (Map.PRIVATE | Map.FIXED_NOREPLACE).value
_PAGE_OFFSET = ~PAGE_MASK


@dataclass(frozen=True, slots=True)
class Placement:
    """The place of a program; addresses in bytes."""

    load_bias: int
    """Added to every address in the file, modulo 2^64."""
    entry: int
    phdr_addr: int
    """The program headers in memory: AT_PHDR."""
    start_code: int
    end_code: int
    start_data: int
    end_data: int
    brk: int
    """The end of the highest segment."""


def map_program(mm: MmStruct, file: File, image: ElfImage, *, privileged: bool) -> Placement:
    """Map the segments of a program and return their place.

    A `privileged` program may be mapped below vm.mmap_min_addr. Raises SysError(EINVAL) for impossible sizes and
    addresses, and as `do_mmap` does. Source: Linux v6.8 fs/binfmt_elf.c:load_elf_binary().
    """
    bias, flags, total = 0, _FIXED_NOREPLACE, 0
    if image.is_dyn and image.segments:
        bias, flags = _dyn_base(image), _FIXED_NOREPLACE if image.interpreter is not None else _PRIVATE
    if image.is_dyn:
        total = image.total_mapping_bytes
        if not total:
            raise SysError(errno.EINVAL)
    for number, segment in enumerate(image.segments):
        addr = (bias + segment.vaddr) & U64_MASK
        mapped = elf_load(mm, file, addr, segment, flags, total, privileged=privileged)
        _check_addr(mapped)
        if number == 0 and image.is_dyn:
            bias = (bias + mapped - (addr & PAGE_MASK)) & U64_MASK
        flags, total = _FIXED, 0
        if not _fits(segment, segment.vaddr):
            raise SysError(errno.EINVAL)
    placement = _place(image, bias)
    if image.interpreter is None:
        _check_addr(placement.entry)
    return placement


def _dyn_base(image: ElfImage) -> int:
    """Return the load bias to try for the first segment."""
    base = 0
    if image.interpreter is not None:
        base = ELF_ET_DYN_BASE
        if image.maximum_alignment:
            base &= ~(image.maximum_alignment - 1)
    return (base - image.segments[0].vaddr) & U64_MASK & PAGE_MASK


def _check_addr(addr: int) -> None:
    """Raise SysError(EINVAL) outside user space (Linux: BAD_ADDR)."""
    if addr >= TASK_SIZE:
        raise SysError(errno.EINVAL)


def _fits(segment: ElfSegment, start: int) -> bool:
    """Return whether a segment at `start` lies within user space, and its file part within its memory."""
    return (
        start < TASK_SIZE
        and segment.file_bytes <= segment.mem_bytes <= TASK_SIZE
        and start <= TASK_SIZE - segment.mem_bytes
    )


def _place(image: ElfImage, bias: int) -> Placement:
    """Return the addresses that the kernel keeps of a program. All segments have been checked."""
    phdr = 0
    for segment in image.segments:
        if segment.offset <= image.phoff < (segment.offset + segment.file_bytes) & U64_MASK:
            phdr = image.phoff - segment.offset + segment.vaddr
    code = [segment for segment in image.segments if segment.prot & Prot.EXEC]
    ends = [segment.vaddr + segment.file_bytes for segment in image.segments]

    def biased(value: int) -> int:
        return (value + bias) & U64_MASK

    return Placement(
        load_bias=bias,
        entry=biased(image.entry),
        phdr_addr=biased(phdr),
        start_code=biased(min((segment.vaddr for segment in code), default=U64_MASK)),
        end_code=biased(max((segment.vaddr + segment.file_bytes for segment in code), default=0)),
        start_data=biased(max((segment.vaddr for segment in image.segments), default=0)),
        end_data=biased(max(ends, default=0)),
        brk=biased(max((segment.vaddr + segment.mem_bytes for segment in image.segments), default=0)),
    )


def map_interpreter(mm: MmStruct, file: File, image: ElfImage, program: Placement, *, privileged: bool) -> Vaddr:
    """Map the segments of a program's interpreter and return its load address, AT_BASE.

    Raises SysError(EINVAL) without a segment or with an entry point outside user space, SysError(ENOMEM) for impossible
    sizes, and as `do_mmap` does. Source: Linux v6.8 fs/binfmt_elf.c:load_elf_interp().
    """
    total = image.total_mapping_bytes
    if not total:
        raise SysError(errno.EINVAL)
    bias, flags = 0, _PRIVATE
    if not image.is_dyn:
        flags = _FIXED
    elif program.load_bias:
        bias = -image.segments[0].vaddr
    for number, segment in enumerate(image.segments):
        addr = (bias + segment.vaddr) & U64_MASK
        mapped = elf_load(mm, file, addr, segment, flags, total, privileged=privileged)
        _check_addr(mapped)
        total = 0
        if number == 0 and image.is_dyn:
            bias = (mapped - (segment.vaddr & PAGE_MASK)) & U64_MASK
            flags = _FIXED
        if not _fits(segment, (bias + segment.vaddr) & U64_MASK):
            raise SysError(errno.ENOMEM)
    _check_addr((bias + image.entry) & U64_MASK)
    return bias


def elf_load(
    mm: MmStruct, file: File, addr: int, segment: ElfSegment, flags: int, total_bytes: int, *, privileged: bool
) -> Vaddr:
    """Map one segment at `addr`: its part of the file, and zeros after it. Return the start of its first page.

    The rest of the last file page is zeroed in memory; the process gets its own copy of that page.
    `total_bytes`, if not 0, is the room for the whole image. Raises SysError(EFAULT) if the last page of a writable
    segment cannot be zeroed (the file is too short), and as `do_mmap` and `do_brk_flags` do.
    Source: Linux v6.8 fs/binfmt_elf.c:elf_load().
    """
    has_bss = segment.mem_bytes > segment.file_bytes
    offset = segment.vaddr & _PAGE_OFFSET
    if segment.file_bytes:
        mapped = _elf_map(mm, file, addr, segment, flags, total_bytes, privileged=privileged)
        if mapped >= TASK_SIZE:
            return mapped
        zero_start = (mapped + offset + segment.file_bytes) & U64_MASK
        if has_bss:
            _padzero(mm, zero_start, must=bool(segment.prot & Prot.WRITE))
    else:
        mapped = zero_start = addr & PAGE_MASK
    if has_bss:
        start = page_align(zero_start) & U64_MASK
        end = page_align(mapped + offset + segment.mem_bytes) & U64_MASK
        _vm_brk_flags(mm, start, (end - start) & U64_MASK, segment.prot, privileged=privileged)
    return mapped


def _elf_map(
    mm: MmStruct, file: File, addr: int, segment: ElfSegment, flags: int, total_bytes: int, *, privileged: bool
) -> Vaddr:
    """Map the file part of a segment. Source: Linux v6.8 fs/binfmt_elf.c:elf_map().

    With `total_bytes` room for the whole image is mapped first, so that all segments fit there. The part after this
    segment is unmapped again. If that fails it stays, as in Linux.
    """
    offset = segment.vaddr & _PAGE_OFFSET
    addr &= PAGE_MASK
    size = page_align(segment.file_bytes + offset) & U64_MASK
    file_offset = (segment.offset - offset) & U64_MASK
    if not size:
        return addr
    total = page_align(total_bytes) & U64_MASK if total_bytes else size
    if file_offset & _PAGE_OFFSET or file_offset + total > U64_MASK:
        raise SysError(errno.EINVAL)
    mapped = do_mmap(mm, addr, total, segment.prot, flags, file, file_offset >> PAGE_SHIFT, privileged=privileged)
    if total > size:
        with suppress(SysError):
            do_munmap(mm, mapped + size, total - size)
    return mapped


def _padzero(mm: MmStruct, start: Vaddr, *, must: bool) -> None:
    """Zero the memory from `start` to the end of its page. Source: Linux v6.8 fs/binfmt_elf.c:padzero()."""
    count = -start & _PAGE_OFFSET
    if copy_to_user(mm, start, bytes(count)) < count and must:
        raise SysError(errno.EFAULT)


def _vm_brk_flags(mm: MmStruct, start: Vaddr, length: int, prot: int, *, privileged: bool) -> None:
    """Map [start, start + length), page-aligned, as anonymous memory, in place of earlier mappings.

    Raises SysError(ENOMEM), SysError(EPERM) below vm.mmap_min_addr, SysError(EAGAIN) over RLIMIT_MEMLOCK.
    Source: Linux v6.8 mm/mmap.c:vm_brk_flags() and check_brk_limits().
    """
    if not length:
        return
    get_unmapped_area(mm, start, length, Map.FIXED.value, raw_io=privileged)
    if not mlock_future_ok(mm, mm.def_flags, length, privileged):
        raise SysError(errno.EAGAIN)
    do_munmap(mm, start, length)
    do_brk_flags(mm, start, length, VM_EXEC if prot & Prot.EXEC else 0)
