"""Signals of the simulated machine: real deaths, handlers, retries."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable

import pytest

from shared.client import KerneldError, Process
from shared.client.signals import Handler
from shared.uapi.signals import Disposition
from shared.uapi.syscalls import Access, Nr
from shared.wire import Request, SigInfo
from tests.shared.attached import Attached
from tests.shared.fake_kerneld import Said, Script, signalled


def _child_status(child: Callable[[], object]) -> int:
    """Run `child` in a real child and return how it ended, as subprocess says it."""
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _attach_and(process: Process, use: Callable[[Process], object]) -> Callable[[], object]:
    return lambda: use(Process.attach(process.socket_path))


@pytest.mark.parametrize("signo", [signal.SIGSEGV, signal.SIGBUS, signal.SIGKILL])
@pytest.mark.parametrize(
    "use",
    [
        lambda p: p.mem.load_u64(0),
        lambda p: p.syscall(Nr.LOAD, 0, 8),
        lambda p: p.call(Nr.LOAD, 0, 8),
        lambda p: p.mem.store(0, bytes(200_000)),
        lambda p: p.mem.load(0, 200_000),
        lambda p: p.mem.touch(0, 4096, Access.WRITE),
        lambda p: p.ram(1),
    ],
)
def test_a_fatal_signal_is_a_real_death(
    attached_apart: Callable[[Script], Process], signo: signal.Signals, use: Callable[[Process], object]
) -> None:
    def script(request: Request, _fds: list[int]) -> Said:
        return Said(1) if request.nr == Nr.ATTACH else signalled(signo, fatal=True)

    process = attached_apart(script)
    assert _child_status(_attach_and(process, use)) == -signo


def test_death_comes_through_a_blocked_and_handled_signal_and_writes_what_was_printed(
    attached_apart: Callable[[Script], Process],
) -> None:
    def script(request: Request, _fds: list[int]) -> Said:
        return Said(1) if request.nr == Nr.ATTACH else signalled(signal.SIGSEGV, fatal=True)

    process = attached_apart(script)
    reader, writer = os.pipe()

    def use(process: Process) -> None:
        os.dup2(writer, 1)
        os.close(writer)
        signal.signal(signal.SIGSEGV, lambda _signo, _frame: None)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGSEGV})
        with open(1, "w", closefd=False) as stdout:
            sys.stdout = stdout
            print("last words", end="")
            process.mem.load_u8(0)

    assert _child_status(_attach_and(process, use)) == -signal.SIGSEGV
    os.close(writer)
    with open(reader, "rb") as pipe:
        assert pipe.read() == b"last words"


class Faulting:
    """Raises a caught SIGSEGV for every access until `fixed`; `done` bytes or pages are done before."""

    def __init__(self, done: int = 0) -> None:
        self.fixed = False
        self.done = done
        self.accesses: list[Request] = []

    def __call__(self, request: Request, _fds: list[int]) -> Said:
        if request.nr in (Nr.LOAD, Nr.STORE, Nr.TOUCH):
            self.accesses.append(request)
            if not self.fixed:
                return signalled(signal.SIGSEGV, fatal=False, ret=self.done, address=0xABC)
            data = b"\x07" * request.args[1] if request.nr == Nr.LOAD else b""
            return Said(request.args[1] if request.nr != Nr.TOUCH else request.args[1] >> 12, data)
        return Said(0)

    def fix(self, _signo: int, _info: SigInfo) -> None:
        self.fixed = True


def test_a_handler_learns_why_and_the_access_is_tried_again(attached: Attached) -> None:
    script = Faulting()
    fake, process = attached(script)
    caught: list[tuple[int, SigInfo]] = []

    def handler(signo: int, info: SigInfo) -> None:
        caught.append((signo, info))
        script.fixed = True

    assert process.sigaction(signal.SIGSEGV, handler) == signal.SIG_DFL
    assert process.mem.load_u32(0x1000) == 0x07070707
    assert caught == [(signal.SIGSEGV, SigInfo(1, False, 0xABC))]
    assert len(script.accesses) == 2
    assert fake.requests[0] == Request(Nr.RT_SIGACTION, (signal.SIGSEGV, Disposition.CAUGHT, 0, 0, 0, 0))


def test_pkru_is_set_again_when_a_handler_returns(attached: Attached) -> None:
    script = Faulting()
    fake, process = attached(script)

    def told(request: Request, fds: list[int]) -> Said:
        said = script(request, fds)
        return Said(0, signo=said.signo, info=SigInfo(4, False, 0xABC, 3, 0x1234)) if said.signo else said

    fake.script = told
    process.sigaction(signal.SIGSEGV, script.fix)
    process.mem.load_u8(0xABC)
    sent = [(request.nr, request.args[0]) for request in fake.requests[1:]]
    assert sent == [(Nr.LOAD, 0xABC), (Nr.WRPKRU, 0x1234), (Nr.LOAD, 0xABC)]


def test_a_handler_that_raises_keeps_its_pkru(attached: Attached) -> None:
    def told(request: Request, _fds: list[int]) -> Said:
        return Said(0, signo=signal.SIGSEGV, info=SigInfo(4, False, 0, 3, 0)) if request.nr == Nr.LOAD else Said(0)

    def jump(_signo: int, _info: SigInfo) -> None:
        raise LookupError

    fake, process = attached(told)
    process.sigaction(signal.SIGSEGV, jump)
    with pytest.raises(LookupError):
        process.mem.load_u8(0)
    assert [request.nr for request in fake.requests[1:]] == [Nr.LOAD]


def test_a_store_goes_on_from_the_first_byte_not_done(attached: Attached) -> None:
    script = Faulting(done=3)
    _fake, process = attached(script)
    process.sigaction(signal.SIGSEGV, script.fix)
    process.mem[0x1000:0x1008] = b"abcdefgh"
    assert [(request.args[0], request.data) for request in script.accesses] == [
        (0x1000, b"abcdefgh"),
        (0x1003, b"defgh"),
    ]


def test_a_long_store_goes_on_too(attached: Attached) -> None:
    script = Faulting(done=5000)
    _fake, process = attached(script)
    process.sigaction(signal.SIGSEGV, script.fix)
    content = bytes(range(250)) * 600
    process.mem.store(0x1000, content)
    again = script.accesses[1:]
    assert b"".join(request.data for request in again) == content[5000:]
    assert again[0].args[0] == 0x1000 + 5000


def test_a_long_load_is_whole_after_a_signal(attached: Attached) -> None:
    script = Faulting(done=5000)
    _fake, process = attached(script)
    process.sigaction(signal.SIGSEGV, script.fix)
    assert process.mem.load(0x1000, 150_000) == b"\x07" * 150_000


def test_a_touch_goes_on_at_the_page_that_faulted(attached: Attached) -> None:
    script = Faulting(done=2)
    _fake, process = attached(script)
    process.sigaction(signal.SIGSEGV, script.fix)
    assert process.mem.touch(0x1000, 4 * 4096, Access.WRITE) == 4
    assert [request.args[:3] for request in script.accesses] == [(0x1000, 0x4000, 1), (0x3000, 0x2000, 1)]


def test_a_handler_may_raise_and_the_next_call_is_in_order(attached: Attached) -> None:
    script = Faulting()
    _fake, process = attached(script)

    def jump(_signo: int, _info: SigInfo) -> None:
        raise LookupError

    process.sigaction(signal.SIGSEGV, jump)
    for _try in range(2):
        with pytest.raises(LookupError):
            process.mem.load_u8(0)
    script.fixed = True
    assert process.mem.load_u8(0) == 7


def test_a_handler_may_call_the_kernel(attached: Attached) -> None:
    script = Faulting()
    fake, process = attached(script)

    def handler(_signo: int, _info: SigInfo) -> None:
        process.mprotect(0x1000, 4096, 3)
        script.fixed = True

    process.sigaction(signal.SIGSEGV, handler)
    assert process.mem.load_u8(0) == 7
    assert [request.nr for request in fake.requests] == [Nr.RT_SIGACTION, Nr.LOAD, Nr.MPROTECT, Nr.LOAD]


def test_the_same_signal_within_its_handler_is_death(attached_apart: Callable[[Script], Process]) -> None:
    def use(process: Process) -> None:
        process.sigaction(signal.SIGSEGV, lambda _signo, _info: process.mem.load_u8(0))
        process.mem.load_u8(0)

    assert _child_status(_attach_and(attached_apart(Faulting()), use)) == -signal.SIGSEGV


def test_a_raw_call_returns_what_was_done_after_the_handler(attached: Attached) -> None:
    script = Faulting(done=1)
    _fake, process = attached(script)
    process.sigaction(signal.SIGSEGV, script.fix)
    assert process.syscall(Nr.STORE, 0, 2, data=b"ab") == 1
    assert len(script.accesses) == 1


def test_a_signal_that_nothing_catches_is_an_error_not_a_loop(attached: Attached) -> None:
    _fake, process = attached(Faulting())
    with pytest.raises(KerneldError, match="nothing here catches"):
        process.mem.load_u8(0)


@pytest.mark.parametrize(
    ("action", "number"), [(signal.SIG_DFL, 0), (signal.SIG_IGN, 1), (lambda _signo, _info: None, 2)]
)
def test_sigaction_says_which_and_returns_what_was(attached: Attached, action: Handler, number: int) -> None:
    fake, process = attached(lambda _request, _fds: Said(0))
    process.sigaction(signal.SIGBUS, action)
    assert fake.requests[0].args[:2] == (signal.SIGBUS, number)
    assert process.sigaction(signal.SIGBUS, signal.SIG_DFL) == action


def test_a_refused_sigaction_changes_nothing(attached: Attached) -> None:
    def script(request: Request, _fds: list[int]) -> Said:
        return Said(0 if request.nr == Nr.ATTACH or request.args[1] == 0 else -errno.EINVAL)

    _fake, process = attached(script)
    with pytest.raises(OSError, match="Invalid argument"):
        process.sigaction(signal.SIGKILL, signal.SIG_IGN)
    assert process.sigaction(signal.SIGKILL, signal.SIG_DFL) == signal.SIG_DFL
    with pytest.raises(TypeError):
        process.sigaction(signal.SIGSEGV, 7)  # type: ignore[arg-type]
