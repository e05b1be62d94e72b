"""Fork: the child is attached with the clone's token when the parent goes on; a plain fork is refused clearly."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

import pytest

from shared.client import KerneldError, Process
from shared.uapi.syscalls import Nr
from shared.wire import Request
from tests.shared.fake_kerneld import Said, Script
from tests.shared.fake_memory import FakeMemory
from tests.support.descriptors import open_descriptors

Apart = Callable[[Script], Process]


class Cloning:
    """Hands out token 77, takes it once, and tells how many children have attached as the parent's ppid."""

    def __init__(self, refuse: bool = False) -> None:
        self.refuse = refuse
        self.children = 0
        self.memory = FakeMemory()

    def __call__(self, request: Request, fds: list[int]) -> Said:
        if request.nr == Nr.CLONE:
            return Said(77)
        if request.nr == Nr.GETPPID:
            return Said(self.children)
        if request.nr == Nr.RT_SIGACTION:
            return Said(0)
        if request.nr == Nr.ATTACH and request.args[2]:
            if self.refuse or request.args[1:3] != (0, 77):
                return Said(-errno.EPERM)
            self.children += 1
            return Said(2000 + self.children)
        return self.memory(request, fds)


def _fork(process: Process, child: Callable[[], bool]) -> tuple[int, int]:
    """Fork with the library; return the child's pid and exit status: 0 when `child` said True."""
    pid = process.fork()
    if pid == 0:
        status = 99
        try:
            status = 0 if child() else 1
        finally:
            os._exit(status)
    return pid, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_child_is_attached_when_the_parent_goes_on(attached_apart: Apart) -> None:
    process = attached_apart(Cloning())
    pid = process.fork()
    if pid == 0:
        signal.pause()
    try:
        assert process.getppid() == 1
        assert process.pid == 1234
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_child_has_its_own_connection_and_the_parents_book(attached_apart: Apart) -> None:
    process = attached_apart(Cloning())
    ptr = process.malloc(1000)

    def handler(_signo: int, _info: object) -> None: ...

    process.sigaction(signal.SIGSEGV, handler)
    socket_of_parent = process._connection._socket

    def child() -> bool:
        process.free(ptr)
        return (
            process.pid == 2001
            and process.getppid() == 1
            and socket_of_parent.fileno() == -1
            and process.malloc(1000) == ptr
            and process.sigaction(signal.SIGSEGV, signal.SIG_DFL) is handler
        )

    assert _fork(process, child)[1] == 0
    process.free(ptr)


def test_children_of_children_attach_too(attached_apart: Apart) -> None:
    process = attached_apart(Cloning())
    assert _fork(process, lambda: _fork(process, lambda: process.pid == 2002)[1] == 0)[1] == 0


def test_a_child_that_cannot_attach_is_gone_and_said(attached_apart: Apart) -> None:
    process = attached_apart(Cloning(refuse=True))
    # The scripted kerneld runs, so that there is a child; what other tests have left unreaped goes first.
    while os.waitpid(-1, os.WNOHANG) != (0, 0):
        pass
    with pytest.raises(KerneldError, match=r"could not attach.*Operation not permitted"):
        process.fork()
    assert os.waitpid(-1, os.WNOHANG) == (0, 0)


def test_a_child_that_dies_before_it_attaches_does_not_hold_the_parent(
    attached_apart: Apart, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = attached_apart(Cloning())
    monkeypatch.setattr(process, "_become_child", lambda _token: os.kill(os.getpid(), signal.SIGKILL))
    _pid, status = _fork(process, lambda: True)
    assert status == -signal.SIGKILL


def test_no_descriptor_is_left_by_forks(attached_apart: Apart) -> None:
    process = attached_apart(Cloning())
    before = len(open_descriptors())
    for _fork_number in range(3):
        assert _fork(process, lambda: len(open_descriptors()) == before)[1] == 0
    assert len(open_descriptors()) == before


def test_a_plain_fork_is_refused_before_anything_is_sent(attached_apart: Apart) -> None:
    process = attached_apart(Cloning())

    def refused(call: Callable[[], object]) -> bool:
        try:
            call()
        except KerneldError as error:
            return "Process.fork()" in str(error)
        return False

    def batch() -> None:
        with process.batch() as b:
            b.call(Nr.GETPID)

    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            calls = (process.getpid, lambda: process.mem.load_u8(0), lambda: process.ram(1), batch, process.fork)
            status = sum(not refused(call) for call in calls)
            process.close()
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert process.getppid() == 0
