"""The stub of native programs, and how it is compiled. Knows no daemon."""

from __future__ import annotations

from pathlib import Path

from kerneld.commands.compiled import ensure_built

SOURCES = Path(__file__).resolve().parent / "stub"
_FLAGS = (
    "-std=gnu11", "-O2", "-ffreestanding", "-fno-stack-protector", "-mgeneral-regs-only", "-mno-red-zone",
    "-fno-asynchronous-unwind-tables", "-fcf-protection=none", "-fno-strict-aliasing", "-fpie", "-no-pie", "-static",
    "-nostdlib", "-Wl,-Ttext-segment=0x6a0000000000,-z,noexecstack,--build-id=none",
)  # fmt: skip
"""No libc, thread-local storage or vector registers: they are the program's. native.h has the stub's address too."""


def ensure_stub() -> Path:
    """Return the path of the stub. It is built when the cache does not have it. Raises BuildError."""
    sources = sorted(SOURCES.rglob("*.c"))
    return ensure_built("exec", _FLAGS, sources, sorted(SOURCES.rglob("*.h")), "the stub of kerneld exec")
