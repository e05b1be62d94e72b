"""Made-up submissions: a right one, and others that differ from it in one thing each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from kerneld.commands.run.preload import header_path

SOURCES = Path(__file__).resolve().parent / "submissions"
_MAKEFILE = """CFLAGS = -O1 -Wall
all: inspector target
inspector: inspector.c
\t$(CC) $(CFLAGS) {inspector} -o $@ inspector.c {static}
target: target.c
\t$(CC) $(CFLAGS) {target} -o $@ target.c {static}
"""
_KERNEL_HEADER = """#ifndef _LINUX_SHADOWPT_H
#define _LINUX_SHADOWPT_H
#include <uapi/linux/shadowpt.h>
#endif
"""


def write_submission(
    directory: Path,
    *,
    inspector: Mapping[str, str] | None = None,
    target: Mapping[str, str] | None = None,
    is_static: bool = False,
    order: Sequence[str] = (),
) -> Path:
    """Write a submission and return its directory. `inspector` and `target` are macros of the two programs.

    `mistakes` makes the macro for several mistakes in one program.
    """
    part4 = directory / "user" / "part4"
    part4.mkdir(parents=True)
    for name in ("inspector.c", "target.c"):
        shutil.copy(SOURCES / name, part4 / name)
    makefile = _MAKEFILE.format(
        inspector=_macros(inspector), target=_macros(target), static="-static" if is_static else ""
    )
    (part4 / "Makefile").write_text(makefile)
    (directory / "user" / "part5.txt").write_text(
        "1. https://elixir.bootlin.com/linux/v6.8/source/kernel/sched/core.c#L1234\n\n" + "\n".join(order) + "\n"
    )
    (directory / "README").write_text("Team of nobody.\n")
    (directory / "references.txt").write_text("Problem 1: none\n")
    uapi, kernel = directory / "linux/include/uapi/linux", directory / "linux/include/linux"
    uapi.mkdir(parents=True)
    kernel.mkdir(parents=True)
    shutil.copy(header_path("f24"), uapi / "shadowpt.h")
    (kernel / "shadowpt.h").write_text(_KERNEL_HEADER)
    return directory


def mistakes(*names: str) -> dict[str, str]:
    """Return the macro of a program that makes these mistakes."""
    return {"MISTAKES": "'" + ("|".join(f"1<<{name}" for name in names) or "0") + "'"}


def _macros(macros: Mapping[str, str] | None) -> str:
    return " ".join(f"-D{name}={value}" for name, value in (macros or {}).items())


def write_hostile(
    directory: Path, attack: str, *, at_build: bool = False, outside: Path = Path("/"), other: Path = Path("/"),
    port: int = 1,
) -> Path:  # fmt: skip
    """Write a submission whose programs attack; with `at_build` its Makefile runs the attack too.

    `outside` is a directory that everybody may write to, `other` another submission, `port` a port of this host.
    """
    write_submission(directory)
    part4 = directory / "user" / "part4"
    shutil.copy(SOURCES / "hostile.c", part4 / "hostile.c")
    macros = _macros({"ATTACK": attack, "PORT": str(port)})
    paths = f"-DOUTSIDE='\"{outside}\"' -DOTHER='\"{other}\"'"
    run = "\t./target > /dev/null\n" if at_build else ""
    (part4 / "Makefile").write_text(f"all:\n\tcc -w {macros} {paths} -o target hostile.c\n\tcp target inspector\n{run}")
    return directory
