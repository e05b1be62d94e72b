"""A child of a native program that has not attached yet: whoever asks finds it, and nobody can take its place."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from kerneld.errors import SysError
from kerneld.task.task import Process, Thread
from shared.uapi.native import CLONE_LEFT, CLONE_SHARE
from shared.uapi.page import PAGE_SIZE, Pid
from shared.uapi.ring import NR_CHILDREN
from shared.uapi.syscalls import Nr
from tests.support.programs import ANON, BASE, ROOT, RW, Program, World


class FakeLines:
    """Has what threads say in their rings about their children."""

    def __init__(self) -> None:
        self.said: dict[tuple[Thread, int], Pid] = {}
        self.admitted: list[Process] = []

    def expect_child(self, thread: Thread, token: int) -> None:
        self.said[thread, token % NR_CHILDREN] = 0

    def find_child(self, thread: Thread, token: int) -> Pid:
        return self.said[thread, token % NR_CHILDREN]

    def say(self, thread: Thread, token: int, pid: Pid) -> None:
        self.said[thread, token % NR_CHILDREN] = pid

    def admit(self, pid: Pid, make: Callable[[], Process]) -> None:
        process = make()
        assert process.pid == pid
        self.admitted.append(process)


@pytest.fixture
def lines(world: World) -> FakeLines:
    lines = FakeLines()
    world.kernel.lines = cast(Any, lines)
    return lines


@pytest.fixture
def parent(world: World) -> Iterator[Program]:
    """A native program with a page, whose real process is this one."""
    parent = world.attach(ROOT, pid=os.getpid())
    world.kernel.tlbs.make(parent.process, cast(Any, _NoAgent()))
    parent.thread.tlb = world.kernel.tlbs.get(parent.mm).enter(parent.pid)
    parent.process.may_be_native = True
    parent.thread.line = 1
    parent.mmap(1, RW, ANON, at=BASE)
    parent.store(BASE, b"parent")
    yield parent
    world.kernel.table.line_lost(1)
    world.kernel.process_died(parent.process)
    parent.thread.tlb = None  # It holds the RAM.


class _NoAgent:
    """An agent with nothing to drop: no program runs."""

    def dismiss(self) -> None:
        """Go."""


def fork(parent: Program, lines: FakeLines, real_child: Pid, flags: int = 0) -> int:
    token = parent.call(Nr.CLONE, flags)
    lines.say(parent.thread, token, real_child)
    return token


def find(world: World, pid: Pid) -> Process | None:
    return world.kernel.find_process(pid)


def test_it_is_found_and_attaches_later(world: World, lines: FakeLines, parent: Program, real_child: Pid) -> None:
    token = fork(parent, lines, real_child)
    process = find(world, real_child)
    assert process is not None
    assert lines.admitted == [process]
    child = world.attach(ROOT, pid=real_child, token=token)
    assert child.process is process
    assert child.load(BASE, 6) == b"parent"
    assert process.threads == [child.thread]


def test_one_that_is_not_asked_for_attaches_as_ever(
    world: World, lines: FakeLines, parent: Program, real_child: Pid
) -> None:
    token = fork(parent, lines, 0)
    assert find(world, real_child) is None
    assert world.attach(ROOT, pid=real_child, token=token).load(BASE, 6) == b"parent"


def test_it_shares_memory_where_it_was_made_so(
    world: World, lines: FakeLines, parent: Program, real_child: Pid
) -> None:
    fork(parent, lines, real_child, CLONE_SHARE)
    process = find(world, real_child)
    assert process is not None
    assert process.mm is parent.mm


def test_a_pid_that_is_no_child_is_not_believed(world: World, lines: FakeLines, parent: Program) -> None:
    fork(parent, lines, os.getppid())
    assert find(world, os.getppid()) is None


def test_only_its_token_attaches_it(world: World, lines: FakeLines, parent: Program, real_child: Pid) -> None:
    token = fork(parent, lines, real_child)
    assert find(world, real_child) is not None
    for wrong in (0, token + NR_CHILDREN):
        with pytest.raises(SysError) as refused:
            world.attach(ROOT, pid=real_child, token=wrong)
        assert refused.value.errno == errno.EINVAL
    assert world.attach(ROOT, pid=real_child, token=token).pid == real_child


def test_one_that_is_killed_before_leaves_nothing(
    world: World, lines: FakeLines, parent: Program, real_child: Pid
) -> None:
    token = fork(parent, lines, real_child)
    process = find(world, real_child)
    assert process is not None
    world.kernel.process_died(process)
    assert find(world, real_child) is None
    with pytest.raises(SysError):
        world.attach(ROOT, pid=real_child, token=token)


def test_waiting_children_have_a_field_each(world: World, lines: FakeLines, parent: Program) -> None:
    tokens = [parent.call(Nr.CLONE) for _ in range(NR_CHILDREN)]
    assert {token % NR_CHILDREN for token in tokens} == set(range(NR_CHILDREN))
    assert parent.call(Nr.CLONE) == -errno.EAGAIN
    assert parent.call(Nr.CLONE, 2, tokens[5]) == 0
    assert parent.call(Nr.CLONE) % NR_CHILDREN == 5
    assert parent.call(Nr.MUNMAP, BASE, PAGE_SIZE) == 0


def test_vforks_child_lets_go_of_the_memory_that_it_has_left(
    world: World, lines: FakeLines, parent: Program, real_child: Pid
) -> None:
    child = world.attach(ROOT, pid=real_child, token=fork(parent, lines, real_child, CLONE_SHARE))
    tlb = world.kernel.tlbs.get(parent.mm)
    child.thread.tlb = tlb.enter(child.pid)
    assert len(tlb.views) == 2
    assert parent.call(Nr.CLONE, CLONE_LEFT, child.pid) == 0
    assert tlb.views == {parent.thread.tlb}


def test_nobody_lets_go_of_other_memory(world: World, lines: FakeLines, parent: Program, real_child: Pid) -> None:
    child = world.attach(ROOT, pid=real_child, token=fork(parent, lines, real_child))
    child.thread.tlb = parent.thread.tlb
    for pid in (child.pid, parent.pid, 1 << 40):
        assert parent.call(Nr.CLONE, CLONE_LEFT, pid) == 0
    assert child.thread.tlb is not None
    assert parent.thread.tlb is not None
    child.thread.tlb = None
