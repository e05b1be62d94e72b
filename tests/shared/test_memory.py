"""Loads and stores: what was written is read, whatever the size, in as few datagrams as the limits allow."""

from __future__ import annotations

import errno

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared import wire
from shared.client import KerneldError, Process
from shared.uapi.syscalls import Access, Nr
from shared.wire import Request
from tests.shared.attached import Attached
from tests.shared.fake_kerneld import FakeKerneld, Said
from tests.shared.fake_memory import HEAP, FakeMemory

SIZE = 1 << 20


def _with_heap(attached: Attached) -> tuple[FakeKerneld, Process]:
    fake, process = attached(FakeMemory())
    process.brk(HEAP + SIZE)
    fake.datagrams.clear()
    return fake, process


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, SIZE), st.one_of(st.integers(0, 99), st.integers(0, SIZE)), st.integers(0, 255)),
        max_size=4,
    )
)
def test_memory_is_as_a_bytearray(shared_heap: Process, writes: list[tuple[int, int, int]]) -> None:
    shared_heap.mem[HEAP : HEAP + SIZE] = bytes(SIZE)
    model = bytearray(SIZE)
    for offset, length, seed in writes:
        end = min(offset + length, SIZE)
        content = bytes((seed + i * 7) & 0xFF for i in range(min(end - offset, 4097))) * 256
        content = content[: end - offset]
        end = offset + len(content)
        model[offset:end] = content
        shared_heap.mem[HEAP + offset : HEAP + end] = content
        assert shared_heap.mem[HEAP + offset : HEAP + end] == content
    assert shared_heap.mem[HEAP : HEAP + SIZE] == model


@pytest.fixture
def shared_heap(attached: Attached) -> Process:
    return _with_heap(attached)[1]


def test_small_accesses_are_one_request_each(attached: Attached) -> None:
    fake, process = _with_heap(attached)
    process.mem[HEAP : HEAP + 5] = b"hello"
    assert process.mem[HEAP : HEAP + 5] == b"hello"
    assert process.mem[HEAP + 1] == b"e"
    process.mem[HEAP] = b"H"
    assert [(r.nr, *r.args[:2]) for r in fake.requests] == [
        (Nr.STORE, HEAP, 5),
        (Nr.LOAD, HEAP, 5),
        (Nr.LOAD, HEAP + 1, 1),
        (Nr.STORE, HEAP, 1),
    ]


def test_long_accesses_go_several_in_a_datagram_within_the_limits(attached: Attached) -> None:
    fake, process = _with_heap(attached)
    content = bytes(range(256)) * (SIZE // 256)
    process.mem[HEAP : HEAP + SIZE] = content
    stores = fake.datagrams[:]
    assert process.mem[HEAP : HEAP + SIZE] == content
    loads = fake.datagrams[len(stores) :]
    assert max(request.args[1] for request in fake.requests) <= wire.MAX_INLINE
    assert max(sum(56 + len(r.data) for r in datagram) for datagram in stores) <= wire.MAX_DATAGRAM
    assert max(sum(16 + r.args[1] for r in datagram) for datagram in loads) <= wire.MAX_REPLY
    assert len(stores) <= SIZE // 110_000 + 1
    assert len(loads) == -(-SIZE // (6 * wire.MAX_INLINE))


def test_no_page_is_accessed_twice_by_a_split(attached: Attached) -> None:
    fake, process = _with_heap(attached)
    process.mem.store(HEAP + 100, bytes(500_000))
    process.mem.load(HEAP + 100, 500_000)
    for nr in (Nr.STORE, Nr.LOAD):
        cuts = [request.args[0] for request in fake.requests if request.nr == nr][1:]
        assert cuts
        assert all(cut % 4096 == 0 for cut in cuts)


@pytest.mark.parametrize(("width", "value"), [(8, 0xAB), (16, 0xABCD), (32, 0x89ABCDEF), (64, 0x0123456789ABCDEF)])
def test_integers_are_little_endian_and_of_their_width(attached: Attached, width: int, value: int) -> None:
    _fake, process = _with_heap(attached)
    getattr(process.mem, f"store_u{width}")(HEAP + 3, value)
    assert process.mem[HEAP + 3 : HEAP + 3 + width // 8] == value.to_bytes(width // 8, "little")
    assert process.mem[HEAP + 3 + width // 8] == b"\0"
    assert getattr(process.mem, f"load_u{width}")(HEAP + 3) == value
    for wrong in (-1, 1 << width):
        with pytest.raises(OverflowError):
            getattr(process.mem, f"store_u{width}")(HEAP, wrong)


def test_buffers_of_wider_items_count_in_bytes(attached: Attached) -> None:
    _fake, process = _with_heap(attached)
    process.mem.store(HEAP, memoryview(bytes(range(16))).cast("Q"))
    assert process.mem[HEAP : HEAP + 16] == bytes(range(16))


def test_nothing_is_no_access(attached: Attached) -> None:
    fake, process = _with_heap(attached)
    process.mem[0:0] = b""
    assert process.mem[0:0] == b""
    assert process.mem.touch(0, 0) == 0
    assert fake.datagrams == []


def test_a_range_must_be_one_and_the_size_must_fit(attached: Attached) -> None:
    fake, process = _with_heap(attached)
    for where in (slice(None, 5), slice(5, None), slice(0, 8, 2), slice(8, 0)):
        with pytest.raises(ValueError, match="range of memory"):
            process.mem[where]
    with pytest.raises(ValueError, match="3 bytes for 2"):
        process.mem[HEAP : HEAP + 2] = b"abc"
    assert fake.datagrams == []


def test_touch_names_the_access(attached: Attached) -> None:
    fake, process = _with_heap(attached)
    assert process.mem.touch(HEAP, 3 * 4096, Access.FETCH) == 3
    assert fake.requests[0] == Request(Nr.TOUCH, (HEAP, 3 * 4096, 2, 0, 0, 0))


@pytest.mark.parametrize("size", [8, 200_000])
def test_an_errno_is_an_oserror(attached: Attached, size: int) -> None:
    _fake, process = attached(lambda request, _fds: Said(1 if request.nr == Nr.ATTACH else -errno.EINVAL))
    for access in (lambda: process.mem.load(0, size), lambda: process.mem.store(0, bytes(size))):
        with pytest.raises(OSError, match="Invalid argument"):
            access()


@pytest.mark.parametrize("size", [8, 200_000])
def test_half_an_access_without_a_signal_is_an_error_not_a_loop(attached: Attached, size: int) -> None:
    _fake, process = attached(lambda _request, _fds: Said(0))
    for access in (lambda: process.mem.load(0, size), lambda: process.mem.store(0, bytes(size))):
        with pytest.raises(KerneldError, match="kerneld moved 0 bytes"):
            access()
