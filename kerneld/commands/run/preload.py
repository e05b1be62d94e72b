"""The library that `kerneld run` preloads, and the headers that programs are compiled with. Knows no daemon."""

from __future__ import annotations

from pathlib import Path

import shared
from kerneld.commands.compiled import ensure_built
from kerneld.commands.semesters import SEMESTERS

SOURCES = Path(shared.__file__).resolve().parent
"""The directory of the C sources and the headers, in a checkout and in an installation."""
_FLAGS = ("-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden")


def header_path(abi: str) -> Path:
    """Return the path of the semester's linux/shadowpt.h."""
    return SOURCES / "include" / SEMESTERS[abi].include / "linux" / "shadowpt.h"


def library_sources() -> list[Path]:
    """Return the two files of libkerneld: the header and the source."""
    return [SOURCES / "c" / "kerneld.h", SOURCES / "c" / "kerneld.c"]


def ensure_library(abi: str) -> Path:
    """Return the path of the semester's library. It is built when the cache does not have it. Raises BuildError."""
    flags = (*_FLAGS, f"-DKERNELD_ABI={SEMESTERS[abi].define}")
    # preload.c includes kerneld.c.
    sources = [SOURCES / "c" / "preload.c"]
    return ensure_built(f"preload-{abi}", flags, sources, library_sources(), "the library that takes the calls", ".so")
