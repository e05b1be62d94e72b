"""Requests that take long: others are served between two pieces of one, the machine is whole there, and it may die."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from kerneld.fs import proc_smaps
from kerneld.fs.file_limits import FileRules
from kerneld.server import exchange
from kerneld.server.batch import Batch
from kerneld.server.connection import Datagram
from kerneld.server.exchange import answer_datagram
from kerneld.server.reply import Outcome
from kerneld.syscalls.dispatch import dispatch
from kerneld.syscalls.kernel import Kernel, KernelConfig
from shared import wire
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.long_requests import RAM_BYTES, attached, begun, call, finish, kernel_in_pieces, map_bytes, pack

LONG = 64 << 20
"""Bytes: 32 page tables, each a piece. The machine is checked after each."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    yield from kernel_in_pieces(monkeypatch)


def test_others_are_served_while_memory_is_touched(kernel: Kernel) -> None:
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    vaddr = map_bytes(long, LONG)
    (reply,), served = finish(begun(long, Nr.TOUCH, vaddr, LONG, 0), other)
    assert reply.ret == LONG // PAGE_SIZE
    assert served > 4


@pytest.mark.parametrize("view", [b"self/smaps", b"self/smaps_rollup"])
def test_others_are_served_while_a_view_is_made(kernel: Kernel, view: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc_smaps, "_LEAVES_AT_ONCE", 4)
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    vaddr = map_bytes(long, LONG)
    assert call(long, Nr.TOUCH, vaddr, LONG, 0).ret == LONG // PAGE_SIZE
    (reply,), served = finish(begun(long, Nr.PROCREAD, 0, 4096, data=view), other)
    assert b"Rss:" in reply.data
    assert served > 4


def test_what_comes_behind_a_long_request_waits_for_it(kernel: Kernel) -> None:
    """In one datagram: before, the long one, behind it."""
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    vaddr = map_bytes(long, LONG)
    requests = pack(Nr.STORE, vaddr, 1, data=b"x") + pack(Nr.TOUCH, vaddr, LONG, 0) + pack(Nr.GETPID)
    datagram = Datagram(memoryview(requests), long.sender, [], False, False)
    batch = answer_datagram(kernel, cast(Any, long), datagram, cast(Any, None), 0.0)
    assert isinstance(batch, Batch)
    replies, served = finish(batch, other)
    assert [reply.ret for reply in replies] == [1, LONG // PAGE_SIZE, os.getpid()]
    assert served > 4


def test_memory_that_goes_meanwhile_is_a_fault(kernel: Kernel) -> None:
    long, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    vaddr = map_bytes(long, LONG)
    batch = begun(long, Nr.TOUCH, vaddr, LONG, 0)
    assert long.thread is not None
    munmap = wire.Request(int(Nr.MUNMAP), (vaddr + LONG // 2, LONG // 2, 0, 0, 0, 0), b"")
    assert dispatch(kernel, long.thread, munmap, []).ret == 0
    (reply,), _ = finish(batch, other)
    assert (reply.ret, reply.signo) == (LONG // 2 // PAGE_SIZE, 11)


def test_who_is_looked_at_may_die_meanwhile(kernel: Kernel) -> None:
    seen, reader = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    vaddr = map_bytes(seen, LONG)
    assert call(seen, Nr.TOUCH, vaddr, LONG, 0).ret == LONG // PAGE_SIZE
    batch = begun(reader, Nr.PROCREAD, 0, 4096, data=b"%d/smaps" % os.getpid())
    assert seen.thread is not None
    kernel.process_died(seen.thread.process)
    outcome: Outcome | None = None
    while outcome is None:
        outcome = batch.run(0.0)
    assert [reply.ret for reply in wire.unpack_replies(outcome.answer)] == [-3]


def test_who_waits_for_its_answer_may_die_meanwhile(kernel: Kernel) -> None:
    long = attached(kernel, os.getpid())
    vaddr = map_bytes(long, LONG)
    batch = begun(long, Nr.TOUCH, vaddr, LONG, 0)
    assert long.thread is not None
    kernel.process_died(long.thread.process)
    batch.close()


def test_descriptors_that_come_with_long_requests_are_on_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with many connections would else hold 253 of the daemon's by each."""
    monkeypatch.setattr(exchange, "SLICE_SECONDS", 0.0)
    kernel = Kernel(KernelConfig(ram_bytes=RAM_BYTES, files=FileRules(of_a_process=100)))
    before = len(os.listdir("/proc/self/fd"))
    first, second = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    vaddr = map_bytes(first, LONG)
    requests = pack(Nr.TOUCH, vaddr, LONG, 0) + pack(Nr.MMAP, 0, PAGE_SIZE, 1, 1, 0, 0)

    def send() -> Batch:
        fds = [os.memfd_create("one of many") for _ in range(60)]
        datagram = Datagram(memoryview(requests), first.sender, fds, False, False)
        batch = answer_datagram(kernel, cast(Any, first), datagram, cast(Any, None), 0.0)
        assert isinstance(batch, Batch)
        return batch

    batches = [send(), send()]
    assert [len(batch.fds) for batch in batches] == [60, 0]
    assert len(kernel.files.accounts) == 60
    replies, _ = finish(batches[0], second)
    assert replies[1].ret > 0
    assert len(kernel.files.accounts) == 1
    for batch in batches:
        batch.close()
    for process in list(kernel.processes.values()):
        kernel.process_died(process)
    assert len(kernel.files.accounts) == 0
    assert len(os.listdir("/proc/self/fd")) == before
    kernel.shutdown()


def test_a_batch_that_nothing_runs_in_is_on_the_run_queue_while_it_waits(kernel: Kernel) -> None:
    """Numbers that no call has are answered without the processor; who else runs must not be taken for the one."""
    unknown, other = attached(kernel, os.getpid()), attached(kernel, os.getppid())
    assert call(other, Nr.GETPID).ret == os.getppid()
    requests = wire.pack_request(0x7FFF, ()) * 3
    datagram = Datagram(memoryview(requests), unknown.sender, [], False, False)
    batch = answer_datagram(kernel, cast(Any, unknown), datagram, cast(Any, None), 0.0)
    assert isinstance(batch, Batch)
    assert list(kernel.rq.queue) == [unknown.thread]
    assert call(other, Nr.GETPID).ret == os.getppid()
    assert list(kernel.rq.queue) == [unknown.thread]
    replies, _ = finish(batch, other)
    assert [reply.ret for reply in replies] == [-38] * 3
    assert not kernel.rq.queue
