"""The five handlers: what they check before the session does, and what they put into the reply."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from kerneld.syscalls import shadow
from kerneld.syscalls.answer import Call
from kerneld.syscalls.kernel import KernelConfig
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE, USER_SHADOW_PT
from tests.shadowpt.world import END, START, World, new_world, page
from tests.support.errors import fails
from tests.support.fake_shadowpt import FakeCred, FakeMm, FakeProcess

POINTER = 0x7FFF_0000_0000


class Caller:
    """A kernel with an opener, a target, and a user who is no superuser."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.user = FakeProcess(77, FakeMm(), cred=FakeCred(superuser=False))
        processes = {process.pid: process for process in (world.opener, world.target, self.user)}
        self.kernel = SimpleNamespace(find_process=processes.get, shadowpt=world.shadowpt, config=KernelConfig())

    def call(self, name: str, *args: int, data: bytes = b"", process: FakeProcess | None = None) -> Any:
        a, b, c, d, e, f = *args, *[0] * (6 - len(args))
        thread: Any = SimpleNamespace(process=process or self.world.opener)
        kernel: Any = self.kernel
        call = Call(kernel, thread, (a, b, c, d, e, f), data, [])
        return getattr(shadow, f"shadowpt_{name}")(call)

    def open(self, end: int = END, start: int = START, **changes: Any) -> Any:
        layout = changes.pop("layout", 0)
        pid = changes.pop("pid", self.world.target.pid)
        data = USER_SHADOW_PT.pack(start, end, changes.pop("entries", self.world.memory.address))
        answer = self.call("open", pid, POINTER, layout, **{"data": data, **changes})
        self.world.fds.extend(answer.fds)
        return answer


@pytest.fixture
def caller() -> Iterator[Caller]:
    with new_world() as world:
        yield Caller(world)


def test_open_answers_with_the_structure_and_two_descriptors(caller: Caller) -> None:
    answer = caller.open(START + 2 * MAX_SPT_RANGE)
    assert answer.ret == 0
    assert answer.data == USER_SHADOW_PT.pack(START, START + MAX_SPT_RANGE, caller.world.memory.address)
    table_fd, sequence_fd = answer.fds
    with mmap.mmap(sequence_fd, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ) as sequence:
        with mmap.mmap(table_fd, 2048 * 24, mmap.MAP_SHARED, mmap.PROT_READ) as table:
            assert caller.call("start") == 0
            assert int.from_bytes(table[:8], "little") == START
        assert int.from_bytes(sequence[:8], "little") == 2


def test_open_checks_in_the_order_of_the_contract(caller: Caller) -> None:
    user = caller.user
    assert fails(errno.EPERM, caller.open, START, layout=1, pid=1, process=user, data=b"")
    for data in (b"", bytes(23), bytes(25)):
        assert fails(errno.EFAULT, caller.open, layout=1, pid=1, data=data)
    assert fails(errno.EINVAL, caller.open, layout=1)
    for pid in (0, 1, 2**64 - 1):
        assert fails(errno.EINVAL, caller.open, pid=pid)
    # A pid_t: what stands in the upper half of the word is no matter.
    caller.open(pid=2**32 + caller.world.target.pid)
    assert fails(errno.EPERM, caller.open, process=user)
    assert fails(errno.EFAULT, caller.open, data=b"")
    assert fails(errno.EINVAL, caller.open, layout=1)
    assert fails(errno.EINVAL, caller.open, pid=1)
    assert fails(errno.EINVAL, caller.open, START)
    assert fails(errno.EBUSY, caller.open, entries=1)
    assert fails(errno.EBUSY, caller.open)


@pytest.mark.parametrize("name", ["close", "start", "stop"])
def test_the_openers_calls(caller: Caller, name: str) -> None:
    for process in (caller.user, caller.world.opener):
        assert fails(errno.EINVAL, caller.call, name, process=process)
    caller.open()
    for process in (caller.user, caller.world.target):
        assert fails(errno.EPERM, caller.call, name, process=process)
    assert caller.call(name) == 0


def test_an_opener_that_is_no_superuser_any_more_still_owns_its_table(caller: Caller) -> None:
    caller.open()
    caller.world.opener.cred.superuser = False
    assert caller.call("start") == 0
    assert fails(errno.EPERM, caller.call, "page_contents", 9)
    assert caller.call("stop") == 0
    assert caller.call("close") == 0


def test_page_contents_is_for_any_superuser(caller: Caller) -> None:
    assert fails(errno.EPERM, caller.call, "page_contents", 9, process=caller.user)
    assert fails(errno.EINVAL, caller.call, "page_contents", 9)
    caller.open()
    caller.world.mm.map(START, END)
    caller.world.mm.set_pfn(page(2), 9)
    for process in (caller.world.opener, caller.world.target):
        answer = caller.call("page_contents", 9, POINTER, process=process)
        assert (answer.ret, answer.data) == (0, (9).to_bytes(8, "little") * 512)
    assert fails(errno.EPERM, caller.call, "page_contents", 9, process=caller.user)
    assert fails(errno.EINVAL, caller.call, "page_contents", 10)
