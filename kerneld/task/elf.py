"""Reads the headers of an ELF file: which segments have to be mapped.

Owns the reading of the file and its typed description. Maps nothing. No number of the file is trusted: `ElfImage` holds
the unsigned 64-bit words of the file, and `kerneld.task.elf_map` checks them as Linux does. The layout of the
two headers is that of elf(5) and the System V ABI (Elf64_Ehdr, Elf64_Phdr). Answers to
Linux v6.8 fs/binfmt_elf.c: load_elf_phdrs(), elf_read(), total_mapping_size(), maximum_alignment(), make_prot().

| error in the file                                                 | program | interpreter |
|-------------------------------------------------------------------|---------|-------------|
| no ELF, another machine or type (its class says nothing)          | ENOEXEC | ELIBBAD     |
| program headers of another size, none, over a page, out of file   | ENOEXEC | ELIBBAD     |
| path of the interpreter under 2 or over 4,096 bytes, no NUL       | ENOEXEC | –           |
| that path, or the interpreter's header, not wholly in the file    | EIO     | EIO         |
| that path at an impossible offset (negative as a signed number)   | EINVAL  | –           |
"""

from __future__ import annotations

import errno
import functools
import os
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from kerneld.errors import SysError
from kerneld.mm.files.file import File
from kerneld.mm.frames.frames import Frames
from shared.uapi.mman import Prot
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, page_align

U64_MASK = (1 << 64) - 1
EHDR_BYTES = 64
PHDR_BYTES = 56
PATH_MAX = 4096
_MAX_OFFSET = (1 << 63) - 1
_MOST_KEPT = 64
"""The number of programs whose headers are remembered."""
_MAGIC = b"\x7fELF"
_ET_EXEC, _ET_DYN, _EM_X86_64 = 2, 3, 62
_PT_LOAD, _PT_INTERP, _PT_GNU_STACK = 1, 3, 0x6474_E551
_PF_X, _PF_W, _PF_R = 1, 2, 4
_EHDR = Struct("<16sHHIQQQIHHHHHH")
_PHDR = Struct("<IIQQQQQQ")


class _Ehdr(NamedTuple):
    """The header of an ELF file, field by field (Elf64_Ehdr)."""

    ident: bytes
    type: int
    machine: int
    version: int
    entry: int
    phoff: int
    shoff: int
    flags: int
    ehsize: int
    phentsize: int
    phnum: int
    shentsize: int
    shnum: int
    shstrndx: int


class _Phdr(NamedTuple):
    """A program header (Elf64_Phdr)."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True, slots=True)
class ElfSegment:
    """One PT_LOAD: `file_bytes` from `offset` of the file go to `vaddr`; zeros follow, up to `mem_bytes`."""

    vaddr: int
    offset: int
    file_bytes: int
    mem_bytes: int
    align: int
    prot: int


@dataclass(frozen=True, slots=True)
class ElfImage:
    """The headers of one ELF file. Every number is the unchecked number of the file."""

    is_dyn: bool
    """True for ET_DYN, which may be mapped anywhere; False for ET_EXEC."""
    entry: int
    phoff: int
    phnum: int
    segments: tuple[ElfSegment, ...]
    interpreter: str | None
    """The path in PT_INTERP."""
    executable_stack: bool
    """Whether PT_GNU_STACK asks for an executable stack. Without that header it is not executable on x86-64."""

    @property
    def total_mapping_bytes(self) -> int:
        """The bytes from the first page of the lowest segment to the end of the highest, modulo 2^64.

        0 without segments.
        """
        if not self.segments:
            return 0
        low = min(segment.vaddr & PAGE_MASK for segment in self.segments)
        high = max((segment.vaddr + segment.mem_bytes) & U64_MASK for segment in self.segments)
        return (high - low) & U64_MASK

    @property
    def maximum_alignment(self) -> int:
        """The largest alignment that is a power of two, in bytes, at least a page.

        0 if no alignment is a power of two.
        """
        aligns = [s.align for s in self.segments if s.align and not s.align & (s.align - 1)]
        return page_align(max(aligns, default=0))


class _Reader:
    """Reads the bytes of one file; those of its first page, where nearly every file has all of its headers, once."""

    def __init__(self, frames: Frames, file: File) -> None:
        """Raises SysError(EIO)."""
        self._frames = frames
        self._file = file
        self.head = _kernel_read(frames, file, 0, PAGE_SIZE)

    def read(self, offset: int, length: int) -> bytes:
        """Read exactly `length` bytes. Raises SysError(EIO), SysError(EINVAL). Source: fs/binfmt_elf.c:elf_read()."""
        if offset + length <= len(self.head):
            return self.head[offset : offset + length]
        data = _kernel_read(self._frames, self._file, offset, length)
        if len(data) != length:
            raise SysError(errno.EIO)
        return data


def read_program(frames: Frames, file: File) -> ElfImage:
    """Read the headers of a program. Raises SysError as the table above says.

    Source: Linux v6.8 fs/binfmt_elf.c:load_elf_binary(), up to its point of no return.
    """
    reader = _Reader(frames, file)
    header = _check_header(reader.head[:EHDR_BYTES].ljust(EHDR_BYTES, b"\0"))
    phdrs = _read_phdrs(reader, header)
    return _image(header, phdrs, _find_interpreter(reader, _unpack(phdrs)))


def read_interpreter(frames: Frames, file: File) -> ElfImage:
    """Read the headers of a program's interpreter. Raises SysError as the table above says.

    Differs from Linux: a type that is neither ET_EXEC nor ET_DYN is ELIBBAD too (Linux kills the process over it).
    """
    reader = _Reader(frames, file)
    data = reader.read(0, EHDR_BYTES)
    try:
        header = _check_header(data)
        return _image(header, _read_phdrs(reader, header), None)
    except SysError as error:
        raise SysError(errno.ELIBBAD if error.errno == errno.ENOEXEC else error.errno) from None


def _check_header(data: bytes) -> _Ehdr:
    header = _Ehdr._make(_EHDR.unpack(data))
    if header.ident[:4] != _MAGIC or header.type not in (_ET_EXEC, _ET_DYN) or header.machine != _EM_X86_64:
        raise SysError(errno.ENOEXEC)
    return header


def _read_phdrs(reader: _Reader, header: _Ehdr) -> bytes:
    """Return the program headers. Source: Linux v6.8 fs/binfmt_elf.c:load_elf_phdrs()."""
    length = header.phnum * PHDR_BYTES
    if header.phentsize != PHDR_BYTES or not 0 < length <= PAGE_SIZE:
        raise SysError(errno.ENOEXEC)
    try:
        return reader.read(header.phoff, length)
    except SysError:
        raise SysError(errno.ENOEXEC) from None


@functools.lru_cache(_MOST_KEPT)
def _unpack(phdrs: bytes) -> list[_Phdr]:
    return [_Phdr._make(fields) for fields in _PHDR.iter_unpack(phdrs)]


@functools.lru_cache(_MOST_KEPT)
def _image(header: _Ehdr, phdrs: bytes, interpreter: str | None) -> ElfImage:
    """Return what these headers say. Most programs are executed many times: the last ones are remembered."""
    headers = _unpack(phdrs)
    stacks = [phdr for phdr in headers if phdr.type == _PT_GNU_STACK]
    return ElfImage(
        is_dyn=header.type == _ET_DYN,
        entry=header.entry,
        phoff=header.phoff,
        phnum=header.phnum,
        segments=tuple(_segment(phdr) for phdr in headers if phdr.type == _PT_LOAD),
        interpreter=interpreter,
        executable_stack=bool(stacks) and bool(_make_prot(stacks[-1].flags) & Prot.EXEC),
    )


def _segment(phdr: _Phdr) -> ElfSegment:
    return ElfSegment(
        vaddr=phdr.vaddr,
        offset=phdr.offset,
        file_bytes=phdr.filesz,
        mem_bytes=phdr.memsz,
        align=phdr.align,
        prot=_make_prot(phdr.flags),
    )


def _make_prot(p_flags: int) -> int:
    """Return PROT_* for PF_*. Source: Linux v6.8 fs/binfmt_elf.c:make_prot()."""
    prot = Prot.READ if p_flags & _PF_R else Prot.NONE
    prot |= Prot.WRITE if p_flags & _PF_W else Prot.NONE
    prot |= Prot.EXEC if p_flags & _PF_X else Prot.NONE
    return prot.value


def _find_interpreter(reader: _Reader, phdrs: list[_Phdr]) -> str | None:
    """Return the path in the first PT_INTERP, or None without PT_INTERP."""
    phdr = next((phdr for phdr in phdrs if phdr.type == _PT_INTERP), None)
    if phdr is None:
        return None
    if not 2 <= phdr.filesz <= PATH_MAX:
        raise SysError(errno.ENOEXEC)
    path = reader.read(phdr.offset, phdr.filesz)
    if path[-1]:
        raise SysError(errno.ENOEXEC)
    return os.fsdecode(path.split(b"\0", 1)[0])


def _kernel_read(frames: Frames, file: File, offset: int, length: int) -> bytes:
    """Read up to `length` bytes at `offset` through the page cache, because cached pages may be newer than the file.

    Raises SysError(EINVAL) for an offset over 2^63, and SysError(EIO) if the file cannot be read.
    """
    mapping = file.mapping
    if offset > _MAX_OFFSET:
        raise SysError(errno.EINVAL)
    try:
        length = min(length, max(0, mapping.size_bytes() - offset))
        data = bytearray(mapping.backing.read_at(offset, length)) if mapping.backing is not None else bytearray(length)
        end = offset + len(data)
        for index in range(offset >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT):
            cached = mapping.find_contents(index)
            if cached is not None:
                page = index << PAGE_SHIFT
                low, high = max(offset, page), min(end, page + PAGE_SIZE)
                data[low - offset : high - offset] = cached[low - page : high - page]
    except OSError:
        raise SysError(errno.EIO) from None
    return bytes(data)
