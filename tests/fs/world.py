"""A kernel as the views need it: a machine, processes that live, and a shadow table's state in words."""

from __future__ import annotations

import os
import time

from kerneld.fs.procfs import ProcFs
from kerneld.mm.calls.fork import dup_mmap
from kerneld.mm.limits import Sysctl
from kerneld.mm.space.mm import MmStruct
from kerneld.task.mmap_lock import MmapLocks
from kerneld.task.shm import ShmSegments
from kerneld.task.task import Cred, Process, Thread
from shared.uapi.mman import Map
from tests.support.file_machine import ROOT, RW, FileMachine, map_file


class FakeShadowPt:
    def __init__(self) -> None:
        self.session: tuple[str, int | None, int | None] = ("closed", None, None)

    def describe_session(self) -> tuple[str, int | None, int | None]:
        return self.session


class World:
    """Processes of one machine; the first is this real one."""

    def __init__(self, machine: FileMachine) -> None:
        self.machine = machine
        self.frames = machine.frames
        self.files = machine.files
        self.sysctl = Sysctl()
        self.mmap_locks = MmapLocks()
        self.shm = ShmSegments(machine.frames)
        self.shadowpt = FakeShadowPt()
        self.start_time = time.monotonic()
        self.processes: dict[int, Process] = {}
        self.procfs = ProcFs(self)
        self.me = self.add(os.getpid(), ROOT)

    def add(self, pid: int, cred: Cred, mm: MmStruct | None = None, comm: str = "program") -> Process:
        process = Process(pid, cred, mm or self.machine.new_mm(), comm, time.monotonic())
        process.threads.append(Thread(pid, process))
        self.processes[pid] = process
        return process

    def fork(self, process: Process, pid: int) -> Process:
        mm = dup_mmap(process.live_mm)
        self.machine.mms.append(mm)
        return self.add(pid, process.cred, mm)

    def find_process(self, pid: int) -> Process | None:
        return self.processes.get(pid)

    def admit_children(self) -> None:
        """No program here is native."""

    def forget(self, process: Process) -> None:
        """Take a process out as its end does."""
        del self.processes[process.pid]
        self.machine.mms.remove(process.live_mm)
        process.exit_mm()

    def close(self) -> None:
        """Let go of the address spaces, which the machine ends."""
        for process in self.processes.values():
            process.mm = None
        self.processes.clear()

    def read(self, path: str, reader: Process | None = None, offset: int = 0, length: int = 1 << 16) -> bytes:
        return self.procfs.read((reader or self.me).threads[0], path, offset, length)

    def text(self, path: str, reader: Process | None = None) -> str:
        return self.read(path, reader, length=1 << 24).decode()

    def rows(self, path: str) -> dict[str, str]:
        """Return a view of `Key: value` lines."""
        return dict(split_line(line) for line in self.text(path).splitlines())

    def map_anonymous(self, nr_pages: int, process: Process | None = None, flags: int = Map.PRIVATE) -> int:
        mm = (process or self.me).live_mm
        return map_file(mm, None, nr_pages << 12, prot=RW, flags=flags | Map.ANONYMOUS)


def split_line(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key, value.strip()
