"""Whether a library can be preloaded, told from the program's file."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from kerneld.commands.program import ProgramError
from kerneld.commands.run.program import check_program


def test_program_headers_may_stand_anywhere(tmp_path: Path) -> None:
    """patchelf moves them to the end: it is no static program for that."""
    moved = tmp_path / "moved"
    shutil.copy("/bin/true", moved)
    content = bytearray(moved.read_bytes())
    phoff, phentsize, phnum = struct.unpack_from("<Q14xHH", content, 32)
    headers = content[phoff : phoff + phentsize * phnum]
    content += bytes(-len(content) % 8)
    struct.pack_into("<Q", content, 32, len(content))
    moved.write_bytes(content + headers)
    check_program(str(moved))


@pytest.mark.parametrize("phoff", [1 << 62, (1 << 64) - 1, 0])
def test_program_headers_that_are_not_there(tmp_path: Path, phoff: int) -> None:
    broken = tmp_path / "broken"
    shutil.copy("/bin/true", broken)
    with broken.open("r+b") as file:
        file.seek(32)
        file.write(struct.pack("<Q", phoff))
    with pytest.raises(ProgramError, match="linked statically"):
        check_program(str(broken))
