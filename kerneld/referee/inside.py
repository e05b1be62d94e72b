"""A kerneld as the host: the runner is a native program in it, by `kerneld exec`. So exec's stub and TLB are judged.

Owns the daemons of a run, and their directories. One daemon plays the programs; a second, which checks all invariants
after every request, plays some of them. Both sides are kerneld then: what differs is what the way by the real processor
changes. The referee compares that with `kerneld.referee.simulated`, which the host's kernel judges.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

from kerneld.referee.errors import HostError
from kerneld.referee.facts import HostFacts, find_facts
from kerneld.referee.host import Host
from kerneld.referee.host_swap import SWAP_BYTES
from kerneld.referee.hosts import ThisHost
from kerneld.referee.limits import host_settings
from kerneld.referee.mode import Mode, thp_of
from kerneld.referee.outcome import State
from kerneld.referee.proc_files import Part, ProcFile
from kerneld.referee.program import Program
from kerneld.referee.simulated import RAM_BYTES
from shared.client import Process
from shared.private_directory import private_directory
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr

RELEASE = "6.8.0 (kerneld exec)"
CHECKED_SHARE = 20
"""One program in this number is played by the daemon that checks its invariants."""
_DAEMONS: tuple[tuple[str, tuple[str, ...]], ...] = (("plain", ()), ("checked", ("--check-invariants",)))
_KERNELD = (sys.executable, "-P", "-m", "kerneld")


class _KerneldFile:
    def __init__(self, process: Process, name: str) -> None:
        self._process = process
        self.name = name

    def pread(self, length: int, offset: int) -> bytes:
        return self._process.procread(self.name, offset, length)

    def close(self) -> None:
        pass


class KerneldProc:
    """The /proc of a kerneld, read by a process of its superuser."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def open(self, name: str) -> ProcFile:
        """Return a file of this name. It is looked for when it is read."""
        return _KerneldFile(self._process, name)

    def read(self, parts: Sequence[Part]) -> list[bytes]:
        """Return the bytes of several parts, in as few datagrams as they need."""
        with self._process.batch() as batch:
            for file, length, offset in parts:
                assert isinstance(file, _KerneldFile)
                batch.call(Nr.PROCREAD, offset, length, data=file.name.encode())
        for reply in batch.replies:
            if reply.ret < 0:
                raise OSError(-reply.ret, os.strerror(-reply.ret))
        return [reply.data for reply in batch.replies]


class _Runner(Host):
    """A runner that has each file of a program mapped. kerneld notes the holes of files that it knows, and no others:

    `kerneld.referee.simulated` holds the files too.
    """

    _held: tuple[int, ...] = ()
    _separates_ipc = False

    def prepare_files(self, numbers: set[int]) -> None:
        """Open the files of a program, and map a page of each where no child of the runner has it."""
        super().prepare_files(numbers)
        maps = [self._template.call(Nr.MMAP, (0, PAGE_SIZE, 0, Map.PRIVATE.value, fd, 0)) for fd in self._fds.values()]
        self._held = tuple(mapped.ret for mapped in maps if mapped.ret > 0)
        for vaddr in self._held:
            self._template.call(Nr.MADVISE, (vaddr, PAGE_SIZE, Madv.DONTFORK.value))

    def end(self) -> None:
        """End the program's processes, and unmap the files."""
        super().end()
        held, self._held = self._held, ()
        for vaddr in held:
            self._template.call(Nr.MUNMAP, (vaddr, PAGE_SIZE))


class InsideHost:
    """The daemons, as one host."""

    def __init__(self, plain: ThisHost, checked: ThisHost) -> None:
        self._plain = plain
        self._checked = checked
        self._number = 0
        self.facts = plain.facts

    def play(self, program: Program, *, pages_out: bool = True, everything: bool = True) -> Generator[State]:
        """Yield the state after each operation."""
        host = self._plain if self._number % CHECKED_SHARE else self._checked
        self._number += 1
        yield from host.play(program, pages_out=pages_out, everything=everything)

    def expect(self, program: Program, *, pages_out: bool = True, everything: bool = True) -> None:
        """Do nothing: this machine is busy with both sides."""


def _facts_of(found: HostFacts) -> HostFacts:
    """Return the facts of a kerneld, from those that a player inside has found: some are those of the kernel below."""
    below = found._replace(has_swap=False, has_damon=False, has_lru_gen=False, runs_ksm=False, has_journal=False)
    return below._replace(release=RELEASE, is_kerneld=True, has_own_ipc=True, has_userfaultfd=True)


@contextlib.contextmanager
def open_inside(mode: Mode) -> Iterator[InsideHost]:
    """Start the daemons and a runner in each. Raises HostError if this machine cannot, or not in this mode."""
    with contextlib.ExitStack() as stack:
        yield InsideHost(*(stack.enter_context(_open_one(mode, *each)) for each in _DAEMONS))


@contextlib.contextmanager
def _open_one(mode: Mode, name: str, options: tuple[str, ...]) -> Iterator[ThisHost]:
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(private_directory(f"kerneld-inside-{name}-")))
        socket = stack.enter_context(_daemon(folder, mode, options))
        proc = KerneldProc(stack.enter_context(contextlib.closing(Process.attach(socket))))
        host = _Runner(folder, mode, [*_KERNELD, "exec", "--socket", socket, "--"], proc)
        stack.callback(host.close)
        yield ThisHost(host, _facts_of(find_facts(mode, host.layout, host.uncounted)))


@contextlib.contextmanager
def _daemon(folder: Path, mode: Mode, options: tuple[str, ...]) -> Iterator[str]:
    """Run a kerneld in a folder, with this host's limits, and yield the path of its socket."""
    socket, settings = folder / "socket", host_settings()
    words = ["start", "--detach", "--socket", str(socket), "--ram", f"{RAM_BYTES >> 20}M", "--thp", thp_of(mode).value]
    words += ["--max-map-count", str(settings.max_map_count), "--mmap-min-addr", str(settings.mmap_min_addr)]
    words += ["--overcommit-memory", str(settings.overcommit_memory), *options]
    if mode is Mode.SWAP:
        words += ["--swap", f"{SWAP_BYTES >> 20}M"]
    try:
        started = subprocess.run([*_KERNELD, *words], capture_output=True, text=True, check=False)
        if started.returncode:
            raise HostError(f"no kerneld can be started here: {started.stderr.strip()}")
        yield str(socket)
    finally:
        subprocess.run([*_KERNELD, "stop", "--socket", str(socket)], capture_output=True, check=False)
