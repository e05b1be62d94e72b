"""Memory programs: a list of calls whose addresses depend on the results of earlier calls.

Owns the form of a program, as values and as JSON. Knows neither kernel. A program has the same meaning on both sides:
an address is a slot (the place of an earlier mapping) and a distance in bytes; a file is a number in the program's
fixed set of files; a process is a number, in the order of the forks.

Invariant: a program is still valid without any of its operations (shrinking leaves some out). A slot that is not set
has a fixed place, and an operation of a process that does not exist is skipped.
"""

from __future__ import annotations

import json
import os
from enum import IntEnum
from typing import NamedTuple, TypeAlias

NR_SLOTS = 6
MAX_PROCESSES = 4
SLOT_DISTANCE = 1 << 24
ARENA_START = 0x7FFF_C000_0000
"""The place of the first slot that is not set. The others follow at a distance of SLOT_DISTANCE."""
U32, U64 = (1 << 32) - 1, (1 << 64) - 1


class Base(IntEnum):
    """The base of an address that is not a slot. Slots are 0 and more."""

    ZERO = -1
    BRK = -2
    """The heap's start."""


class At(NamedTuple):
    """An address: `offset` bytes from a slot or from a Base."""

    base: int
    offset: int = 0


Arg: TypeAlias = "int | At"


class Op(NamedTuple):
    """One operation of process `who`."""

    who: int
    name: str
    args: tuple[Arg, ...] = ()
    slot: int = -1
    """The slot for the returned address; -1 for none."""
    file: int = -1
    """The number of a file in FILES, for mmap, ftruncate and add_seals."""
    data: bytes = b""
    """The bytes of a store, which are repeated."""
    times: int = 1
    """How often the operation runs. The comparison takes all of them for one operation."""
    stride: int = 0
    """The distance in bytes from each of them to the next: of every address among the arguments."""

    def nth(self, number: int) -> Op:
        """Return one of the operations that this one stands for, from 0."""
        distance = number * self.stride
        args = tuple(At(arg.base, arg.offset + distance) if isinstance(arg, At) else arg for arg in self.args)
        return self._replace(args=args, times=1, stride=0)


Program: TypeAlias = "tuple[Op, ...]"


class FileKind(NamedTuple):
    """One of the files that every program has."""

    name: str
    inode: str
    """Files with the same inode are opens of the same file."""
    flags: int
    """O_ flags."""


FILES = (
    FileKind("memory file", "memfd", os.O_RDWR),
    FileKind("regular file", "regular", os.O_RDWR),
    FileKind("regular file, open for reading", "regular", os.O_RDONLY),
    FileKind("regular file, open for writing", "regular", os.O_WRONLY),
    FileKind("directory", "directory", os.O_RDONLY),
    FileKind("memory file, open for reading", "memfd", os.O_RDONLY),
    FileKind("regular file, open for appending", "regular", os.O_RDWR | os.O_APPEND),
    FileKind("regular file, open as a path", "regular", os.O_PATH),
    FileKind("memory file that may be sealed", "sealable", os.O_RDWR),
    FileKind("memory file that may be sealed, open for reading", "sealable", os.O_RDONLY),
    FileKind("file of a tmpfs", "tmpfs", os.O_RDWR),
    FileKind("file of a tmpfs, open for reading", "tmpfs", os.O_RDONLY),
    FileKind("memory file of huge pages", "huge", os.O_RDWR),
    FileKind("file of sysfs", "sysfs", os.O_RDONLY),
    FileKind("file of procfs", "procfs", os.O_RDONLY),
)
"""A saved program refers to these files by their index: add new files at the end."""
FILE_BYTES = 6 * 4096 + 100
"""The size of each file on a disk or in memory at the start of a program. The file of huge pages is empty."""
HARMLESS = bytes((0xF5, 0xF8, 0xF9, 0xFC))
"""Instructions of one byte that change only flags (cmc, clc, stc, cld). Programs store only these bytes, because
programs also execute memory. As the second byte of an `add` with the first byte zero, each of them uses only
registers."""


def file_content() -> bytes:
    """Return the contents of each file at the start of a program. No two pages are equal."""
    return bytes(HARMLESS[(i >> 12 >> (i % 3) ^ i >> 2 ^ i) & 3] for i in range(FILE_BYTES))


def default_slots() -> list[int]:
    """Return the places of the slots before anything is mapped."""
    return [ARENA_START + number * SLOT_DISTANCE for number in range(NR_SLOTS)]


def to_json(program: Program) -> str:
    """Return a program as text, one operation on each line."""
    rows = []
    for op in program:
        args = [list(arg) if isinstance(arg, At) else arg for arg in op.args]
        repeated = [op.times, op.stride] if op.times > 1 else []
        rows.append(json.dumps([op.who, op.name, args, op.slot, op.file, op.data.hex(), *repeated]))
    return "[\n" + ",\n".join(rows) + "\n]\n"


def from_json(text: str) -> Program:
    """Return the program in a text. Raises ValueError if the text is no program."""
    try:
        return tuple(
            Op(
                int(who),
                str(name),
                tuple(At(*map(int, arg)) if isinstance(arg, list) else int(arg) for arg in args),
                int(slot),
                int(file),
                bytes.fromhex(data),
                *map(int, repeated),
            )
            for who, name, args, slot, file, data, *repeated in json.loads(text)
        )
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a program: {error}") from None
