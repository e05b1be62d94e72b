"""The library that `kerneld run` preloads. The C compiler of the system builds it at the first use.

Owns the cache of libraries, $XDG_CACHE_HOME/kerneld or ~/.cache/kerneld. The name of a library has a hash of its
sources and flags: each version of kerneld builds its own library, and earlier ones stay valid. Knows no daemon.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import shared
from kerneld.commands.run.semesters import SEMESTERS

SOURCES = Path(shared.__file__).resolve().parent
"""The directory of the C sources and the headers, in a checkout and in an installation."""
_LIBRARY_FILES = ("preload.c", "kerneld.c", "kerneld.h")
_FLAGS = ("-std=gnu11", "-O2", "-shared", "-fPIC", "-fvisibility=hidden")
_COMPILERS = ("cc", "gcc", "clang")
_SEPARATORS = " :\t\n"
"""The characters that end a name in LD_PRELOAD, for ld.so."""


class PreloadError(Exception):
    """There is no library, and none can be built: one line for people."""


def header_path(abi: str) -> Path:
    """Return the path of the semester's linux/shadowpt.h."""
    return SOURCES / "include" / SEMESTERS[abi].include / "linux" / "shadowpt.h"


def library_sources() -> list[Path]:
    """Return the two files of libkerneld: the header and the source."""
    return [SOURCES / "c" / "kerneld.h", SOURCES / "c" / "kerneld.c"]


def ensure_library(abi: str) -> Path:
    """Return the path of the semester's library. It is built when the cache does not have it.

    Raises PreloadError for a machine that is not x86-64, without a compiler, or without a cache.
    """
    if platform.machine() != "x86_64":
        raise PreloadError(f"programs run only on x86-64: this machine is {platform.machine()}")
    directory = cache_directory()
    library = directory / f"preload-{abi}-{_hash(abi)}.so"
    try:
        is_built = library.exists()
    except OSError as error:
        raise PreloadError(_unusable(directory, error)) from None
    if not is_built:
        source = str(SOURCES / "c" / "preload.c")
        define = f"-DKERNELD_ABI={SEMESTERS[abi].define}"
        build([*_FLAGS, define, source], directory, library, "the library that takes the calls")
    return library


def _unusable(cache: Path, error: OSError) -> str:
    return f"cannot use the cache {cache}: {error.strerror} (XDG_CACHE_HOME names another)"


def cache_directory() -> Path:
    """Return the user's cache, made where there is none. Raises PreloadError."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # As the XDG base directory specification has it: a relative path there counts for nothing.
        directory = (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "kerneld"
    except RuntimeError:
        raise PreloadError("this user has no home directory for the cache: set XDG_CACHE_HOME") from None
    if any(character in str(directory) for character in _SEPARATORS):
        raise PreloadError(f"{directory} cannot hold a library to preload: set XDG_CACHE_HOME to a path without blanks")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise PreloadError(_unusable(directory, error)) from None
    return directory


def _hash(abi: str) -> str:
    digest = hashlib.sha256(f"{abi} {_FLAGS}".encode())
    for name in _LIBRARY_FILES:
        digest.update((SOURCES / "c" / name).read_bytes())
    return digest.hexdigest()[:16]


def build(arguments: list[str], directory: Path, target: Path, what: str) -> None:
    """Compile into a file of another name first: two that build at once each put a whole one there.

    `arguments` are the compiler's, but for -o; `what` is built, in words. Raises PreloadError.
    """
    names = [os.environ["CC"]] if os.environ.get("CC") else list(_COMPILERS)
    compiler = next((found for found in map(shutil.which, names) if found), None)
    if compiler is None:
        raise PreloadError(f"a C compiler is needed once, for {what}, and there is no {' or '.join(names)}")
    try:
        fd, temporary = tempfile.mkstemp(prefix=".preload-", dir=directory)
        os.close(fd)
    except OSError as error:
        raise PreloadError(f"cannot write to the cache {directory}: {error.strerror}") from None
    try:
        command = [compiler, "-o", temporary, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            why = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
            raise PreloadError(f"{compiler} cannot build {what}: {why}")
        os.chmod(temporary, 0o755)
        os.rename(temporary, target)
    except OSError as error:
        raise PreloadError(f"cannot build {what}: {error.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
