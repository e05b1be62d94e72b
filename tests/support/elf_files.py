"""ELF files built byte by byte, files without a file system, and a process to execve them."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kerneld.errors import SysError
from kerneld.hw.ram import Ram
from kerneld.mm.check.invariants import check_machine
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import Frames
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.pace import drain
from kerneld.mm.vm_flags import VM_EXEC, VM_READ, VM_WRITE
from kerneld.task.exec import Binprm, do_execve, fresh_mm
from kerneld.task.exec_stack import Strings
from kerneld.task.task import Cred, Process
from shared.uapi.page import PAGE_SIZE

ET_REL, ET_EXEC, ET_DYN = 1, 2, 3
PT_LOAD, PT_INTERP, PT_NOTE, PT_GNU_STACK = 1, 3, 4, 0x6474E551
R, W, X = 4, 2, 1
EM_386, EM_X86_64 = 3, 62
LD_PATH = "/lib/ld-test.so"

_EHDR = struct.Struct("<4sBBBB8xHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")


@dataclass(frozen=True, slots=True)
class Phdr:
    """A program header."""

    p_type: int = PT_LOAD
    flags: int = R
    offset: int = 0
    vaddr: int = 0
    filesz: int = 0
    memsz: int = 0
    align: int = PAGE_SIZE

    def pack(self) -> bytes:
        return _PHDR.pack(
            self.p_type, self.flags, self.offset, self.vaddr, self.vaddr, self.filesz, self.memsz, self.align
        )


@dataclass(frozen=True, slots=True)
class Elf:
    """An ELF file; the bytes of a page of the file are its number plus 1, behind the headers."""

    phdrs: tuple[Phdr, ...]
    e_type: int = ET_EXEC
    entry: int = 0x40_0000
    machine: int = EM_X86_64
    elf_class: int = 2
    data: int = 1
    magic: bytes = b"\x7fELF"
    phoff: int = 64
    phentsize: int = 56
    phnum: int | None = None
    pages: int = 4
    texts: dict[int, bytes] = field(default_factory=dict)
    """What lies at other offsets of the file."""

    def build(self) -> bytes:
        body = bytearray(b"".join(bytes([page + 1]) * PAGE_SIZE for page in range(self.pages)))
        phnum = len(self.phdrs) if self.phnum is None else self.phnum
        header = _EHDR.pack(
            self.magic, self.elf_class, self.data, 1, 0, self.e_type, self.machine, 1, self.entry, self.phoff, 0, 0,
            64, self.phentsize, phnum, 0, 0, 0,
        )  # fmt: skip
        phdrs = b"".join(phdr.pack() for phdr in self.phdrs)
        for offset, text in {0: header, 64: phdrs, **self.texts}.items():
            body[offset : offset + len(text)] = text
        return bytes(body)


def with_interp(
    phdrs: Iterable[Phdr], path: bytes = LD_PATH.encode() + b"\0"
) -> tuple[tuple[Phdr, ...], dict[int, bytes]]:
    """Return headers with a PT_INTERP in front, and the text that it names."""
    return (Phdr(PT_INTERP, offset=2048, filesz=len(path), memsz=len(path)), *phdrs), {2048: path}


class BytesBacking:
    """A file that is bytes in memory and knows whether it is open."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fails = False
        self.nr_releases = 0

    def map_writable(self) -> None:
        pass

    def unmap_writable(self) -> None:
        pass

    def mincore(self, first: int, count: int) -> bytes:
        return b"\1" * count

    def size_bytes(self) -> int:
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        return self.data[offset : offset + length]

    def write_at(self, offset: int, data: memoryview) -> None:
        raise AssertionError("nothing writes to a program")

    def punch_hole(self, offset: int, length: int) -> None:
        raise AssertionError("nothing punches holes into a program")

    def fill_hole(self, index: int) -> None:
        raise AssertionError("nothing writes to a program")

    def release(self) -> bool:
        self.nr_releases += 1
        return False


class World:
    """A machine with one process, root's unless said otherwise."""

    def __init__(self, *, ram_bytes: int = 8 << 20, superuser: bool = True) -> None:
        self.ram = Ram(ram_bytes)
        self.frames = Frames(self.ram)
        self.free_pages = self.frames.free_pages
        self.files: dict[str, File] = {}
        self.opened: list[str] = []
        mm = fresh_mm(self.frames, Rlimits(), Sysctl())
        self.process = Process(4242, Cred(1000, 1001, superuser), mm, "before", 0.0)

    @property
    def mm(self) -> MmStruct:
        return self.process.live_mm

    def file(self, content: Elf | bytes, path: str = "/bin/program", *, readable: bool = True) -> File:
        data = content.build() if isinstance(content, Elf) else content
        file = File(AddressSpace(self.frames, BytesBacking(data)), path, readable=readable, writable=False)
        self.files[path] = file
        return file

    def open_interpreter(self, path: str) -> File:
        self.opened.append(path)
        if path not in self.files:
            raise SysError(errno.ENOENT)
        return self.files[path]

    def execve(
        self,
        content: Elf | bytes | File,
        argv: Iterable[bytes] = (b"program",),
        envp: Iterable[bytes] = (),
        filename: bytes = b"",
    ) -> MmStruct:
        file = content if isinstance(content, File) else self.file(content)
        bprm = Binprm(file, filename or os.fsencode(file.path), Strings.of([*argv], [*envp]))
        drain(do_execve(self.process, bprm, self.open_interpreter))
        self.check()
        return self.mm

    def check(self, unused: Iterable[AddressSpace] = ()) -> None:
        """Check every invariant; `unused` are the caches of files that nothing maps."""
        check_machine(self.frames, [self.mm], unused)

    def maps(self) -> list[tuple[int, int, str, str]]:
        """Return start, end, rights and file of each VMA."""
        return [
            (vma.start, vma.end, rights(vma.vm_flags), vma.file.path if vma.file is not None else "")
            for vma in self.mm.vmas
        ]

    def close(self) -> None:
        if not self.process.ended:
            self.process.exit_mm()
        assert self.frames.free_pages == self.free_pages
        self.ram.close()


def rights(vm_flags: int) -> str:
    return "".join(name if vm_flags & bit else "-" for name, bit in (("r", VM_READ), ("w", VM_WRITE), ("x", VM_EXEC)))


def errno_of(call: Callable[..., Any], *arguments: Any) -> int:
    """Return the errno that a call fails with. Keeps no traceback: that would keep the machine's memory."""
    try:
        call(*arguments)
    except SysError as error:
        return error.errno
    return 0


@contextmanager
def new_world(*, ram_bytes: int = 8 << 20, superuser: bool = True) -> Iterator[World]:
    """Make a world, and check that all its frames are free again at the end."""
    world = World(ram_bytes=ram_bytes, superuser=superuser)
    yield world
    world.close()
