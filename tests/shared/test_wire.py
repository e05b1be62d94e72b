"""The records: what is packed comes back, and what does not follow them is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import wire
from shared.wire import Reply, Request, SigInfo, WireError

U64 = st.integers(0, wire.U64_MASK)
I32 = st.integers(-(1 << 31), (1 << 31) - 1)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)
REQUESTS = st.builds(
    Request, st.integers(0, (1 << 32) - 1), st.tuples(U64, U64, U64, U64, U64, U64), st.binary(max_size=99)
)
PLAIN = st.builds(Reply, I64, st.just(0), st.binary(max_size=99), st.none())
U32 = st.integers(0, (1 << 32) - 1)
SIGNALS = st.builds(SigInfo, I32, st.booleans(), U64, st.just(0), st.none()) | st.builds(
    SigInfo, I32, st.booleans(), U64, U32, U32
)


def test_the_sizes_are_those_of_the_contract() -> None:
    assert (wire.REQUEST.size, wire.REPLY.size, wire.SIGINFO.size) == (56, 16, 16)


def test_a_request_is_laid_out_as_the_c_struct() -> None:
    packed = wire.pack_request(9, (1, 2, 3, 4, 5, 6), b"xy")
    assert packed == struct.pack("<IIQQQQQQ", 58, 9, 1, 2, 3, 4, 5, 6) + b"xy"


def test_a_reply_is_laid_out_as_the_c_struct() -> None:
    assert wire.pack_reply(-22, b"xy") == struct.pack("<Iiq", 18, 0, -22) + b"xy"
    packed = wire.pack_signal_reply(5, 11, SigInfo(2, True, 0x1000))
    assert packed == struct.pack("<IiqiiQ", 32, 11, 5, 2, 1, 0x1000)
    packed = wire.pack_signal_reply(5, 11, SigInfo(4, False, 0x1000, 7, 0xFFFF_FFFC))
    assert packed == struct.pack("<IiqiiQII", 40, 11, 5, 4, 0, 0x1000, 7, 0xFFFF_FFFC)


@given(st.lists(REQUESTS, min_size=1, max_size=5))
def test_requests_come_back(requests: list[Request]) -> None:
    assert wire.unpack_requests(b"".join(wire.pack_request(*request) for request in requests)) == requests


@given(st.lists(PLAIN, max_size=5))
def test_replies_come_back(replies: list[Reply]) -> None:
    assert wire.unpack_replies(b"".join(wire.pack_reply(reply.ret, reply.data) for reply in replies)) == replies


@given(st.binary(max_size=9), st.lists(st.tuples(U64, st.booleans()), min_size=4, max_size=12), st.booleans())
def test_many_of_one_size_come_back_whatever_is_among_them(
    data: bytes, requests: list[tuple[int, bool]], as_bytes: bool
) -> None:
    """Records of one size are unpacked at once; one among them of another size has them go one by one."""
    wanted = [Request(7, (arg, 0, 1, 2, 3, arg), data * (2 if odd else 1)) for arg, odd in requests]
    packed = b"".join(wire.pack_request(*request) for request in wanted)
    found = wire.unpack_requests(packed if as_bytes else memoryview(packed))
    assert found == wanted
    assert {(type(request), type(request.args), type(request.data)) for request in found} == {(Request, tuple, bytes)}


@given(st.lists(I64, min_size=4, max_size=12), st.integers(0, 11), st.integers(0, 64), SIGNALS, st.booleans())
def test_many_plain_replies_come_back_whatever_is_among_them(
    rets: list[int], place: int, signo: int, info: SigInfo, is_data: bool
) -> None:
    wanted = [Reply(ret) for ret in rets]
    packed = [wire.pack_reply(ret) for ret in rets]
    place %= len(rets)
    if is_data:
        wanted[place], packed[place] = Reply(1, 0, bytes(16)), wire.pack_reply(1, bytes(16))
    elif signo:
        packed[place] = wire.pack_signal_reply(1, signo, info)
        wanted[place] = Reply(1, signo, packed[place][wire.REPLY.size :], info)
    assert wire.unpack_replies(b"".join(packed)) == wanted


def test_a_signal_without_its_siginfo_among_plain_replies_is_refused() -> None:
    with pytest.raises(WireError):
        wire.unpack_replies(wire.pack_reply(0) * 4 + wire.REPLY.pack(wire.REPLY.size, 11, 0))


@given(I64, st.integers(1, 64), SIGNALS)
def test_signals_come_back(ret: int, signo: int, info: SigInfo) -> None:
    (reply,) = wire.unpack_replies(wire.pack_signal_reply(ret, signo, info))
    assert (reply.ret, reply.signo, reply.siginfo) == (ret, signo, info)


@given(st.integers(-(1 << 63), -1))
def test_a_negative_argument_is_its_twos_complement(arg: int) -> None:
    (request,) = wire.unpack_requests(wire.pack_request(9, (arg,)))
    assert request.args == (arg + (1 << 64), 0, 0, 0, 0, 0)


def test_inline_data_may_be_any_buffer() -> None:
    for data in (b"abc", bytearray(b"abc"), memoryview(b"abc")):
        assert wire.unpack_requests(wire.pack_request(1, (), data))[0].data == b"abc"
        assert wire.unpack_requests(memoryview(wire.pack_request(1, (), data)))[0].data == b"abc"


def test_seven_arguments_are_refused() -> None:
    with pytest.raises(struct.error):
        wire.pack_request(9, (0,) * 7)


@given(st.lists(REQUESTS, min_size=1, max_size=3), st.data())
def test_a_cut_datagram_is_refused_or_ends_at_a_record(requests: list[Request], data: st.DataObject) -> None:
    packed = [wire.pack_request(*request) for request in requests]
    whole = b"".join(packed)
    cut = data.draw(st.integers(0, len(whole) - 1))
    ends = {sum(map(len, packed[:count])): count for count in range(1, len(packed))}
    if cut in ends:
        assert wire.unpack_requests(whole[:cut]) == requests[: ends[cut]]
    else:
        with pytest.raises(WireError):
            wire.unpack_requests(whole[:cut])


@pytest.mark.parametrize("size", [0, 1, 55, 57, 1 << 31, (1 << 32) - 1])
def test_a_request_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(WireError):
        wire.unpack_requests(struct.pack("<II6Q", size, 9, *range(6)))


@pytest.mark.parametrize("size", [0, 15, 17, (1 << 32) - 1])
def test_a_reply_of_a_wrong_size_is_refused(size: int) -> None:
    with pytest.raises(WireError):
        wire.unpack_replies(struct.pack("<Iiq", size, 0, 0))


@pytest.mark.parametrize("length", [0, 15, 17])
def test_a_signal_without_its_siginfo_is_refused(length: int) -> None:
    with pytest.raises(WireError):
        wire.unpack_replies(struct.pack("<Iiq", 16 + length, 11, 0) + bytes(length))


def test_nothing_is_no_request_and_no_reply() -> None:
    with pytest.raises(WireError):
        wire.unpack_requests(b"")
    assert wire.unpack_replies(b"") == []


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(datagram: bytes) -> None:
    for unpack in (wire.unpack_requests, wire.unpack_replies):
        try:
            records = unpack(datagram)
        except WireError:
            continue
        assert sum((56 if unpack is wire.unpack_requests else 16) + len(record.data) for record in records) == len(
            datagram
        )
