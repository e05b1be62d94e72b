"""The stub of native programs: built by the system's compiler at its first use, kept in the user's cache.

Owns how it is built; the cache and the compiler are `kerneld.commands.run.preload`'s. Knows no daemon.
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from kerneld.commands.run.preload import PreloadError, build, cache_directory

SOURCES = Path(__file__).resolve().parent / "stub"
_FLAGS = (
    "-std=gnu11", "-O2", "-ffreestanding", "-fno-stack-protector", "-mgeneral-regs-only", "-mno-red-zone",
    "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-fno-strict-aliasing", "-fpie", "-no-pie", "-static",
    "-nostdlib", "-Wl,-Ttext-segment=0x6a0000000000,-z,noexecstack,--build-id=none",
)  # fmt: skip
"""No libc, no thread-local storage, no vector registers: these are the program's. Its place is in native.h too."""


def ensure_stub() -> Path:
    """Return the path of the stub, which is built where the cache has none.

    Raises PreloadError: another machine than x86-64, no compiler, or no cache that can be used.
    """
    if platform.machine() != "x86_64":
        raise PreloadError(f"programs run on x86-64 alone: this is {platform.machine()}")
    directory = cache_directory()
    digest = hashlib.sha256(" ".join(_FLAGS).encode())
    files = sorted(path for path in SOURCES.iterdir() if path.suffix in (".c", ".h"))
    for file in files:
        digest.update(file.read_bytes())
    stub = directory / f"exec-{digest.hexdigest()[:16]}"
    if not stub.exists():
        sources = [str(file) for file in files if file.suffix == ".c"]
        build([*_FLAGS, *sources], directory, stub, "the stub of kerneld exec")
    return stub
