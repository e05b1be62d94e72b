"""Programs that are damaged, or whose interpreter is: execve says why, and the caller goes on. As outside."""

from __future__ import annotations

import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.native.inside import Inside

_INTERP = 3
_EXECUTED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            os.execv(name, [name])
        except OSError as error:
            print(name, os.strerror(error.errno), flush=True)
            os._exit(1)
    print(name, os.waitpid(child, 0)[1], flush=True)
"""


def _write_number(at: int, code: str, value: int) -> Callable[[bytearray], None]:
    return lambda program: struct.pack_into(code, program, at, value)


def _interpreter(path: bytes, length: int | None = None) -> Callable[[bytearray], None]:
    """Return what names another interpreter in a program, of a length that may be too short or too long."""

    def change(program: bytearray) -> None:
        (start,) = struct.unpack_from("<Q", program, 32)
        (count,) = struct.unpack_from("<H", program, 56)
        at = next(
            at for at in range(start, start + 56 * count, 56) if struct.unpack_from("<I", program, at)[0] == _INTERP
        )
        offset, size = struct.unpack_from("<Q", program, at + 8)[0], struct.unpack_from("<Q", program, at + 32)[0]
        assert len(path) < size
        program[offset : offset + size] = path.ljust(size, b"\0")
        struct.pack_into("<Q", program, at + 32, size if length is None else length)

    return change


def _cut(length: int) -> Callable[[bytearray], None]:
    def change(program: bytearray) -> None:
        del program[length:]

    return change


_DAMAGES: dict[str, Callable[[bytearray], None]] = {
    "whole": lambda _: None,
    "magic": _write_number(0, "B", 1),
    "class": _write_number(4, "B", 9),
    "type": _write_number(16, "<H", 1),
    "machine": _write_number(18, "<H", 3),
    "entry": _write_number(24, "<Q", 1 << 63),
    "headers": _write_number(32, "<Q", 1 << 63),
    "header": _write_number(54, "<H", 1),
    "none": _write_number(56, "<H", 0),
    "many": _write_number(56, "<H", 0xFFFF),
    "short": _cut(64),
    "shorter": _cut(500),
    "segments": _cut(4096),
    "nowhere": _interpreter(b"/nowhere"),
    "nothing": _interpreter(b""),
    "directory": _interpreter(b"/tmp"),
    "text": _interpreter(b"/etc/passwd"),
    "small": _interpreter(b"short"),
    "damaged": _interpreter(b"none"),
    "relative": _interpreter(b"./ld.so"),
    "endless": _interpreter(b"./ld.so", 7),
    "empty": _interpreter(b"./ld.so", 1),
    "long": _interpreter(b"./ld.so", 5000),
}


def test_what_execve_says_of_damaged_programs(inside: Inside, tmp_path: Path) -> None:
    """Source: Linux v6.8 fs/binfmt_elf.c: load_elf_binary(): errors up to its point of no return, SIGSEGV behind it."""
    true, loader = shutil.which("true"), Path("/lib64/ld-linux-x86-64.so.2")
    if true is None or not loader.exists() or _INTERP.to_bytes(4, "little") not in Path(true).read_bytes()[64:900]:
        pytest.skip("this host has no program with an interpreter")
    shutil.copy(loader, tmp_path / "ld.so")
    for name, damage in _DAMAGES.items():
        program = bytearray(Path(true).read_bytes())
        damage(program)
        (tmp_path / name).write_bytes(program)
        (tmp_path / name).chmod(0o755)
    argv = [sys.executable, "-I", "-c", _EXECUTED, *(f"./{name}" for name in _DAMAGES)]
    output = inside.agrees(argv, directory=tmp_path).output
    assert "./nowhere No such file or directory" in output
    assert "./relative 0" in output
    assert "./segments 11" in output
