"""dispatch: numbers, errnos, signals, and a handler that fails as none should: that task ends, the machine goes on."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from signal import SIGSEGV

import pytest
import structlog

from kerneld.errors import KernelBug, SysError
from kerneld.syscalls.answer import Answer, Call
from kerneld.syscalls.dispatch import dispatch
from kerneld.syscalls.table import HANDLERS, RESTART, find_name
from shared.uapi.signals import SI_KERNEL, Disposition
from shared.uapi.syscalls import Nr
from shared.wire import Request, SigInfo
from tests.support.programs import BASE, USER, Program, World


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Call], int | Answer]], int]:
    """Return what puts a handler into the table for one test, and returns its number."""

    def put(handler: Callable[[Call], int | Answer]) -> int:
        monkeypatch.setitem(HANDLERS, 0x7777, handler)
        return 0x7777

    return put


Install = Callable[[Callable[[Call], "int | Answer"]], int]


class TestNumbers:
    """The table."""

    @pytest.mark.parametrize("nr", [0, 1, 461, 467, 0xFFF, max(Nr) + 1, (1 << 32) - 1])
    def test_an_unknown_one(self, program: Program, nr: int) -> None:
        assert program.call(nr, 1, 2, 3) == -errno.ENOSYS

    def test_attach_is_the_servers(self, program: Program) -> None:
        assert program.call(Nr.ATTACH, 1) == -errno.ENOSYS

    def test_every_other_one_of_the_abi_is_there(self) -> None:
        assert set(HANDLERS) == {int(nr) for nr in Nr} - {int(Nr.ATTACH), int(Nr.RING)} | {RESTART}

    def test_names(self) -> None:
        assert (find_name(9), find_name(0x1006), find_name(0x9999)) == ("mmap", "clone", "syscall_0x9999")


class TestOutcomes:
    """What becomes of what a handler says."""

    def test_a_return_value(self, program: Program, install: Install) -> None:
        assert program.call(install(lambda call: call.args[0] + 1), 41) == 42

    def test_an_errno(self, program: Program, install: Install) -> None:
        def handler(call: Call) -> int:
            raise SysError(errno.EXDEV)

        assert program.call(install(handler)) == -errno.EXDEV

    def test_descriptors_are_consumed_in_order(self, program: Program, install: Install, fd: int) -> None:
        seen: list[bytes] = []

        def handler(call: Call) -> int:
            taken = call.take_fd()
            seen.append(os.pread(taken, 1, 0))
            return taken

        ends = os.pipe()
        left = [os.dup(fd), os.dup(ends[0])]
        first, second = left
        request = Request(install(handler), (0, 0, 0, 0, 0, 0), b"")
        assert dispatch(program.kernel, program.thread, request, left).ret == first
        assert (seen, left) == ([b"x"], [second])
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(first)
        for end in (*ends, second):
            os.close(end)

    def test_a_request_that_begins_again_has_its_descriptors_again(
        self, program: Program, install: Install, fd: int
    ) -> None:
        taken: list[bytes] = []

        def handler(call: Call) -> int:
            taken.append(os.pread(call.take_fd(), 1, 0))
            with contextlib.suppress(SysError):
                call.take_fd()
            if len(taken) < 3:
                call.kernel.frames.has_stalled = True
                raise SysError(errno.ENOMEM)
            return call.args[0]

        assert program.call(install(handler), 7, fds=[fd]) == 7
        assert taken == [b"x"] * 3

    def test_a_descriptor_that_is_not_there(self, program: Program, install: Install) -> None:
        assert program.call(install(lambda call: call.take_fd())) == -errno.EBADF


class TestOops:
    """Source: Linux v6.8 arch/x86/kernel/dumpstack.c:oops_end(): the task dies, the log has it all."""

    @pytest.mark.parametrize(
        "error", [KernelBug("an invariant"), ZeroDivisionError(), AssertionError("x"), KeyError(1)]
    )
    def test_that_task_alone_ends(self, world: World, program: Program, install: Install, error: Exception) -> None:
        def handler(call: Call) -> int:
            raise error

        other = world.attach(USER)
        program.mmap(1, at=BASE)
        program.store(BASE, b"x")
        with structlog.testing.capture_logs() as logs:
            answer = program.answer(install(handler), 1, 2)
        assert (answer.ret, answer.signo) == (-errno.EFAULT, SIGSEGV)
        assert answer.siginfo == SigInfo(SI_KERNEL, True, 0)
        assert (program.process.ended, program.process.exit_signal) == (True, SIGSEGV)
        assert world.kernel.take_ended() == [program.process]
        assert other.mmap(1, at=BASE) == BASE
        (entry,) = [log for log in logs if log["event"] == "oops"]
        assert (entry["pid"], entry["call"], entry["args"][:2]) == (program.pid, "syscall_0x7777", ["0x1", "0x2"])
        assert any(f"{BASE:#x}" in vma for vma in entry["vmas"])

    def test_catching_sigsegv_does_not_save_it(self, program: Program, install: Install) -> None:
        def handler(call: Call) -> int:
            raise KernelBug("an invariant")

        assert program.call(Nr.RT_SIGACTION, SIGSEGV, Disposition.CAUGHT) == 0
        with structlog.testing.capture_logs():
            answer = program.answer(install(handler))
        assert program.process.ended
        assert answer.siginfo is not None
        assert answer.siginfo.fatal

    def test_a_broken_invariant_is_found_by_the_next_request(self, world: World, program: Program) -> None:
        """In tests alone: check_invariants. It is the machine that is broken then, not the task."""
        program.mmap(1, at=BASE)
        program.mm.total_vm += 1
        with pytest.raises(KernelBug):
            program.call(Nr.GETPID)
        program.mm.total_vm -= 1
        assert program.call(Nr.GETPID) == program.pid
