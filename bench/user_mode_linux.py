"""User-Mode Linux as a yardstick: the same C program as its first process, on a root of the host's files.

Debian's package user-mode-linux has it, as /usr/bin/linux. It needs no privilege. Its console is this program's pipes,
and repeats each command.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import struct
import subprocess
import tempfile
from pathlib import Path

from bench.machine import Answering

MEMORY = "256M"
SWAP_BYTES = 64 << 20
IMAGE = "/bin/true"
_INTERPRETER = re.compile(rb"/[\x21-\x7e]*/ld[\x21-\x7e]*\.so[.\d]*(?=\0)")


def make_swap(path: Path) -> None:
    """Make a swap file, as mkswap does. Source: Linux v6.8 include/linux/swap.h:union swap_header."""
    with path.open("wb") as file:
        file.truncate(SWAP_BYTES)
        file.seek(1024)
        file.write(struct.pack("<III", 1, (SWAP_BYTES >> 12) - 1, 0))
        file.seek(4096 - 10)
        file.write(b"SWAPSPACE2")


def copy_image(root: Path) -> None:
    """Copy the program that is loaded by execve, and its interpreter, to where they are on the host."""
    interpreter = _INTERPRETER.search(Path(IMAGE).read_bytes())
    for path in [IMAGE, *([interpreter[0].decode()] if interpreter is not None else [])]:
        copy = root / path.lstrip("/")
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)


class UserModeLinux(Answering):
    """A User-Mode Linux that runs one static program, which answers commands. Raises OSError where it cannot start."""

    def __init__(self, program: str) -> None:
        linux = shutil.which("linux")
        if linux is None:
            raise OSError("User-Mode Linux is not installed (Debian: user-mode-linux)")
        self._directory = tempfile.TemporaryDirectory(prefix="kerneld-bench-")
        root = Path(self._directory.name)
        (root / "tmp").mkdir()
        (root / "dev").mkdir()
        shutil.copy(program, root / "init")
        copy_image(root)
        swap = root / "swap"
        make_swap(swap)
        command = [linux, f"mem={MEMORY}", "rootfstype=hostfs", f"rootflags={root}", "rw", "init=/init", f"ubd0={swap}"]
        super().__init__(
            [*command, "con0=fd:0,fd:1", "con=null", "quiet"],
            env={**os.environ, "HOME": str(root)},
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip() == "ready":
                return
        self.close()
        raise OSError("User-Mode Linux ended before its program was ready")

    def close(self) -> None:
        """End it with all of its processes: those of its programs and its helpers are in a session of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._directory.cleanup()
