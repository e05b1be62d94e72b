"""Who may trace whom, what is hidden from whom, how many, and when a trace ends."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from kerneld.errors import SysError
from kerneld.mm.space import pace
from kerneld.server.connection import Datagram
from kerneld.server.exchange import answer_datagram
from kerneld.server.reply import Outcome
from kerneld.syscalls.kernel import Sender
from kerneld.syscalls.table import HANDLERS
from kerneld.trace.fprobe import FPROBES
from kerneld.trace.tracing import MAX_RING_BYTES
from shared.trace.attr import TraceAttr
from shared.trace.events import (
    ACCESS_ENTER,
    ACCESS_EXIT,
    MM_PAGE_ALLOC,
    PROCESS_EXIT,
    PTE_REPLACE,
    PTE_SET,
    SYS_ENTER,
)
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE
from shared.uapi.syscalls import ABI_VERSION, Nr
from shared.wire import pack_request, unpack_replies
from tests.support.elf_programs import STATIC
from tests.support.in_process import Client
from tests.support.programs import OTHER, ROOT, USER, Program, page
from tests.support.traced import Trace, TracedWorld


def ask(program: Program, *globs: str, pids: tuple[int, ...] = (), data_pages: int = 1) -> int:
    """Return what perf_event_open returns; what it opens is closed at once."""
    answer = program.answer(Nr.PERF_EVENT_OPEN, 0, data=TraceAttr(globs, pids, data_pages).pack())
    for fd in answer.fds:
        os.close(fd)
    return answer.ret


@pytest.mark.parametrize("data_pages", [0, 3, 6])
def test_a_ring_is_a_power_of_two(world: TracedWorld, program: Program, data_pages: int) -> None:
    assert ask(program, "*", data_pages=data_pages) == -errno.EINVAL


def test_a_ring_has_a_largest_size(world: TracedWorld) -> None:
    user, root = world.attach(USER), world.attach(ROOT)
    most = MAX_RING_BYTES >> PAGE_SHIFT
    assert ask(root, "sched:*", data_pages=most * 2) == -errno.ENOSPC
    assert ask(root, "sched:*", data_pages=most) > 0
    assert ask(user, "sched:*", data_pages=most // 8) == -errno.ENOSPC
    assert ask(user, "sched:*", data_pages=most // 16) > 0
    for program in (user, root):
        world.kernel.process_died(program.process)


@pytest.mark.parametrize("globs", [("nonsense",), ("*", "nope:*"), ("",)])
def test_a_glob_that_names_nothing(world: TracedWorld, program: Program, globs: tuple[str, ...]) -> None:
    assert ask(program, *globs) == -errno.EINVAL
    assert FPROBES.functions == []


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x10\0\0\0", bytes(16), b"\x10\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0*",
        b"\x10\0\0\0\1\0\0\0\xff\xff\xff\xff\2\0\0\0*\0", b"\x10\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0\xff\0",
        b"\x10\0\0\0\1\0\0\0\0\0\0\0\xff\xff\xff\xff*\0",
    ],
)  # fmt: skip
def test_a_request_that_is_none(world: TracedWorld, program: Program, data: bytes) -> None:
    assert program.call(Nr.PERF_EVENT_OPEN, 0, data=data) == -errno.EINVAL


def test_whom_one_may_trace(world: TracedWorld) -> None:
    user, same, other, root = world.attach(USER), world.attach(USER), world.attach(OTHER), world.attach(ROOT)
    assert ask(user, "*", pids=(same.pid,)) > 0
    assert ask(user, "*", pids=(user.pid, other.pid)) == -errno.EPERM
    assert ask(user, "*", pids=(root.pid,)) == -errno.EPERM
    assert ask(user, "*", pids=(1,)) == -errno.ESRCH
    assert ask(root, "*", pids=(user.pid, other.pid)) > 0
    world.kernel.process_died(user.process)
    world.kernel.process_died(root.process)


def test_whoever_has_another_group_is_another(world: TracedWorld) -> None:
    """As for process_vm_readv and /proc: Linux v6.8 kernel/ptrace.c:__ptrace_may_access()."""
    user = world.attach(USER)
    sender = Sender(user.pid + 1000, USER, OTHER)
    grouped = Program(world.kernel, world.kernel.attach(sender, ABI_VERSION, 0, 0))
    assert ask(user, "*", pids=(grouped.pid,)) == -errno.EPERM
    with world.trace(opener=user) as trace:
        grouped.mmap(1, at=page(0))
        assert trace.records() == []
        assert set(trace.comms) == {user.pid}


def test_a_user_sees_its_own_processes_alone_and_no_frame_numbers(world: TracedWorld) -> None:
    user, other = world.attach(USER), world.attach(OTHER)
    with world.trace(opener=user) as trace:
        for program in (user, other):
            program.mmap(8, at=page(0))
            program.touch(0, 4)
            program.call(Nr.MADVISE, page(0), PAGE_SIZE, Madv.DONTNEED)
            program.store(page(0), b"x")
        records = trace.records()
    assert {record.pid for record in records} == {user.pid}
    assert {record.owner for record in records} <= {0, user.pid}
    assert set(trace.comms) == {user.pid}
    entries = [record.fields["new"] for record in records if record.event is PTE_SET]
    assert entries
    assert {entry >> 12 & 0xFF_FFFF_FFFF for entry in entries} == {0}
    assert {entry & 1 for entry in entries} == {1}
    assert {record.fields["pfn"] for record in records if record.event is MM_PAGE_ALLOC} == {0}


def test_what_reclaim_does_to_a_users_memory_is_told_without_who_needed_it() -> None:
    world = TracedWorld(4 << 20, swap_bytes=4 << 20)
    user, other = world.attach(USER), world.attach(OTHER)
    user.mmap(400, at=page(0))
    user.touch(0, 400)
    other.mmap(900, at=page(0))
    with world.trace(opener=user, data_pages=1024) as trace:
        other.touch(0, 900)
        records = trace.records()
    assert {record.owner for record in records} == {user.pid}
    assert {(record.pid, record.tid, record.nr, record.address) for record in records} == {(0, 0, 0, 0)}
    assert {record.event for record in records} == {PTE_REPLACE}
    world.close()


def test_a_copy_that_waits_for_a_child_is_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever needs the frames of another's copy is not told where its pages are; nor when it goes with its parent."""
    world = TracedWorld(4 << 20, swap_bytes=8 << 20)
    user, other = world.attach(USER), world.attach(OTHER)
    other.mmap(400, at=page(0))
    other.touch(0, 400)
    assert other.call(Nr.CLONE) > 0
    user.mmap(1200, at=page(0))
    mine = user.mm.number
    with world.trace(opener=user, data_pages=4096) as trace, world.trace(data_pages=4096) as superuser:
        for _ in range(3):
            user.touch(0, 1200)
        copies = {record.fields["mm"] for record in superuser.records() if record.owner == other.pid}
        assert len(copies) == 2
        # As the OOM killer does, for a frame that the user needs.
        monkeypatch.setitem(HANDLERS, int(Nr.GETUID), lambda _call: world.kernel.oom_tasks.kill(other.pid))
        user.call(Nr.GETUID)
        records = trace.records()
        assert {record.fields["mm"] for record in records if "mm" in record.fields} == {mine}
        assert {record.owner for record in records} == {0, user.pid}
    world.close()


def test_who_becomes_one_of_us_is_seen_from_its_next_execve_on(world: TracedWorld, tmp_path: Path) -> None:
    """Until then its memory is the superuser's still: it is not dumpable."""
    path = tmp_path / "program"
    path.write_bytes(STATIC.build())
    path.chmod(0o755)
    root, user = world.attach(ROOT), world.attach(USER)
    climber = Program(world.kernel, world.kernel.attach(Sender(user.pid + 1000, ROOT, USER), ABI_VERSION, 0, 0))
    with world.trace("raw_syscalls:sys_enter", opener=user) as trace:
        climber.call(Nr.GETPID)
        assert trace.records() == []
        climber.call(Nr.SETUID, USER)
        climber.call(Nr.GETPID)
        assert trace.records() == []
        with path.open("rb") as file:
            assert climber.call(Nr.EXECVE, 1, 1, 1, data=b"x\0\0", fds=[file.fileno()]) == 0
        trace.records()
        climber.call(Nr.GETPID)
        (seen,) = trace.records(SYS_ENTER)
        assert (seen.pid, seen.nr) == (climber.pid, Nr.GETPID)
        root.call(Nr.GETPID)
        assert trace.records() == []


def test_only_the_pids_asked_for(world: TracedWorld) -> None:
    one, two = world.attach(), world.attach()
    with world.trace("raw_syscalls:*", pids=(two.pid,)) as trace:
        one.call(Nr.GETPID)
        two.call(Nr.GETPID)
        assert {record.pid for record in trace.records()} == {two.pid}


ENDS: list[Callable[[TracedWorld, Program], object]] = [
    lambda world, program: world.kernel.thread_exited(program.thread),
    lambda world, program: world.kernel.process_died(program.process),
    lambda _world, program: program.answer(Nr.EXIT_GROUP, 0),
    lambda _world, program: program.answer(Nr.STORE, 0, 1, data=b"x"),
]


@pytest.mark.parametrize("end", range(len(ENDS)))
def test_a_trace_ends_with_whoever_opened_it(world: TracedWorld, end: int) -> None:
    opener = world.attach(ROOT)
    trace = Trace(opener)
    assert FPROBES.functions
    ENDS[end](world, opener)
    world.kernel.take_ended()
    assert FPROBES.functions == []
    assert trace.reader.is_ended
    assert trace.records()
    trace.reader.close()


def test_a_trace_is_its_process_own_to_close(world: TracedWorld, program: Program) -> None:
    with world.trace() as trace:
        assert program.call(Nr.CLOSE, trace.handle) == -errno.EBADF
        assert program.call(Nr.CLOSE, 0) == -errno.EBADF


def test_a_reader_that_is_gone_ends_the_trace_at_the_next_wake_up(world: TracedWorld, program: Program) -> None:
    trace = Trace(world.tracer)
    trace.reader._words[9] = 1
    trace.reader.close()
    program.call(Nr.GETPID)
    assert FPROBES.functions == []


def test_a_slow_reader_is_told_what_it_lost_and_the_others_lose_nothing(world: TracedWorld, program: Program) -> None:
    calls = 200
    with world.trace("raw_syscalls:*", data_pages=1) as slow, world.trace("raw_syscalls:*") as quick:
        before = len(quick.records(SYS_ENTER))
        for _ in range(calls):
            assert program.call(Nr.GETPID) == program.pid
        assert len(quick.records(SYS_ENTER)) == before + calls
        kept = len(slow.records())
        program.call(Nr.GETPID)
        kept += len(slow.records())
        assert slow.lost == slow.reader.lost > 0
        # And the call that opened the other.
        assert kept + slow.lost == 2 * (calls + 2)


def test_an_oops_is_told_and_leaves_the_trace_whole(world: TracedWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_call: object) -> int:
        raise RuntimeError("a bug")

    program = world.attach()
    with world.trace("raw_syscalls:*") as trace:
        monkeypatch.setitem(HANDLERS, int(Nr.GETUID), broken)
        assert program.answer(Nr.GETUID).signo
        enter, leave = trace.records()[-2:]
        assert (enter.fields["id"], leave.fields["id"], leave.fields["signo"]) == (Nr.GETUID, Nr.GETUID, 11)
    world.kernel.take_ended()


def test_a_pid_that_comes_again_is_not_who_it_was(world: TracedWorld) -> None:
    user, mine = world.attach(USER), world.attach(USER)
    with world.trace(opener=user) as trace:
        world.kernel.process_died(mine.process)
        world.kernel.take_ended()
        assert {record.pid for record in trace.records()} == {mine.pid}
        other = world.attach(OTHER, pid=mine.pid)
        other.mmap(1, at=page(0))
        assert trace.records() == []


def test_a_long_request_begins_and_ends_once_under_its_own_number(world: TracedWorld, program: Program) -> None:
    program.mmap(1100, at=page(0))
    with world.trace("machine:*", "fault:*") as trace:
        program.touch(0, 1100)
        records = trace.records()
    first, *faults, last = records
    assert (first.event, last.event) == (ACCESS_ENTER, ACCESS_EXIT)
    assert {record.nr for record in records} == {Nr.TOUCH}
    assert (last.fields["ret"], sum(record.fields["nr_pages"] for record in faults)) == (1100, 1100)


def test_a_long_request_that_nobody_saw_begin(
    world: TracedWorld, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kerneld.syscalls.answer import Call, Work  # noqa: PLC0415
    from kerneld.syscalls.dispatch import run  # noqa: PLC0415
    from kerneld.syscalls.table import RESTART  # noqa: PLC0415

    program.mmap(1100, at=page(0))
    call = Call(world.kernel, program.thread, (page(0), 1100 * PAGE_SIZE, 1, 0, 0, 0), b"", [])
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    result = run(call, Nr.TOUCH)
    assert isinstance(result, Work)
    with world.trace("machine:*", "raw_syscalls:*", "fault:*") as trace:
        from kerneld.syscalls.dispatch import run as traced  # noqa: PLC0415

        outcome: object = result
        while isinstance(outcome, Work):
            call.work = outcome
            outcome = traced(call, RESTART)
        assert outcome == 1100
        assert {record.event.system for record in trace.records() if record.pid == program.pid} == {"fault", "machine"}


@pytest.mark.parametrize("tid", [1 << 32, (1 << 64) - 1])
def test_a_tid_that_is_none_is_refused_as_ever(world: TracedWorld, tid: int) -> None:
    sender = Sender(1 << 23, USER, USER)
    with world.trace(), pytest.raises(SysError) as caught:
        world.kernel.attach(sender, ABI_VERSION, tid, 0)
    assert caught.value.errno == errno.EINVAL


def test_a_value_that_no_record_has_room_for_costs_that_record_alone(world: TracedWorld) -> None:
    with world.trace("sched:*") as trace:
        world.tracing.point(PROCESS_EXIT).emit(0, b"x", -1, 0)
        world.tracing.point(PROCESS_EXIT).emit(0, b"x", 1, 0)
        world.tracing.flush()
        assert [record.fields["pid"] for record in trace.records()] == [1]


def test_a_request_that_makes_very_many_records_does_not_gather_them_all(world: TracedWorld) -> None:
    with world.trace("sched:*", data_pages=1) as trace:
        for _ in range(20_000):
            world.tracing.point(PROCESS_EXIT).emit(0, b"x", 1, 0)
            assert sum(len(one.records) for one in world.tracing._traces) <= 8192
        assert trace.records()
        world.tracing.flush()
        trace.records()
        assert trace.reader.lost > 10_000


def test_a_datagram_opens_one_trace(world: TracedWorld) -> None:
    """Its descriptors wait with the answer for as long as the client does not read: closed traces cost them too."""
    user = world.attach(USER)
    connection = Client(Sender(user.pid, USER, USER))
    connection.thread = user.thread
    attr = TraceAttr(("sched:*",), (), 1).pack()
    requests = b"".join(
        pack_request(Nr.PERF_EVENT_OPEN, (0,), attr) + pack_request(Nr.CLOSE, (handle,)) for handle in (1, 2, 3)
    )
    datagram = Datagram(memoryview(requests), connection.sender, [], False, False)
    outcome = answer_datagram(world.kernel, cast(Any, connection), datagram, cast(Any, None), 60.0)
    assert isinstance(outcome, Outcome)
    for fd in outcome.fds:
        os.close(fd)
    assert len(outcome.fds) == 2
    rets = [reply.ret for reply in unpack_replies(outcome.answer)]
    assert rets == [1, 0, -errno.EMSGSIZE, -errno.EBADF, -errno.EMSGSIZE, -errno.EBADF]
