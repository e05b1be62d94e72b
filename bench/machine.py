"""What a benchmark runs on: a kerneld of its own, the host's side in C, and the processors that both may use."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from shared.client import KerneldUnavailable, Process

ROOT = Path(__file__).resolve().parent.parent
CPUS = sorted(os.sched_getaffinity(0))
ONE_CPU = CPUS[:1]
START_SECONDS = 60.0
"""A start takes a fifth of a second; under valgrind on a busy machine half a minute."""
KERNELD = (sys.executable, "-P", "-m", "kerneld")


class Daemon:
    """A kerneld in the foreground, on a socket that nobody else uses."""

    def __init__(
        self, ram: str = "1G", *options: str, command: Sequence[str] = KERNELD, stdout: IO[bytes] | None = None
    ) -> None:
        """`command` is what `start` and the options follow."""
        self._directory = tempfile.TemporaryDirectory(prefix="kerneld-bench-")
        self.socket_path = os.path.join(self._directory.name, "kerneld.sock")
        self._process = subprocess.Popen(
            [*command, "start", "--socket", self.socket_path, "--ram", ram, "--log-level", "warning", *options],
            env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=stdout,
        )  # fmt: skip
        self.pid = self._process.pid
        try:
            self.attach().close()
        except BaseException:
            self.close()
            raise

    def attach(self) -> Process:
        """Return this process attached to the daemon, waiting for it to come up."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return Process.attach(self.socket_path)
            except KerneldUnavailable:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.001)

    def memory_bytes(self) -> int:
        """Return what the daemon has of the host's memory besides the simulated RAM: its private pages."""
        fields = {"Rss": 0, "Shared_Clean": 0, "Private_Clean": 0, "Private_Dirty": 0}
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            key, _, value = line.partition(":")
            if key in fields:
                fields[key] = int(value.split()[0]) * 1024
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        rss_shmem = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssShmem"))
        return fields["Rss"] - rss_shmem * 1024

    def rss_bytes(self) -> int:
        """Return the daemon's resident set, the touched part of the simulated RAM included."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) * 1024

    def close(self) -> None:
        """Stop the daemon."""
        self._process.terminate()
        self._process.wait()
        self._directory.cleanup()


class Answering:
    """A program of the benchmark's that reads commands, one a line, and answers each with its nanoseconds."""

    def __init__(self, command: list[str], **popen: Any) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **popen)
        self.pid = self._process.pid

    def measure(self, command: str, *numbers: int) -> float:
        """Return the nanoseconds that one command took. Lines that are no number are passed over.

        Raises OSError if the program has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(" ".join([command, *map(str, numbers)]) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.strip().isdigit():
                return float(line)
        raise OSError(f"the program that was asked for '{command}' has ended")

    def close(self) -> None:
        """End the program: there are no more commands."""
        self._process.communicate()


def compiled(name: str, directory: str, *options: str) -> str:
    """Compile a C program that lies beside this file, and return its path in `directory`."""
    program = os.path.join(directory, name)
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-Wall", *options, "-o", program, str(source)], check=True)
    return program


class Host(Answering):
    """The C program of host.c, compiled on the spot."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="kerneld-bench-")
        super().__init__([compiled("host", self._directory.name)])

    def close(self) -> None:
        """End the program."""
        super().close()
        self._directory.cleanup()


@contextlib.contextmanager
def placed(cpus: list[int], *pids: int) -> Iterator[None]:
    """Have this process and `pids` run on these processors alone, and on all of them again afterwards."""
    everyone = (0, *pids)
    for pid in everyone:
        os.sched_setaffinity(pid, cpus)
    try:
        yield
    finally:
        for pid in everyone:
            os.sched_setaffinity(pid, CPUS)
