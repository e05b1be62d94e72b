"""Requests that take long, asked in this process: what is left to do goes on when the test says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.mm.space import pace
from kerneld.server import exchange
from kerneld.server.batch import Batch
from kerneld.server.exchange import answer_usual
from kerneld.syscalls.kernel import Kernel, KernelConfig, Sender
from shared import wire
from shared.uapi.syscalls import Nr
from tests.support.in_process import Client

RAM_BYTES = 32 << 20


GIB = 1 << 30


PRIVATE_NORESERVE = 0x4022


def kernel_in_pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Yield a kernel that gives way as often as it can, for a fixture; see that nothing is left in it at the end."""
    monkeypatch.setattr(exchange, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    kernel = Kernel(KernelConfig(ram_bytes=RAM_BYTES, check_invariants=True))
    free_pages = kernel.frames.free_pages
    yield kernel
    for process in list(kernel.processes.values()):
        kernel.process_died(process)
    assert kernel.frames.free_pages == free_pages
    kernel.shutdown()


def attached(kernel: Kernel, pid: int) -> Client:
    client = Client(Sender(pid, 0, 0))
    client.attached(kernel, kernel.attach(client.sender, 1, pid, 0), client.sender)
    return client


def pack(nr: Nr, *args: int, data: bytes = b"") -> bytes:
    return wire.pack_request(nr, args, data)


def ask(client: Client, datagram: bytes) -> Batch | list[wire.Reply]:
    """Send one request; returns the replies, or what is left to do."""
    outcome = answer_usual(client, memoryview(datagram), len(datagram))
    if isinstance(outcome, Batch):
        return outcome
    assert outcome is not None
    return wire.unpack_replies(outcome if isinstance(outcome, bytes) else outcome.answer)


def call(client: Client, nr: Nr, *args: int, data: bytes = b"") -> wire.Reply:
    replies = ask(client, pack(nr, *args, data=data))
    if isinstance(replies, Batch):
        replies, _ = finish(replies, client)
    (reply,) = replies
    return reply


def finish(batch: Batch, other: Client) -> tuple[list[wire.Reply], int]:
    """Go on to the end, and serve another client before each piece; returns the replies, and how often it was."""
    served = 0
    assert other.thread is not None
    while True:
        served += call(other, Nr.GETPID).ret == other.thread.process.pid
        outcome = batch.run(0.0)
        if outcome is not None:
            return wire.unpack_replies(outcome.answer), served


def map_bytes(client: Client, length: int) -> int:
    return call(client, Nr.MMAP, 0, length, 3, PRIVATE_NORESERVE, (1 << 64) - 1, 0).ret


def begun(client: Client, nr: Nr, *args: int, data: bytes = b"") -> Batch:
    batch = ask(client, pack(nr, *args, data=data))
    assert isinstance(batch, Batch)
    return batch
