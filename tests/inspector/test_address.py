"""What a person types for a range."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector.address import (
    AddressError,
    Span,
    check_span,
    looks_like_name,
    parse_address,
    parse_end,
    parse_page,
    round_outward,
    split_range,
)
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE


@given(st.integers(0, TASK_SIZE))
def test_an_address_is_hexadecimal_with_0x_or_without(address: int) -> None:
    """As in maps, gdb and every other tool: 1000000000 is 64 GiB there, and was 0x3b9aca00 here."""
    assert parse_address(hex(address)) == parse_address(f"0X{address:x}") == parse_address(f"{address:x}") == address
    assert parse_address(f"{address:012X}") == address


@pytest.mark.parametrize(
    "text", ["", "0x", "7f00g", "7f0000400000a", "-4096", "1_000", "0x10 ", "１２", "64K", "0x0x1", "1000-2000"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize("form", ["{:x}-{:x}", "{:#x}-{:#x}", "{:#x}-{:x}", "{:012x}-{:012X}"])
@given(start=st.integers(0, TASK_SIZE), end=st.integers(0, TASK_SIZE))
def test_a_range_may_be_one_word_as_in_maps(form: str, start: int, end: int) -> None:
    word = form.format(start, end)
    assert not looks_like_name(word)
    both = split_range(word)
    assert both is not None
    assert (parse_address(both[0]), parse_address(both[1])) == (start, end)


@pytest.mark.parametrize(
    "text", ["1000", "1000-", "-1000", "1000-2000-3000", "ld-2.31.so", "0x-1", "1000-+4K", "[a-b]"]
)
def test_what_is_no_range_in_one_word(text: str) -> None:
    assert split_range(text) is None


def test_addresses_end_with_user_space() -> None:
    with pytest.raises(AddressError, match="beyond the end of user space"):
        parse_address(hex(TASK_SIZE + 1))
    with pytest.raises(AddressError, match="no page"):
        parse_page(hex(TASK_SIZE))
    assert parse_page(hex(TASK_SIZE - 1)) == TASK_SIZE - 1


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("+4096", 4096),
        ("+0x4000", 0x4000),
        ("+64K", 64 << 10),
        ("+64k", 64 << 10),
        ("+8M", 8 << 20),
        ("+8MiB", 8 << 20),
        ("+0x10K", 16 << 10),
        ("+1G", 1 << 30),
    ],
)
def test_an_end_may_be_a_size(text: str, size: int) -> None:
    assert parse_end(text, 0x40_0000) == 0x40_0000 + size


@pytest.mark.parametrize("text", ["+", "+K", "+-1", "+1P", "+0xK", "+1.5M", "++1"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(AddressError, match="no size"):
        parse_end(text, 0)


def test_an_end_without_plus_is_an_address() -> None:
    assert parse_end("0x5000", 0x1000) == 0x5000


@pytest.mark.parametrize("end", ["+8K", "+8M", f"{TASK_SIZE + 1:x}", f"{TASK_SIZE - PAGE_SIZE + MAX_SPT_RANGE:x}"])
def test_a_range_past_user_space_is_refused(end: str) -> None:
    start = TASK_SIZE - PAGE_SIZE
    with pytest.raises(AddressError, match="beyond the end of user space"):
        check_span(start, parse_end(end, start))


@pytest.mark.parametrize("end", ["+1G", f"{1 << 47:x}", "ffff800000000000", "fffffffffffff001", "f" * 16])
def test_an_end_behind_what_a_table_holds_may_lie_anywhere(end: str) -> None:
    """The kernel cuts the range first, and then looks whether it is within user space."""
    start = TASK_SIZE - MAX_SPT_RANGE
    span = round_outward(check_span(start, parse_end(end, start)))
    assert span.start == start
    assert TASK_SIZE < span.end < 1 << 64
    with pytest.raises(AddressError, match="beyond the end of user space"):
        check_span(start + 1 + PAGE_SIZE, parse_end(end, start))


@pytest.mark.parametrize("end", ["10000000000000000", "+0x10000000000000000"])
def test_an_end_has_64_bits(end: str) -> None:
    with pytest.raises(AddressError, match="64 bits"):
        check_span(0x1000, parse_end(end, 0x1000))


@pytest.mark.parametrize(("start", "end"), [(0x2000, 0x2000), (0x3000, 0x2000)])
def test_an_empty_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(AddressError, match="empty"):
        check_span(start, end)


@given(st.integers(0, TASK_SIZE - 1), st.integers(1, 1 << 24))
def test_rounding_is_outward_and_least(start: int, length: int) -> None:
    end = min(start + length, TASK_SIZE)
    span = round_outward(check_span(start, end))
    assert span.start <= start < span.start + PAGE_SIZE
    assert span.end - PAGE_SIZE < end <= span.end
    assert span.start % PAGE_SIZE == span.end % PAGE_SIZE == 0
    assert round_outward(span) == span


@pytest.mark.parametrize("text", ["[heap]", "[stack]", "/usr/bin/true", "libc.so.6", "true"])
def test_names(text: str) -> None:
    assert looks_like_name(text)


@pytest.mark.parametrize("text", ["0x1000", "4096", "7ffd1000", "abc", "0xzz", "-1", "+4K"])
def test_what_starts_like_a_number_is_no_name(text: str) -> None:
    assert not looks_like_name(text)


def test_spans_are_start_and_end() -> None:
    assert check_span(0x1000, 0x3000) == Span(0x1000, 0x3000)
