"""Copies user/ of a submission into its room, with the header that headers_install would install, and builds it.

Owns what is copied: source files, no compiled ones, no devices, no files outside the submission. Reads the submission
with the grader's rights, so it follows no link.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kerneld.commands.grade.cell.launcher import plain_environment
from kerneld.commands.grade.cell.program import Program, ending_words
from kerneld.commands.grade.cell.room import Room

PROGRAMS = ("inspector", "target")
_MOST_FILES, _MOST_BYTES, _MOST_DEPTH = 5000, 64 << 20, 16
_COMPILED = (b"\x7fELF", b"!<arch>")
_MAKE = "/usr/bin/make"
_KEPT_BYTES = 4000


class CopyError(Exception):
    """The submission cannot be copied: one line for people."""


@dataclass(frozen=True, slots=True)
class Copied:
    """One file, directory or link of the submission, read into memory."""

    path: str
    mode: int
    data: bytes
    """Of a link: where it leads to."""


def read_tree(top: Path) -> list[Copied]:
    """Return everything below a directory but compiled files. No link is followed. Raises CopyError, OSError."""
    found: list[Copied] = []
    total = 0
    for entry in _walk(top, "", 0):
        found.append(entry)
        total += len(entry.data)
        if len(found) > _MOST_FILES or total > _MOST_BYTES:
            raise CopyError(f"user/ has more than {_MOST_FILES} files or {_MOST_BYTES >> 20} MiB")
    return found


def _walk(top: Path, below: str, depth: int) -> Iterator[Copied]:
    if depth > _MOST_DEPTH:
        raise CopyError(f"user/ has directories more than {_MOST_DEPTH} deep")
    with os.scandir(top / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = os.path.join(below, entry.name)
            mode = entry.stat(follow_symlinks=False).st_mode
            if entry.name == ".git":
                continue
            if stat.S_ISDIR(mode):
                yield Copied(path, mode, b"")
                yield from _walk(top, path, depth + 1)
            elif stat.S_ISLNK(mode):
                yield Copied(path, mode, os.fsencode(os.readlink(entry.path)))
            elif stat.S_ISREG(mode):
                data = read_file(Path(entry.path), _MOST_BYTES)
                if data is not None and not data.startswith(_COMPILED):
                    yield Copied(path, mode, data)


def read_file(path: Path, most_bytes: int) -> bytes | None:
    """Return the bytes of a regular file, at most so many; None if it is none. Follows no link. Raises OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        return file.read(most_bytes) if stat.S_ISREG(os.fstat(fd).st_mode) else None


def write_tree(room: Room, top: Path, tree: list[Copied]) -> None:
    """Write what `read_tree` has read below a directory of the room, as the programs' own."""
    top.mkdir(parents=True, exist_ok=True)
    room.give(top)
    for entry in tree:
        path = top / entry.path
        if stat.S_ISDIR(entry.mode):
            path.mkdir()
        elif stat.S_ISLNK(entry.mode):
            os.symlink(entry.data, os.fsencode(path))
        else:
            path.write_bytes(entry.data)
            path.chmod(stat.S_IMODE(entry.mode) & 0o777 | 0o600)
        room.give(path)


_KERNEL_WORDS = re.compile(r"\b__(?:user|force|iomem)\b[ \t]?")
_KERNEL_INCLUDE = re.compile(r"^[ \t]*#[ \t]*include[ \t]*<linux/compiler(?:_types)?\.h>[^\n]*\n", re.MULTILINE)


def installed_header(text: str) -> str:
    """Return a UAPI header as a user program gets it. Source: Linux v6.8 scripts/headers_install.sh."""
    return _KERNEL_WORDS.sub("", _KERNEL_INCLUDE.sub("", text))


def install_header(room: Room, text: str) -> Path:
    """Write <linux/shadowpt.h> into the room, and return the directory for the compiler."""
    directory = room.directory / "include"
    (directory / "linux").mkdir(parents=True, exist_ok=True)
    (directory / "linux" / "shadowpt.h").write_text(text)
    return directory


@dataclass(frozen=True, slots=True)
class Built:
    """The end of a build."""

    why_not: str
    """Empty: there are both programs."""
    output: str


def build(room: Room, part4: Path, include: Path) -> Built:
    """Run make in user/part4 of the copy. Raises TooMuch."""
    if not part4.is_dir():
        return Built("there is no directory user/part4", "")
    if not any((part4 / name).is_file() for name in ("GNUmakefile", "makefile", "Makefile")):
        return Built("there is no Makefile in user/part4", "")
    # C_INCLUDE_PATH comes after -I and before /usr/include: as if the header was installed there.
    environment = {**plain_environment(room), "C_INCLUDE_PATH": str(include)}
    make = Program(room, ["make"], environment, part4, _MAKE, "make")
    try:
        is_ended = make.wait(room.limits.build_seconds)
    finally:
        make.end()
        room.kill_all()
    output = make.text[-_KEPT_BYTES:]
    if not is_ended:
        return Built(f"make did not end within {room.limits.build_seconds} s", output)
    if make.status != 0:
        return Built(f"make {ending_words(make.status)}: {_last_words(make.text)}", output)
    missing = [name for name in PROGRAMS if not _is_program(part4 / name)]
    if missing:
        return Built(f"make ended with 0, and there is no program {' and no program '.join(missing)}", output)
    return Built("", output)


def _is_program(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and os.access(path, os.X_OK)


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wanted = [line for line in lines if "error" in line.lower()] or lines
    return wanted[0][:200] if wanted else "it printed nothing"
