"""What tests of the target's tour need: a kerneld, the tour as a process, its shadow table, its prompts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from shared.client import Process, realmem
from shared.uapi.shadowpt import SHADOW_PTE, Spte, table_bytes
from target.pace import PROMPT
from target.stage import Window
from tests.support import daemons

WINDOW = Window()
ROOT = Path(__file__).resolve().parents[2]
MACHINE = ("--ram", "48M", "--swap", "16M")
"""Small, so that the OOM killer comes soon."""


@contextmanager
def running(words: Sequence[str], socket: Path, **more: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program of the project on `socket`, with `more` in its environment; it is gone afterwards."""
    # What a killed target leaves is in the tests' own directory.
    own = {"KERNELD_SOCKET": str(socket), "PYTHONPATH": str(ROOT), "TMPDIR": str(socket.parent)}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *words],
        env={**os.environ, **own, **more},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def running_kerneld(directory: Path) -> Iterator[Path]:
    """Run a kerneld that checks its invariants after every call, and yield its socket."""
    directory.mkdir(mode=0o700)
    path = directory / "kerneld.sock"
    kerneld = [sys.executable, "-P", "-m", "kerneld"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = directory / "log"
    with log.open("w") as output:
        start = subprocess.run(
            [*kerneld, "start", "--socket", str(path), "--detach", "--check-invariants", *MACHINE],
            env=environment,
            stdout=output,
            stderr=output,
            check=False,
        )
    assert start.returncode == 0, log.read_text()
    try:
        yield path
    finally:
        stop = daemons.kerneld(path, "stop")
    assert stop.returncode in (0, 3)


class Table:
    """The shadow table of the window of one process, in this process's own memory."""

    def __init__(self, socket: Path, pid: int) -> None:
        self._process = Process.attach(str(socket))
        self._length = table_bytes(WINDOW.start, WINDOW.end)
        self._entries = realmem.map_anonymous(self._length)
        self._process.shadowpt_open(pid, WINDOW.start, WINDOW.end, self._entries)
        self._process.shadowpt_start()

    def read(self) -> list[tuple[int, int]]:
        """Return pfn and flags of each page."""
        raw = self._process.snapshot()[: WINDOW.pages * SHADOW_PTE.size]
        return [(pfn, flags) for _vaddr, pfn, flags in SHADOW_PTE.iter_unpack(raw)]

    def counts(self) -> tuple[int, int, int]:
        """Return how many pages are allocated, anonymous, mapped."""
        counter = Counter(flag for _pfn, flags in self.read() for flag in Spte if flags & flag)
        return counter[Spte.VADDR_ALLOCATED], counter[Spte.VADDR_ANONYMOUS], counter[Spte.PTE_MAPPED]

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.shadowpt_close()
        self._process.close()
        realmem.unmap(self._entries, self._length)


def free_frames(socket: Path) -> int:
    """Return MemFree, with the unused page cache, in KiB, as seen by a process that is not there before and after."""
    code = (
        "from shared.client import Process\n"
        "text = Process.attach().read_proc('kerneld/status').decode()\n"
        "status = dict(line.split(':') for line in text.splitlines())\n"
        "print(sum(int(status[key].split()[0]) for key in ('MemFree', 'CachedUnused')))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KERNELD_SOCKET": str(socket), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)


def read_to_prompt(process: subprocess.Popen[str]) -> list[str]:
    """Return the lines up to the next prompt, or to the end."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        if line.strip() == PROMPT:
            break
        lines.append(line.rstrip("\n"))
    return lines


def read_past(process: subprocess.Popen[str], start: str) -> None:
    """Read lines until one begins with `start`."""
    assert process.stdout is not None
    assert any(line.startswith(start) for line in process.stdout), "the program has ended"


def press_enter(process: subprocess.Popen[str]) -> list[str]:
    """Press Enter and return the lines up to the next prompt: the step is done then."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return read_to_prompt(process)


def run_target(socket: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with running(["target", *arguments], socket) as process:
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)
