"""pytest-kerneld: fixtures for tests that instructors and students write. pytest finds it by its entry point.

Owns a private machine for each test that asks for one, and what a failed test prints besides: the shadow page table and
the last events of the machine. Imports no kernel: the machine is a daemon in another process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from shared.client import Process, realmem
from shared.client.trace import TraceSession
from shared.trace.record import Comm, Record
from shared.trace.text import Names, text_line
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import SHADOW_PTE, Spte, table_bytes

_KERNELD = (sys.executable, "-P", "-m", "kerneld")
_READY = b"kerneld ready"
_SECONDS = 60.0
_RING_BYTES = 16 << 20
_LAST_EVENTS = 30


class Entry(NamedTuple):
    """One entry of the shadow page table."""

    vaddr: int
    pfn: int
    state: Spte

    def __str__(self) -> str:
        words = [flag.name.split("_", 1)[1] for flag in Spte if flag in self.state and flag.name is not None]
        pfn = f"{self.pfn:#x}" if self.state & Spte.PTE_MAPPED else "-"
        return f"{self.vaddr:#014x}  pfn {pfn:<10}  {' '.join(words) or '-'}"


class Machine:
    """A private kerneld."""

    def __init__(self, socket: str) -> None:
        self.socket = socket
        """The path of its socket, as $KERNELD_SOCKET."""
        self.process = Process.attach(socket)
        """This process as a process of the machine."""
        self._trace = TraceSession(self.process, ring_bytes=_RING_BYTES)
        self.table: ShadowTable | None = None
        """The table that the test has opened last."""

    def run(self, *words: str, abi: str = "f24", **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program of the assignment by `kerneld run`, to its end. `options` are those of subprocess.run."""
        return self._to_end(["run", "--abi", abi], words, options)

    def exec(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a program inside the machine by `kerneld exec`, to its end. `options` are those of subprocess.run."""
        return self._to_end(["exec"], words, options)

    def _to_end(
        self, command: list[str], words: tuple[str, ...], options: dict[str, Any]
    ) -> subprocess.CompletedProcess[str]:
        usual = {"capture_output": True, "text": True, "timeout": _SECONDS, "check": False}
        line = [*_KERNELD, *command, "--socket", self.socket, "--", *words]
        done: subprocess.CompletedProcess[str] = subprocess.run(line, **{**usual, **options})  # noqa: PLW1510
        return done

    def last_events(self, count: int = _LAST_EVENTS) -> list[str]:
        """Return the last events of the machine, as `kerneld trace` prints them. Each is returned once."""
        names, lines = Names(), deque[str](maxlen=count)
        for entry in self._trace.reader.read():
            if isinstance(entry, Comm):
                names.note(entry)
            elif isinstance(entry, Record):
                lines.append(text_line(entry, names))
        return list(lines)

    def close(self) -> None:
        """End the connection of this process."""
        self._trace.close()
        self.process.close()


class ShadowTable:
    """An open and started shadow page table, in this process's own memory."""

    def __init__(self, opener: Process, target: int, start: int, pages: int) -> None:
        self._opener = opener
        self._start, end = start, start + pages * PAGE_SIZE
        self._length = table_bytes(start, end)
        self._entries = realmem.map_anonymous(self._length)
        opener.shadowpt_open(target, start, end, self._entries)
        opener.shadowpt_start()
        self._pages = pages

    def entries(self) -> list[Entry]:
        """Return all entries, as they are at one moment."""
        raw = self._opener.snapshot()[: self._pages * SHADOW_PTE.size]
        return [Entry(vaddr, pfn, Spte(state)) for vaddr, pfn, state in SHADOW_PTE.iter_unpack(raw)]

    def __getitem__(self, vaddr: int) -> Entry:
        """Return the entry of the page of an address. Raises IndexError outside the table."""
        if not self._start <= vaddr < self._start + self._pages * PAGE_SIZE:
            raise IndexError(f"{vaddr:#x} is not in the table")
        return self.entries()[(vaddr - self._start) // PAGE_SIZE]

    def __str__(self) -> str:
        return "\n".join(map(str, self.entries()))

    def close(self) -> None:
        """Close the table."""
        self._opener.shadowpt_close()
        realmem.unmap(self._entries, self._length)


@pytest.fixture
def kerneld_options() -> list[str]:
    """The options of `kerneld start` for the private machine. Override this fixture: ["--bug", "no-fork-cow"]."""
    return []


@pytest.fixture
def kerneld(tmp_path: Path, kerneld_options: list[str]) -> Iterator[Machine]:
    """A private machine."""
    directory = tmp_path / "kerneld"
    directory.mkdir(mode=0o700)
    socket = str(directory / "kerneld.sock")
    words = [*_KERNELD, "start", "--socket", socket, "--log-format", "json", *kerneld_options]
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
    try:
        _wait_until_ready(daemon, directory / "log")
        machine = Machine(socket)
        yield machine
        machine.close()
    finally:
        daemon.terminate()
        daemon.communicate(timeout=_SECONDS)


def _wait_until_ready(daemon: subprocess.Popen[bytes], log: Path) -> None:
    while _READY not in log.read_bytes():
        try:
            daemon.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        pytest.fail(f"kerneld does not start: {log.read_text(errors='replace')}")


@pytest.fixture
def kerneld_process(kerneld: Machine) -> Process:
    """This process as a process of the private machine: its simulated memory is empty."""
    return kerneld.process


@pytest.fixture
def shadow_table(kerneld: Machine) -> Iterator[Callable[..., ShadowTable]]:
    """A function that opens and starts a table: shadow_table(start, pages), shadow_table(start, pages, target=PID)."""
    opened: list[ShadowTable] = []

    def open_table(start: int, pages: int, target: int | None = None) -> ShadowTable:
        opened.append(ShadowTable(kerneld.process, os.getpid() if target is None else target, start, pages))
        kerneld.table = opened[-1]
        return opened[-1]

    yield open_table
    for table in opened:
        table.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Print the table and the last events of the machine with a failed test."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("kerneld")
    if call.when == "call" and report.failed and isinstance(machine, Machine):
        if machine.table is not None:
            report.sections.append(("shadow page table", str(machine.table)))
        report.sections.append(("last events of kerneld", "\n".join(machine.last_events())))
    return report
