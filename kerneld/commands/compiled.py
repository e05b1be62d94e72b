"""Programs and libraries in C that commands need. The C compiler of the system builds each at its first use.

Owns the cache, $XDG_CACHE_HOME/kerneld or ~/.cache/kerneld. The name of a file there has a hash of its sources and
flags: each version of kerneld builds its own file, and earlier ones stay valid. Knows no daemon.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

_COMPILERS = ("cc", "gcc", "clang")
_SEPARATORS = " :\t\n"
"""The characters that end a name in LD_PRELOAD, for ld.so."""


class BuildError(Exception):
    """The file is not there, and cannot be built: one line for people."""


def ensure_built(
    stem: str, flags: Sequence[str], sources: Sequence[Path], included: Sequence[Path], what: str, suffix: str = ""
) -> Path:
    """Return the path of a file in the cache. It is built from `sources` when the cache does not have it.

    `included` are the files that the sources include; `what` names the file for people. Raises BuildError for a machine
    that is not x86-64, without a compiler, or without a cache.
    """
    if os.uname().machine != "x86_64":
        raise BuildError(f"programs run only on x86-64: this machine is {os.uname().machine}")
    directory = _cache_directory()
    digest = hashlib.sha256(" ".join(flags).encode())
    for file in (*sources, *included):
        digest.update(file.read_bytes())
    built = directory / f"{stem}-{digest.hexdigest()[:16]}{suffix}"
    try:
        is_built = built.exists()
    except OSError as error:
        raise BuildError(_unusable(directory, error)) from None
    if not is_built:
        _build([*flags, *map(str, sources)], directory, built, what)
    return built


def _unusable(cache: Path, error: OSError) -> str:
    return f"cannot use the cache {cache}: {error.strerror} (XDG_CACHE_HOME names another)"


def _cache_directory() -> Path:
    """Return the user's cache; make it when there is none. Raises BuildError."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG base directory specification ignores a relative path.
        directory = (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "kerneld"
    except RuntimeError:
        raise BuildError("this user has no home directory for the cache: set XDG_CACHE_HOME") from None
    if any(character in str(directory) for character in _SEPARATORS):
        raise BuildError(f"{directory} cannot hold a library to preload: set XDG_CACHE_HOME to a path without blanks")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BuildError(_unusable(directory, error)) from None
    return directory


def _build(arguments: Sequence[str], directory: Path, target: Path, what: str) -> None:
    """Compile into a file of another name, and rename it: of two commands that build at once, each has a whole file."""
    # Imported here, so that only the first use pays.
    import shutil  # noqa: PLC0415
    import subprocess  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    names = [os.environ["CC"]] if os.environ.get("CC") else list(_COMPILERS)
    compiler = next((found for found in map(shutil.which, names) if found), None)
    if compiler is None:
        raise BuildError(f"a C compiler is needed once, for {what}, and there is no {' or '.join(names)}")
    try:
        fd, temporary = tempfile.mkstemp(prefix=".build-", dir=directory)
        os.close(fd)
    except OSError as error:
        raise BuildError(f"cannot write to the cache {directory}: {error.strerror}") from None
    try:
        command = [compiler, "-o", temporary, *arguments]
        # Without a PATH a program is still found, but a compiler does not find its linker.
        environment = {"PATH": os.defpath, **os.environ}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
        if done.returncode:
            why = next((line for line in done.stderr.splitlines() if "error" in line), f"status {done.returncode}")
            raise BuildError(f"{compiler} cannot build {what}: {why}")
        os.chmod(temporary, 0o755)
        os.rename(temporary, target)
    except OSError as error:
        raise BuildError(f"cannot build {what}: {error.strerror}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
