"""A kernel of a few lines for the server to talk to, and a server that tests drive turn by turn in their own thread."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from kerneld.errors import KernelBug, SysError
from kerneld.fs.changes import Changes
from kerneld.fs.file_limits import FileAccounts, FileRules
from kerneld.fs.mounts import Mounts
from kerneld.mm.space.dying import Dying
from kerneld.server.door import ClientLimits
from kerneld.server.loop import Loop
from kerneld.server.socket_path import Claim, claim
from kerneld.syscalls.answer import Answer, Call
from kerneld.task.mmap_lock import MmapLocks
from kerneld.task.sched import RunQueue, do_task_dead, run_task
from kerneld.task.task import Cred, Thread
from kerneld.tlb.debts import Debts
from shared import wire
from shared.uapi.syscalls import Nr
from tests.support.descriptors import open_descriptors

NR_BUG = 0x7001
NR_CRASH_OTHERS = 0x7002
NR_LONG = 0x7003
NR_PANIC = 0x7004
NR_OWE = 0x7005
TURN_SECONDS = 10.0


class FakeMm:
    """An address space that a thread can run in."""

    page_table = None
    tlb = None


@dataclass(slots=True, eq=False)
class FakeProcess:
    pid: int
    threads: list[Thread] = field(default_factory=list)
    ended: bool = False
    mm: FakeMm | None = None
    cred: Cred = field(default_factory=lambda: Cred(0, 0, superuser=True))


class LateAgent:
    """An agent that acknowledges its orders when the test says so."""

    def __init__(self) -> None:
        self.acknowledged = self.ordered = 0

    def answers(self, server: ServerUnderTest) -> None:
        """Acknowledge all, as the server hears it."""
        self.acknowledged = self.ordered
        server.loop.service.held.told(cast(Any, self))


class FakeKernel:
    """Keeps processes and what the server told of them; `requests` are those that were run."""

    def __init__(self) -> None:
        self.processes: dict[int, FakeProcess] = {}
        self.requests: list[tuple[Thread, wire.Request]] = []
        self.died: list[int] = []
        self.exited: list[int] = []
        self.consumed_fds: list[int] = []
        self.ended: list[FakeProcess] = []
        self.file_changes_fd = -1
        self.changes = Changes()
        self.files = SimpleNamespace(mounts=Mounts(), accounts=FileAccounts(FileRules()), changes=self.changes)
        self.shadowpt = SimpleNamespace(followed_host=None, asking=SimpleNamespace(reader=None))
        self.lines_lost: list[int] = []
        self.table = SimpleNamespace(mmap_locks=MmapLocks(), line_lost=self.lines_lost.append)
        self.loans: list[tuple[str, list[int]]] = []
        self.agent = LateAgent()
        self.agents_mm = FakeMm()
        self.tlbs = SimpleNamespace(debts=Debts(cast(Any, self), self.table.mmap_locks.unsettled))
        self.advances = SimpleNamespace(live=[])
        self.killed: list[FakeProcess] = []
        self.rq = RunQueue()
        self.dying = Dying()
        self.vmscan = SimpleNamespace(is_awake=False)
        self.ksmd = SimpleNamespace(is_awake=False, is_scanning=False)
        self.userfaultfds = SimpleNamespace(releasing=deque())

    def attach(
        self, sender: Any, version: int, tid: int, token: int, flags: int = 0, inherited: object = None
    ) -> Thread:
        if version != 1:
            raise SysError(71)
        process = self.processes.setdefault(sender.pid, FakeProcess(sender.pid))
        thread = Thread(tid or sender.pid, cast(Any, process))
        process.threads.append(thread)
        run_task(self.rq, thread)
        return thread

    def lend(self, pfns: Any) -> None:
        self.loans.append(("lent", list(pfns)))

    def give_back(self, pfns: Any) -> None:
        self.loans.append(("back", list(pfns)))

    def admit_children(self) -> None:
        """No program of this kernel is native."""

    def thread_exited(self, thread: Thread) -> None:
        self.exited.append(thread.tid)
        thread.process.threads.remove(thread)
        do_task_dead(thread)
        if not thread.process.threads:
            self.end(cast(Any, thread.process))

    def files_changed(self) -> None:
        self.changes.go_on()

    def process_died(self, process: FakeProcess) -> None:
        self.died.append(process.pid)
        self.end(process)

    def end(self, process: FakeProcess) -> None:
        if not process.ended:
            process.ended = True
            for thread in process.threads:
                do_task_dead(thread)
            del self.processes[process.pid]
            self.ended.append(process)

    def begin_reaping(self) -> None:
        self.dying.is_fresh = False

    def take_killed(self) -> list[FakeProcess]:
        killed, self.killed = self.killed, []
        return killed

    def take_ended(self) -> list[FakeProcess]:
        ended = self.ended.copy()
        self.ended.clear()
        return ended

    def shutdown(self) -> None:
        self.processes.clear()


def fake_dispatch(kernel: FakeKernel, thread: Thread, request: wire.Request, fds: list[int]) -> Answer:
    """Behave enough like each family of requests for the server to show what it does about it."""
    run_task(kernel.rq, thread)
    kernel.requests.append((thread, request))
    process = cast(FakeProcess, thread.process)
    match request.nr:
        case Nr.GETPID:
            return Answer(process.pid)
        case Nr.LOAD:
            return Answer(request.args[1], b"L" * request.args[1])
        case Nr.STORE:
            return Answer(len(request.data))
        case Nr.MMAP:
            kernel.consumed_fds.append(fds.pop(0))
            return Answer(0)
        case Nr.RAM:
            return Answer(0, fds=(os.memfd_create("ram"),))
        case Nr.TOUCH:
            kernel.end(process)
            return Answer(0, signo=signal.SIGSEGV, siginfo=wire.SigInfo(1, True, 0x1000))
        case Nr.BRK:
            return Answer(0, signo=signal.SIGBUS, siginfo=wire.SigInfo(2, False, 0x2000))
        case Nr.EXIT_GROUP:
            kernel.end(process)
            return Answer(0)
        case Nr.EXIT:
            return Answer(0)
        case 0x7001:
            raise RuntimeError("a bug in the kernel")
        case 0x7002:
            for other in list(kernel.processes.values()):
                if other is not process:
                    kernel.end(other)
            return Answer(0)
        case 0x7004:
            raise KernelBug("a frame has no owner")
        case 0x7005:
            kernel.agent.ordered += 1
            kernel.tlbs.debts.owe(kernel.agent, kernel.agent.ordered, [5], kernel.agents_mm)
            return Answer(process.pid)
        case Nr.EXECVE:
            for sibling in [one for one in process.threads if one is not thread]:
                process.threads.remove(sibling)
                do_task_dead(sibling)
            return Answer(0)
        case 0x7003:
            return Answer(0, b"P" * request.args[0])
        case _:
            return Answer(-38)


def fake_run(call: Call, nr: int) -> Answer:
    """Do the same for a call put together."""
    request = wire.Request(nr, call.args, call.data)
    return fake_dispatch(cast(Any, call.kernel), cast(Any, call.thread), request, call.fds)


class Client:
    """A client's end of a connection, in the test's own process; each exchange is one turn of the server's loop."""

    def __init__(self, server: ServerUnderTest, sock: socket.socket) -> None:
        self.server = server
        self.socket = sock

    def send(self, datagram: bytes, fds: Sequence[int] = ()) -> None:
        if fds:
            socket.send_fds(self.socket, [datagram], list(fds))
        else:
            self.socket.send(datagram)

    def receive(self) -> list[wire.Reply]:
        """Return the replies of the answer that is there; [] at the end of the connection."""
        return wire.unpack_replies(self.socket.recv(wire.MAX_REPLY + 1, socket.MSG_DONTWAIT))

    def exchange(self, *requests: bytes, fds: Sequence[int] = ()) -> list[wire.Reply]:
        self.send(b"".join(requests), fds)
        self.server.turn()
        return self.receive()

    def call(self, nr: int, *args: int, data: bytes = b"") -> wire.Reply:
        [reply] = self.exchange(wire.pack_request(nr, args, data))
        return reply

    def attach(self, version: int = 1, tid: int = 0, token: int = 0) -> int:
        return self.call(Nr.ATTACH, version, tid, token).ret

    def is_ended(self) -> bool:
        """Whether the server has closed the connection, all of its answers having been read."""
        return self.receive() == []

    def is_readable(self) -> bool:
        """Whether an answer, or the end of the connection, waits to be read."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))


class ServerUnderTest:
    """A loop over a FakeKernel on a real socket."""

    def __init__(self, directory: Path, limits: ClientLimits | None = None) -> None:
        self.path = str(directory / "kerneld.sock")
        self.kernel = FakeKernel()
        self.held: Claim = claim(self.path)
        self.stop_read, self.stop_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.loop = Loop(cast(Any, self.kernel), self.held.listener, self.stop_read, limits or ClientLimits())
        # A turn answers all, each datagram whole, however slow the machine that runs the tests; a test of slices sets
        # its own.
        self.loop.service.fair.slice_seconds = self.loop.service.fair.turn_seconds = 60.0
        self.clients: list[socket.socket] = []

    def turn(self) -> None:
        self.loop.turn(TURN_SECONDS)

    def connect(self) -> Client:
        """Return a client whose connection has been accepted."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(self.path)
        self.clients.append(sock)
        self.turn()
        return Client(self, sock)

    def attached(self, tid: int = 0) -> Client:
        client = self.connect()
        assert client.attach(tid=tid) == os.getpid()
        return client

    def close(self) -> None:
        for sock in self.clients:
            sock.close()
        self.loop.close()
        self.kernel.files.mounts.close()
        self.held.release()
        os.close(self.stop_read)
        os.close(self.stop_write)


def open_fds() -> int:
    """Return how many fds this process has open; what earlier tests have left to the collector is closed first."""
    return len(open_descriptors())
