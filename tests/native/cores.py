"""A core file: its memory, and which signal ended the program. Source: Linux v6.8 fs/binfmt_elf.c:elf_core_dump()."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.elffile import ELFFile

_RSP, _RIP = 19, 16
"""Places in the registers of struct elf_prstatus. Source: Linux v6.8 arch/x86/include/asm/user_64.h."""
_REGISTERS_AT = 112


@dataclass(frozen=True, slots=True)
class Core:
    """What is in a core file. `rip` and `rsp` are those of the thread that has got the signal."""

    segments: tuple[tuple[int, int, bytes], ...]
    """Start and end of what was mapped, and the bytes from its start on that the file has."""
    signo: int
    code: int
    rip: int
    rsp: int

    def text_at(self, address: int) -> str | None:
        """Return the text that ends in a NUL at an address; None where the file has no memory."""
        for start, _end, data in self.segments:
            if start <= address < start + len(data):
                return data[address - start :].partition(b"\0")[0].decode("latin-1")
        return None


def read_core(path: Path) -> Core:
    """Read a core file of a 64-bit program."""
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
        segments = tuple((s["p_vaddr"], s["p_vaddr"] + s["p_memsz"], s.data()) for s in loads)
        note = next(segment for segment in elf.iter_segments() if segment["p_type"] == "PT_NOTE").data()
    status, info = _find_note(note, 1), _find_note(note, 0x53494749)
    registers = struct.unpack_from("<27Q", status, _REGISTERS_AT)
    signo, _errno, code = struct.unpack_from("<3i", info)
    return Core(segments, signo, code, registers[_RIP], registers[_RSP])


def _find_note(notes: bytes, kind: int) -> bytes:
    """Return the first note of a type: NT_PRSTATUS is 1, NT_SIGINFO is SIGI in ASCII."""
    at = 0
    while True:
        name_bytes, length, found = struct.unpack_from("<3I", notes, at)
        start = at + 12 + (name_bytes + 3) // 4 * 4
        if found == kind:
            return notes[start : start + length]
        at = start + (length + 3) // 4 * 4
