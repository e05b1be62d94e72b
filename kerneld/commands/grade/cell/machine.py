"""The private kernel of one run, and what it says happened. Owns the daemon, its events, and the contents of the table.

The table that an inspector has open is known from the events: each change of an entry is one (`shadowpt:spte_update`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from kerneld.commands.grade.cell.room import Room
from shared.client import Process
from shared.client.errors import KerneldError
from shared.client.trace import TraceSession
from shared.trace.events import LAST_CONSTANT_PFN, SHADOWPT_CLOSE, SHADOWPT_OPEN, SPTE_UPDATE
from shared.trace.record import Lost, Record
from shared.uapi.page import PAGE_SIZE

_RAM = "256M"
_RING_BYTES = 8 << 20
_START_SECONDS = 60.0
_END_SECONDS = 5.0
_READY = b"kerneld ready"
_EVENTS = ("shadowpt:*", "vma:*", "pte:*", "fault:*", "sched:*")


class MachineError(Exception):
    """The private kernel does not run, or has ended: one line for people."""


class Table(dict[int, tuple[int, int]]):
    """The open table: address to frame number and flags, of every entry that is not empty."""

    def apply(self, record: Record) -> None:
        """Take a change over."""
        fields = record.fields
        pfn, flags = fields["new_pfn"], fields["new_flags"]
        for index in range(fields["nr_pages"]):
            vaddr = fields["vaddr"] + index * PAGE_SIZE
            if flags or pfn:
                self[vaddr] = (pfn + index if pfn > LAST_CONSTANT_PFN else pfn, flags)
            else:
                self.pop(vaddr, None)


class Machine:
    """A private kernel that runs, with this process attached to it as a client with all rights."""

    def __init__(self, room: Room, daemon: int, socket: Path) -> None:
        self.room = room
        self.daemon = daemon
        self.socket = str(socket)
        self.process = Process.attach(self.socket)
        self._trace = TraceSession(self.process, _EVENTS, ring_bytes=_RING_BYTES)
        self.records: list[Record] = []
        """Every event so far."""
        self.lost = 0
        self.table = Table()

    def read(self) -> list[Record]:
        """Read the new events, keep them, and return them. Raises MachineError when the kernel has ended."""
        new: list[Record] = []
        for entry in self._trace.reader.read():
            if isinstance(entry, Lost):
                self.lost += entry.records
            elif isinstance(entry, Record):
                new.append(entry)
                if entry.event is SPTE_UPDATE:
                    self.table.apply(entry)
                elif entry.event in (SHADOWPT_OPEN, SHADOWPT_CLOSE):
                    self.table.clear()
        self.records += new
        if self._trace.reader.is_ended:
            raise MachineError("the private kernel has ended: the programs have killed it")
        return new

    def close(self) -> None:
        """Leave the kernel."""
        with contextlib.suppress(KerneldError, OSError):
            self._trace.close()
        with contextlib.suppress(KerneldError, OSError):
            self.process.close()


@contextmanager
def private_machine(room: Room) -> Iterator[Machine]:
    """Run a fresh kernel, yield it, and end it and every process of the room. Raises MachineError."""
    directory = room.directory / "kernel"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    room.give(directory)
    socket, log = directory / "kerneld.sock", directory / "log"
    daemon = os.fork()
    if daemon == 0:
        _become_daemon(room, socket, log)
    machine = None
    try:
        _wait_until_ready(daemon, log)
        try:
            machine = Machine(room, daemon, socket)
        except (KerneldError, OSError) as error:
            raise MachineError(f"the private kernel does not answer: {error}") from None
        yield machine
    finally:
        if machine is not None:
            machine.close()
        _end(daemon)
        room.kill_all()


def _become_daemon(room: Room, socket: Path, log: Path) -> NoReturn:
    try:
        os.setsid()
        room.become_kernel()
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(fd, 2)
        os.closerange(3, 4096)
        words = [sys.executable, "-P", "-m", "kerneld", "start", "--socket", str(socket), "--ram", _RAM]
        path = os.pathsep.join(filter(None, sys.path))
        os.execve(sys.executable, [*words, "--log-format", "json"], {**os.environ, "PYTHONPATH": path})
    finally:
        os._exit(127)


def _wait_until_ready(daemon: int, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    said = b""
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            said = log.read_bytes()
        if _READY in said:
            return
        pid, status = os.waitpid(daemon, os.WNOHANG)
        if pid:
            words = said.decode("utf-8", "replace").strip()
            raise MachineError(f"the private kernel does not start (status {status}): {words[-300:]}")
        time.sleep(0.02)
    raise MachineError("the private kernel does not start in time")


def _end(daemon: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon, signal.SIGTERM)
    end = time.monotonic() + _END_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(daemon, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
                continue
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(daemon, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(daemon, 0)
