"""The connection: what a person reads when there is no kerneld, its end, descriptors, and interrupted calls."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import threading
from pathlib import Path
from types import FrameType

import pytest

from shared import wire
from shared.client import KerneldError, KerneldGone, KerneldUnavailable, Process, default_socket_path
from shared.client.connection import Connection
from shared.spin import Spin
from shared.uapi.syscalls import Nr
from shared.wire import Request, SigInfo
from tests.shared.attached import Attached
from tests.shared.fake_kerneld import FakeKerneld, Hangup, Said, settled_fds, signalled
from tests.shared.interrupted import Interruption, raises_at

CODE = (Connection.converse, Connection.exchange, Connection.exchange_for_fds, Connection._run, Spin.wait)
"""What runs during an exchange by the socket."""


def echo(request: Request, _fds: list[int]) -> Said:
    """Answer each request with its first argument."""
    return Said(request.args[0])


def test_the_default_path_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELD_SOCKET", "/a/socket")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_socket_path() == "/a/socket"
    monkeypatch.setenv("KERNELD_SOCKET", "")
    assert default_socket_path() == "/run/user/7/kerneld/kerneld.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_socket_path() == f"/tmp/kerneld-{os.getuid()}/kerneld.sock"


def test_no_socket_is_said_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "none.sock"
    with pytest.raises(KerneldUnavailable) as caught:
        Process.attach(str(path))
    assert str(caught.value) == f"no kerneld at {path}: start one with 'kerneld start'"


def test_a_socket_that_nobody_listens_at_is_no_kerneld(tmp_path: Path) -> None:
    path = str(tmp_path / "stale.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(path)
    with pytest.raises(KerneldUnavailable, match="start one with"):
        Process.attach(path)


@pytest.mark.parametrize("path", ["/dev/null", "/" + "x" * 200, "/dev/null/kerneld.sock"])
def test_no_path_is_a_traceback(path: str) -> None:
    with pytest.raises(KerneldUnavailable) as caught:
        Process.attach(path)
    assert "\n" not in str(caught.value)


def test_attach_names_version_tid_and_token(tmp_path: Path) -> None:
    seen: list[Request] = []

    def script(request: Request, _fds: list[int]) -> Said:
        seen.append(request)
        return Said(4321)

    with FakeKerneld(tmp_path / "s", script).in_thread() as fake, Process.attach(fake.path, 17, 99) as process:
        assert process.pid == 4321
    assert seen == [Request(Nr.ATTACH, (1, 17, 99, 0, 0, 0))]


def test_another_abi_is_an_error_for_people(tmp_path: Path) -> None:
    fake = FakeKerneld(tmp_path / "s", lambda _request, _fds: Said(-errno.EPROTO))
    with fake.in_thread(), pytest.raises(KerneldError, match="another ABI"):
        Process.attach(fake.path)


def test_a_refused_attach_is_an_oserror(tmp_path: Path) -> None:
    fake = FakeKerneld(tmp_path / "s", lambda _request, _fds: Said(-errno.EINVAL))
    with fake.in_thread(), pytest.raises(OSError, match="Invalid argument") as caught:
        Process.attach(fake.path, 0, 5)
    assert caught.value.errno == errno.EINVAL


def test_the_end_of_the_connection_is_kerneld_gone(attached: Attached) -> None:
    def script(request: Request, _fds: list[int]) -> Said:
        if request.nr != Nr.ATTACH:
            raise Hangup
        return Said(1)

    _fake, process = attached(script)
    for _call in range(2):
        with pytest.raises(KerneldGone):
            process.getpid()


def test_a_closed_process_is_gone(attached: Attached) -> None:
    _fake, process = attached(echo)
    process.close()
    with pytest.raises(KerneldGone):
        process.getpid()


@pytest.mark.parametrize(
    "answer",
    [
        wire.pack_reply(0)[:8],
        wire.pack_reply(0) + b"x",
        wire.pack_reply(0) * 2,
        wire.pack_signal_reply(0, 11, SigInfo(1, False, 0))[:-1],
    ],
)
def test_an_answer_against_the_contract_is_an_error(attached: Attached, answer: bytes) -> None:
    _fake, process = attached(lambda request, _fds: Said(1, raw=None if request.nr == Nr.ATTACH else answer))
    with pytest.raises(KerneldError, match="does not follow the ABI"):
        process.getpid()


def test_a_bad_descriptor_is_the_callers_error(attached: Attached) -> None:
    _fake, process = attached(echo)
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        process.syscall(Nr.MMAP, 7, fds=(reader,))
    assert process.syscall(1, 8) == 8


def test_received_descriptors_are_closed_on_exec(attached: Attached, tmp_path: Path) -> None:
    content = tmp_path / "ram"
    content.write_bytes(b"RAM")

    def script(request: Request, _fds: list[int]) -> Said:
        if request.nr != Nr.RAM:
            return Said(1)
        return Said(0x3000, fds=(os.open(content, os.O_RDONLY),))

    _fake, process = attached(script)
    cr3, fd = process.ram(1)
    assert cr3 == 0x3000
    assert os.pread(fd, 9, 0) == b"RAM"
    assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    os.close(fd)


def test_descriptors_that_nobody_asked_for_are_closed(attached: Attached) -> None:
    def script(request: Request, _fds: list[int]) -> Said:
        return Said(1, fds=(os.open("/dev/null", os.O_RDONLY),) if request.nr == Nr.GETTID else ())

    _fake, process = attached(script)
    before = settled_fds(process)
    for _call in range(5):
        process.gettid()
    assert settled_fds(process) == before


def test_an_interrupted_call_leaves_no_stale_answer(attached: Attached) -> None:
    """The handler raises while the answer is still to come; the answer comes; the next call gets its own."""
    interrupted = threading.Event()

    def script(request: Request, _fds: list[int]) -> Said:
        if request.args[0] == 111:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            assert interrupted.wait(30)
        return Said(request.args[0])

    before = signal.signal(signal.SIGUSR1, _interrupt)
    try:
        _fake, process = attached(script)
        with pytest.raises(Interruption):
            process.syscall(1, 111)
        interrupted.set()
        assert [process.syscall(1, value) for value in (222, 333)] == [222, 333]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_late_answer_with_a_caught_signal_is_dropped_and_a_handler_may_not_call(attached: Attached) -> None:
    said: list[str] = []
    answered = threading.Event()

    def script(request: Request, _fds: list[int]) -> Said:
        if request.args[0] == 111:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            assert answered.wait(30)
            return signalled(signal.SIGSEGV, fatal=False)
        return Said(request.args[0])

    def call_from_handler(_signo: int, _frame: FrameType | None) -> None:
        try:
            process.syscall(1, 5)
        except KerneldError as error:
            said.append(str(error))
        answered.set()
        raise Interruption

    before = signal.signal(signal.SIGUSR1, call_from_handler)
    try:
        _fake, process = attached(script)
        with pytest.raises(Interruption):
            process.syscall(1, 111)
        assert process.syscall(1, 222) == 222
        assert "under way" in said[0]
    finally:
        signal.signal(signal.SIGUSR1, before)


def _interrupt(_signo: int, _frame: FrameType | None) -> None:
    raise Interruption


@pytest.mark.parametrize("path", ["converse", "exchange", "exchange_for_fds"])
def test_a_call_interrupted_anywhere_leaves_the_next_one_its_own_answer(attached: Attached, path: str) -> None:
    """CPython runs signal handlers after each CALL: raise at every such place within the connection, in turn."""
    _fake, process = attached(echo)
    connection = process._connection
    first = wire.pack_request(1, (111,))

    def call() -> object:
        return getattr(connection, path)(first)

    places = 0
    while raises_at(places, call, *CODE):
        assert process.syscall(1, 1000 + places) == 1000 + places
        places += 1
    assert places >= 5
