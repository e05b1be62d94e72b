"""Stores of a batch that walk through memory: what is faulted in before the first of them, and what never is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from kerneld.syscalls.ahead import fault_stores_ahead
from kerneld.syscalls.answer import Call
from kerneld.syscalls.dispatch import run
from kerneld.syscalls.kernel import Kernel, KernelConfig, Sender
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from shared.wire import Request

BASE = 0x10_0000_0000
RW = Prot.READ | Prot.WRITE
PRIVATE = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED


@pytest.fixture
def call() -> Iterator[Call]:
    kernel = Kernel(KernelConfig(ram_bytes=16 << 20, superuser_uid=os.getuid(), check_invariants=True))
    thread = kernel.attach(Sender(os.getpid(), os.getuid(), os.getgid()), 1, 0, 0)
    yield Call(kernel, thread, (0, 0, 0, 0, 0, 0), b"", [])
    kernel.shutdown()


def do(call: Call, request: Request) -> object:
    nr, call.args, call.data = request
    return run(call, nr)


def mmap(call: Call, pages: int, prot: int = RW, at: int = BASE, flags: int = PRIVATE) -> None:
    args = (at, pages * PAGE_SIZE, int(prot), int(flags), (1 << 64) - 1, 0)
    assert do(call, Request(Nr.MMAP, args)) == at


def stores(pages: int, data: bytes = b"12345678", offset: int = 16) -> list[Request]:
    return [Request(Nr.STORE, (BASE + page * PAGE_SIZE + offset, len(data), 0, 0, 0, 0), data) for page in range(pages)]


def resident(call: Call) -> int:
    return call.mm.rss.resident_pages


@pytest.mark.slow
def test_a_walk_is_faulted_in_at_once_and_says_what_single_stores_say(call: Call) -> None:
    mmap(call, 700)
    before, faults = resident(call), call.process.min_flt
    walk = stores(700)
    assert fault_stores_ahead(call, walk, 0) == 700
    assert resident(call) - before == 700
    assert call.process.min_flt - faults == 700
    assert [do(call, request) for request in walk] == [8] * 700
    assert call.process.min_flt - faults == 700
    call.kernel.check()
    assert do(call, Request(Nr.LOAD, (BASE + 699 * PAGE_SIZE + 16, 8, 0, 0, 0, 0))) == (8, b"12345678", 0, None, ())


@pytest.mark.parametrize("pages", [1, 7])
def test_a_short_run_is_left_alone(call: Call, pages: int) -> None:
    mmap(call, pages)
    before = resident(call)
    assert fault_stores_ahead(call, stores(pages), 0) == pages
    assert resident(call) == before


def test_a_run_ends_at_the_first_request_that_is_no_such_store(call: Call) -> None:
    mmap(call, 100)
    breaks = {
        "another call": Request(Nr.GETPID, (0, 0, 0, 0, 0, 0)),
        "a page left out": stores(12)[11],
        "the same page again": stores(10)[9],
        "into the next page": Request(Nr.STORE, (BASE + 11 * PAGE_SIZE - 4, 8, 0, 0, 0, 0), b"12345678"),
        "a length that is not the data's": Request(Nr.STORE, (BASE + 10 * PAGE_SIZE, 9, 0, 0, 0, 0), b"12345678"),
        "no data": Request(Nr.STORE, (BASE + 10 * PAGE_SIZE, 0, 0, 0, 0, 0), b""),
    }
    for why, request in breaks.items():
        assert fault_stores_ahead(call, [*stores(10), request, *stores(40)[11:]], 0) == 10, why
        assert call.mm.page_table.walk.entries(BASE + 10 * PAGE_SIZE, BASE + 100 * PAGE_SIZE).any() == False, why  # noqa: E712


def test_nothing_is_done_where_a_store_may_fail(call: Call) -> None:
    before = resident(call)
    assert fault_stores_ahead(call, stores(20), 0) == 20
    mmap(call, 20, Prot.READ)
    assert fault_stores_ahead(call, stores(20), 0) == 20
    mmap(call, 10)
    assert fault_stores_ahead(call, stores(20), 0) == 20
    far = Request(Nr.STORE, ((1 << 64) - 4096, 8, 0, 0, 0, 0), b"12345678")
    assert fault_stores_ahead(call, [far] * 20, 0) == 1
    assert resident(call) == before


def test_without_frames_the_store_that_finds_none_says_so(call: Call) -> None:
    mmap(call, 3000)
    free = call.kernel.frames.free_pages
    walk = stores(3000)
    call.kernel.frames.alloc_hook = lambda count: None
    taken = call.kernel.frames.alloc_pages(free - call.kernel.frames.watermark_min - 100, zero=False)
    assert fault_stores_ahead(call, walk, 0) == 3000
    assert not call.process.ended
    call.kernel.frames.put_pages(taken)
    assert do(call, walk[0]) == 8
