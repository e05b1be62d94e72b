"""The host's side: a small process makes the program's calls on the real kernel, and /proc shows its memory.

Owns the runner (host.c, compiled at the start). It is started once, without address randomisation, and each program
runs in a fork of it. Knows nothing about kerneld. The runner has the pipes of all processes of a program from the
start. It is killed at the end.

The runner turns transparent huge pages off for itself, except in the mode `huge`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from kerneld.referee.errors import HostError
from kerneld.referee.files import ProgramFiles
from kerneld.referee.five_levels import TASK_SIZE_5LEVEL
from kerneld.referee.host_process import EXIT, FORK, LOAD, STORE, TOUCH, WRPKRU, HostProcess, Pipe
from kerneld.referee.host_view import Drain, Reading, data_bytes, find_uncounted
from kerneld.referee.layout import AREA_BYTES, CONTROL_START, TEXT_START, Layout
from kerneld.referee.machine import TABLES, Counters, HostCounters
from kerneld.referee.mode import Mode
from kerneld.referee.outcome import Outcome, parse_maps_line
from kerneld.referee.proc_files import HostProc, ProcSource, read_file
from kerneld.referee.program import MAX_PROCESSES
from kerneld.referee.rights import has_own_ipc
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from shared.uapi.syscalls import Nr

_NR_WRITE, _NR_OPEN, _NR_CLOSE, _NR_PRCTL, _NR_UNSHARE, _NR_PIDFD_OPEN = 1, 2, 3, 157, 272, 434
_CLONE_NEWIPC = 0x0800_0000
_PR_SET_THP_DISABLE, _PR_SET_PDEATHSIG = 41, 1
_ADDR_NO_RANDOMIZE = 0x004_0000
IN_DATA = 0xDA7A_B0FF << 32
"""An argument of this value plus an offset points into the data of the call (host.c)."""
_FLAGS = (
    "-std=c11 -O1 -static -nostdlib -ffreestanding -fno-stack-protector -fcf-protection=none -fPIE -no-pie "
    "-fno-asynchronous-unwind-tables -mgeneral-regs-only -Wl,-e,entry -Wl,-z,noexecstack -Wl,-z,norelro "
    f"-Wl,--build-id=none -Wl,-Ttext-segment={TEXT_START:#x}"
).split()
_FAR_PLACE, _NEW_TABLES = 0x1000_0000_0000, 3
"""A hint. The first page there needs this number of page tables. Before v6.7 the highest of them is not counted."""
_NR_PIPES = MAX_PROCESSES + 1


def compile_runner(folder: Path) -> Path:
    """Compile host.c into a folder and return the program's path. Raises HostError without a compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise HostError("the referee needs a C compiler (cc, gcc or clang; $CC names another)")
    source, program = Path(__file__).with_name("host.c"), folder / "host"
    command = [compiler, *_FLAGS, "-o", str(program), str(source)]
    try:
        made = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise HostError(f"the C compiler cannot run: {error}") from None
    if made.returncode:
        raise HostError(f"{compiler} cannot compile {source.name}: {made.stderr.strip().splitlines()[-1:]}")
    return program


class Host:
    """The runner, for one program after another."""

    _separates_ipc = has_own_ipc()
    """Whether each program has a namespace for its System V shared memory."""

    def __init__(
        self,
        folder: Path,
        mode: Mode = Mode.PLAIN,
        command: Sequence[str] = (),
        proc: ProcSource | None = None,
        *,
        counts: bool = False,
    ) -> None:
        """Start the runner, by `command` if one is given. Its memory is read in `proc`, by default this machine's.

        Only this side uses `folder`. With `counts` it can be asked for `counters`. Raises HostError.
        """
        self._counters = HostCounters() if counts else None
        if os.uname().machine != "x86_64":
            raise HostError("the referee is an x86-64 Linux kernel: this host is none")
        self._folder = folder
        self._pipes = [Pipe() for _ in range(_NR_PIPES)]
        self._proc = proc or HostProc()
        self._runner = self._spawn([*command, str(compile_runner(folder))])
        self._template = HostProcess(self._runner.pid, self._pipes[0], self._proc)
        self._children: dict[int, HostProcess] = {}
        self._fds: dict[int, int] = {}
        self._files = ProgramFiles(folder)
        self.layout = self._settle(huge_pages=mode is Mode.HUGE)
        self._drain = Drain()
        self._used_at_start: dict[int, int] = {}
        self.uncounted = self._find_uncounted()
        """The names of totals that are out of date on this host."""
        self.start_totals: dict[str, int] = {}
        """The totals of process 0 when the last program began."""

    def _spawn(self, words: list[str]) -> subprocess.Popen[bytes]:
        names = "".join(f"{pipe.child_in:04x}{pipe.child_out:04x}" for pipe in self._pipes)
        libc = ctypes.CDLL(None, use_errno=True)

        def prepare() -> None:
            libc.personality(_ADDR_NO_RANDOMIZE)
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

        runner = subprocess.Popen(
            [*words, f"{CONTROL_START:x}", f"{_NR_PIPES * AREA_BYTES:x}", names],
            pass_fds=[fd for pipe in self._pipes for fd in (pipe.child_in, pipe.child_out)],
            env={},
            preexec_fn=prepare,  # noqa: PLW1509  (a thread of ours would be none of this program's)
        )
        for pipe in self._pipes:
            pipe.close_child_ends()
        return runner

    def _settle(self, *, huge_pages: bool) -> Layout:
        """Unmap the kernel's own mappings (vdso) in the runner, and find the mappings that are left."""
        brk = self._template.call(Nr.BRK, (0,)).ret
        # The pages of its stack that accesses use: all programs begin with them, so the peak of its own memory is one.
        self._template.order(LOAD, (0, 0))
        self._template.call(_NR_PRCTL, (_PR_SET_THP_DISABLE, 0 if huge_pages else 1, 0, 0, 0))
        taken: list[tuple[int, int]] = []
        for line in read_file(self._proc, f"{self._runner.pid}/maps").splitlines():
            start, end, _, _, name = parse_maps_line(line)
            if name.startswith(("[vdso", "[vvar")):
                self._template.call(Nr.MUNMAP, (start, end - start))
            elif name in ("[stack]", "[vsyscall]"):
                continue
            elif taken and taken[-1][1] == start:
                taken[-1] = (taken[-1][0], end)
            else:
                taken.append((start, end))
        if len(taken) != 2:
            raise HostError(f"the runner has mappings at unexpected places: {taken}")
        data = data_bytes(self._proc, self._runner.pid)
        return Layout(brk, tuple(taken), self._find_lowest_hint(), self._find_task_size(), data)

    def _find_lowest_hint(self) -> int:
        flags = (Map.PRIVATE | Map.ANONYMOUS).value
        found = self._template.call(Nr.MMAP, (PAGE_SIZE, PAGE_SIZE, 0, flags, -1, 0)).ret
        self._template.call(Nr.MUNMAP, (found, PAGE_SIZE))
        return found

    def _find_task_size(self) -> int:
        above = self._template.call(Nr.MUNMAP, (TASK_SIZE + PAGE_SIZE, PAGE_SIZE)).ret
        return TASK_SIZE if above < 0 else TASK_SIZE_5LEVEL

    def _find_uncounted(self) -> frozenset[str]:
        """Touch a page, and find the counters that do not show it, or not the three page tables that it needs."""
        before = self._template.proc.read(self.layout).totals()
        machine = self.counters() if self._counters is not None else None
        flags = (Map.PRIVATE | Map.ANONYMOUS | Map.POPULATE).value
        page = self._template.call(Nr.MMAP, (_FAR_PLACE, PAGE_SIZE, 3, flags, -1, 0)).ret
        after = self._template.proc.read(self.layout).totals()
        found = find_uncounted(before, after)
        if machine is not None and self.counters().since(machine).get(TABLES) != _NEW_TABLES:
            found |= {TABLES}
        self._template.call(Nr.MUNMAP, (page, PAGE_SIZE))
        return found

    def start(self) -> None:
        """Begin a program, with one process, number 0. Raises HostError if the host has no room for it."""
        outcome = self._fork(self._template, 0)
        if outcome.ret < 0:
            raise HostError(f"the runner cannot fork: {os.strerror(-outcome.ret)}")
        if self._separates_ipc:
            self._children[0].call(_NR_UNSHARE, (_CLONE_NEWIPC,))
        reading = self._children[0].proc.read(self.layout)
        self.start_totals, self._used_at_start = reading.totals(), reading.used()

    def _fork(self, parent: HostProcess, who: int) -> Outcome:
        """Fork. Raises HostError if there are too many processes, which is no matter of memory."""
        outcome = parent.order(FORK, (who + 1, CONTROL_START))
        if outcome.ret == -errno.EAGAIN:
            raise HostError("this host has so many processes that the runner cannot fork")
        if outcome.ret < 0:
            return outcome
        pipe = self._pipes[who + 1]
        self._children[who] = HostProcess(outcome.ret, pipe, self._proc)
        pipe.get_reply()
        if self._counters is not None:
            # Both get a stack of their own now, and not in an operation whose counters are compared.
            for each in (parent, self._children[who]):
                each.order(LOAD, (0, 0))
        return Outcome(0)

    def fork(self, who: int, child: int) -> Outcome:
        """Fork a process."""
        return self._fork(self._children[who], child)

    def exit(self, who: int) -> Outcome:
        """End a process, and wait until its memory is freed."""
        self._children.pop(who).end(EXIT)
        return Outcome(0)

    def end(self) -> None:
        """End the program's processes."""
        for child in self._children.values():
            child.end(EXIT)
        self._children.clear()
        self._files.close()
        for fd in self._fds.values():
            self._template.call(_NR_CLOSE, (fd,))
        self._fds.clear()

    def prepare_files(self, numbers: set[int]) -> None:
        """Open the files of a program. Call it before `start`, so that every process has them."""
        for number in numbers:
            path = f"/proc/{os.getpid()}/fd/{self._files.get_fd(number)}\0".encode()
            flags = self._files.get_flags(number)
            self._fds[number] = self._template.call(_NR_OPEN, (IN_DATA, flags, 0), path).ret
            if self._fds[number] < 0:
                raise HostError(f"the runner cannot open file {number}: {os.strerror(-self._fds[number])}")

    def truncate(self, file: int, length: int, *, writes_cut: bool = False) -> Outcome:
        """Set a file's size, and with `writes_cut` write the page that was cut (`cut_page`)."""
        return Outcome(self._files.truncate(file, length, writes_cut=writes_cut))

    def add_seals(self, file: int, seals: int) -> Outcome:
        """Seal a file."""
        return Outcome(self._files.add_seals(file, seals))

    def call(self, who: int, nr: int, args: tuple[int, ...], file: int = -1, data: bytes = b"") -> Outcome:
        """Make a system call."""
        if nr == Nr.MMAP:
            args = (*args[:4], self._fds[file] if file >= 0 else -1, args[5])
        elif nr in (Nr.MINCORE, Nr.SHMCTL):
            args = (*args[:2], IN_DATA)
        elif nr in (Nr.PROCESS_VM_READV, Nr.PROCESS_VM_WRITEV):
            args = (args[0], IN_DATA, args[2], IN_DATA + 16 * args[2], *args[4:])
        return self._children[who].call(nr, args, data)

    def process_madvise(self, who: int, peer: int, iovec: bytes, advice: int, flags: int) -> Outcome:
        """Advise a process's memory by a new pidfd; for an ended process by a descriptor that is no pidfd."""
        caller = self._children[who]
        pidfd = caller.call(_NR_PIDFD_OPEN, (self.pid(peer), 0)).ret if peer in self._children else -1
        outcome = caller.call(Nr.PROCESS_MADVISE, (pidfd, IN_DATA, 1, advice, flags), iovec)
        if pidfd >= 0:
            caller.call(_NR_CLOSE, (pidfd,))
        return outcome

    def clear_refs(self, who: int, peer: int, text: bytes) -> Outcome:
        """Write to clear_refs of a process."""
        caller = self._children[who]
        fd = caller.call(_NR_OPEN, (IN_DATA, os.O_WRONLY, 0), f"/proc/{self.pid(peer)}/clear_refs\0".encode()).ret
        if fd < 0:
            return Outcome(fd)
        outcome = caller.call(_NR_WRITE, (fd, IN_DATA, len(text)), text)
        caller.call(_NR_CLOSE, (fd,))
        return outcome

    def userfaultfd(self, who: int, flags: int) -> Outcome:
        """Make a userfaultfd for a process. The outcome is its descriptor."""
        return self._children[who].call(Nr.USERFAULTFD, (flags,))

    def ioctl(self, who: int, fd: int, command: int, record: bytes) -> Outcome:
        """Make an ioctl of a process. The data of the outcome are the record as it is then."""
        return self._children[who].call(Nr.IOCTL, (fd, command, IN_DATA), record)

    def together(self, who: int, calls: Iterable[Callable[[], Outcome]]) -> list[Outcome]:
        """Make several calls of a process, each of one order: it runs them without waiting for what comes back."""
        return self._children[who].together(calls)

    def pid(self, who: int) -> int:
        """Return a process's pid; for an ended process a pid that no process has."""
        return self._children[who].pid if who in self._children else (1 << 22) - 1

    def prlimit(self, who: int, peer: int, resource: int, limits: bytes) -> Outcome:
        """Set a process's soft and hard limit of a resource."""
        return self._children[who].call(Nr.PRLIMIT64, (self.pid(peer), resource, IN_DATA, 0), limits)

    def used_at_start(self, resource: int) -> int:
        """Return the bytes of a resource in use at the start of the program."""
        return self._used_at_start[resource]

    def load(self, who: int, vaddr: int, length: int) -> Outcome:
        """Read memory."""
        return self._access(who, LOAD, (vaddr, length))

    def store(self, who: int, vaddr: int, length: int, data: bytes) -> Outcome:
        """Write memory: `data` again and again."""
        return self._access(who, STORE, (vaddr, length), data)

    def touch(self, who: int, vaddr: int, length: int, access: int) -> Outcome:
        """Access a byte of each page."""
        return self._access(who, TOUCH, (vaddr, length, access))

    def wrpkru(self, who: int, value: int) -> Outcome:
        """Set PKRU of a process for its later operations. SIGILL on a processor without protection keys."""
        return self._children[who].order(WRPKRU, (value,))

    def _access(self, who: int, order: int, args: tuple[int, ...], data: bytes = b"") -> Outcome:
        return self._children[who].order(order, args, data, counts=True)

    def view(self, who: int, *, whole: bool = True) -> Reading:
        """Read the state of a process's memory, or the part of it that is compared after every operation."""
        self._drain()
        return self._children[who].proc.read(self.layout, whole=whole)

    def counters(self) -> Counters:
        """Return the counters of the whole machine."""
        assert self._counters is not None
        self._drain()
        return self._counters()

    def close(self) -> None:
        """End the runner."""
        self.end()
        if self._counters is not None:
            self._counters.close()
        for pipe in self._pipes:
            pipe.close()
        self._runner.wait()
