"""The check of a program before `kerneld run` runs it: can a library be preloaded into the program?

Owns nothing; reads files. Answers to ld.so(8) and to Linux v6.8 fs/binfmt_elf.c and fs/binfmt_script.c.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import BinaryIO

from kerneld.commands.program import ProgramError

_ELF_MAGIC = b"\x7fELF"
_ELF64_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<II6Q")
_ELFCLASS64 = 2
_ELFDATA2LSB = 1
_EM_X86_64 = 62
_PT_INTERP = 3
_MACHINES = {3: "32-bit x86", 40: "32-bit ARM", 183: "64-bit ARM", 243: "RISC-V"}
_MAX_SCRIPTS = 5
"""How often a script's interpreter may be a script: Linux v6.8 fs/exec.c:exec_binprm()."""


def check_program(path: str) -> None:
    """Check that a library can be preloaded into the program at `path`, or into the interpreter of a script.

    Raises ProgramError for a file that is linked statically, for another architecture, set-user-ID, or no program.
    """
    for _script in range(_MAX_SCRIPTS):
        try:
            status = os.stat(path)
            with open(path, "rb") as file:
                head = file.read(4096)
                phdrs = _read_phdrs(file, head)
        except PermissionError:
            # The file is executable and not readable: it cannot be checked.
            return
        except OSError as error:
            raise ProgramError(f"cannot run {path}: {error.strerror}") from None
        if (status.st_mode & stat.S_ISUID and status.st_uid != os.geteuid()) or (
            status.st_mode & stat.S_ISGID and status.st_gid != os.getegid()
        ):
            raise ProgramError(
                f"{path} is set-user-ID: ld.so preloads nothing into such a program; use it around kerneld run"
            )
        if not head.startswith(b"#!"):
            _check_elf(path, head, phdrs)
            return
        words = head[2:].split(b"\n", 1)[0].split()
        if not words:
            raise ProgramError(f"{path} is a script that names no interpreter")
        path = os.fsdecode(words[0])


def _read_phdrs(file: BinaryIO, head: bytes) -> bytes:
    """Return the program headers of an ELF file; empty for another file."""
    if not head.startswith(_ELF_MAGIC) or len(head) < _ELF64_HEADER.size:
        return b""
    *_before, phoff, _shoff, _flags, _ehsize, phentsize, phnum, _, _, _ = _ELF64_HEADER.unpack_from(head)
    try:
        file.seek(phoff)
        return file.read(phentsize * phnum)
    except (OSError, ValueError):
        return b""


def _check_elf(path: str, head: bytes, phdrs: bytes) -> None:
    if not head.startswith(_ELF_MAGIC) or len(head) < _ELF64_HEADER.size:
        raise ProgramError(f"{path} is neither an ELF program nor a script with #!")
    (ident, _type, machine, *_rest) = _ELF64_HEADER.unpack_from(head)
    if ident[4] != _ELFCLASS64 or ident[5] != _ELFDATA2LSB or machine != _EM_X86_64:
        what = _MACHINES.get(machine, f"machine {machine}")
        raise ProgramError(f"{path} is a program for another architecture ({what}): only x86-64 programs run here")
    phentsize = _rest[6]
    for at in range(0, len(phdrs) - _PHDR.size + 1, max(phentsize, _PHDR.size)):
        if _PHDR.unpack_from(phdrs, at)[0] == _PT_INTERP:
            return
    raise ProgramError(f"{path} is linked statically: its system calls cannot be taken (link it without -static)")
