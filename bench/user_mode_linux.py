"""User-Mode Linux as a yardstick: the same C program as its first process, on a root of the host's files.

Debian's package user-mode-linux has it, as /usr/bin/linux. It needs no privilege. Its console is this program's pipes,
and repeats each command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.machine import Answering

MEMORY = "256M"


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
        command = [linux, f"mem={MEMORY}", "rootfstype=hostfs", f"rootflags={root}", "rw", "init=/init"]
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
        """End it with all of its processes."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._directory.cleanup()
