"""The files of a submission that are read, not run: references.txt, README, the two headers.

Owns where they lie. A file that is a link counts as missing: git may keep a link to a place outside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kerneld.commands.grade.cell.build import install_header, installed_header, read_file
from kerneld.commands.grade.cell.launcher import plain_environment
from kerneld.commands.grade.cell.program import Program
from kerneld.commands.grade.cell.room import Room
from kerneld.commands.grade.model import Finding, failed, judged, passed

_MOST_BYTES = 1 << 20
_USER_HEADERS = ("linux/include/uapi/linux/shadowpt.h", "include/uapi/linux/shadowpt.h")
_KERNEL_HEADERS = ("linux/include/linux/shadowpt.h", "include/linux/shadowpt.h")
_INCLUDES_USER = re.compile(r'^[ \t]*#[ \t]*include[ \t]*[<"]uapi/linux/shadowpt\.h[>"]', re.MULTILINE)
_CHECK = Path(__file__).resolve().parent / "header_check.c"
_CHECK_SECONDS = 20.0
_COMPILERS = ("/usr/bin/cc", "/usr/bin/gcc", "/usr/bin/clang")


class Text(NamedTuple):
    """A file of the submission."""

    name: str
    """Its path below the top directory; where there is no file, the path that it should have."""
    text: str | None
    """None: there is no such file."""


@dataclass(frozen=True, slots=True)
class Texts:
    """The files that are read."""

    references: Text
    readme: Text
    user_header: Text
    kernel_header: Text
    part5: Text


def read_texts(top: Path) -> Texts:
    """Read the files below the top directory of a submission. Raises OSError when that cannot be read."""
    readmes = sorted(path.name for path in top.iterdir() if re.fullmatch(r"readme(\.\w+)?", path.name, re.IGNORECASE))
    return Texts(
        references=_read_text(top, "references.txt"),
        readme=_read_text(top, *(readmes or ["README"])),
        user_header=_read_text(top, *_USER_HEADERS),
        kernel_header=_read_text(top, *_KERNEL_HEADERS),
        part5=_read_text(top, "user/part5.txt"),
    )


def _read_text(top: Path, *names: str) -> Text:
    """Return the first of these files that is there."""
    for name in names:
        # No directory on the way may be a link to somewhere else.
        is_inside = os.path.realpath((top / name).parent).startswith(os.path.realpath(top))
        data = read_file(top / name, _MOST_BYTES) if is_inside else None
        if data is not None:
            return Text(name, data.decode("utf-8", "replace"))
    return Text(names[0], None)


def judge_texts(texts: Texts) -> Iterator[Finding]:
    """Yield the findings of the rows references, readme and header_kernel."""
    yield _judge_text("references", texts.references)
    yield _judge_text("readme", texts.readme)
    name, text = texts.kernel_header
    if text is None:
        yield failed("header_kernel", f"there is no {name}")
    else:
        why_not = "" if _INCLUDES_USER.search(text) else f"{name} does not include <uapi/linux/shadowpt.h>"
        yield judged("header_kernel", why_not, f"{name} includes the UAPI header")


def _judge_text(row: str, file: Text) -> Finding:
    name, text = file
    if text is None:
        return failed(row, f"there is no {name} in the top directory")
    words = len(text.split())
    return judged(row, "" if words else f"{name} is empty", f"{name}: {words} words")


def judge_header(room: Room, file: Text, ours: str) -> tuple[Finding, Path]:
    """Return the finding of the row header_user, and the directory with the header to build with.

    That is the submission's own header if it is right, else `ours`, so that the programs can be built.
    """
    name, text = file
    if text is None:
        return failed("header_user", f"there is no {name}"), install_header(room, ours)
    include = install_header(room, installed_header(text))
    compiler = next((path for path in _COMPILERS if Path(path).exists()), _COMPILERS[0])
    check = room.directory / _CHECK.name
    check.write_bytes(_CHECK.read_bytes())
    words = ["cc", "-fsyntax-only", f"-I{include}", str(check)]
    program = Program(room, words, plain_environment(room), room.directory, compiler, "cc")
    try:
        is_ended = program.wait(_CHECK_SECONDS)
    finally:
        program.end()
    if is_ended and program.status == 0:
        return passed("header_user", name), include
    errors = [line for line in program.text.splitlines() if "error" in line] or ["the compiler does not end"]
    why = f"{name}: {errors[0].partition('error:')[2].strip() or errors[0]}"
    return failed("header_user", why[:300]), install_header(room, ours)
