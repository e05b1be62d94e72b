"""The ring: whole records in order, room that runs out and is told of, and a reader that may do what it likes to it."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import struct
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from kerneld.trace.ring import ReaderGone, Ring
from shared.trace.events import BY_NUMBER, SYS_ENTER, SYS_EXIT
from shared.trace.reader import Reader
from shared.trace.record import Lost, Record
from shared.trace.ring import DATA_HEAD, DATA_SIZE, DATA_TAIL, HEADER_BYTES, LOST_WORD, SLEEPING
from shared.uapi.page import PAGE_SIZE
from tests.support.steps import steps_of


def record(number: int) -> bytes:
    """Return a record that carries a number."""
    return SYS_EXIT.layout.pack(SYS_EXIT.layout.size, SYS_EXIT.number, 1, 1, 0, number, 0, 0, 0, number, 0, 0)


def numbers(entries: list[object]) -> list[int]:
    return [entry.fields["id"] for entry in entries if isinstance(entry, Record)]


class Both:
    """A ring of one page, both ends."""

    def __init__(self, data_pages: int = 1) -> None:
        self.ring = Ring(data_pages)
        ring_fd, wake_fd = self.ring.take_fds()
        self.ring_fd = os.dup(ring_fd)
        self.reader = Reader(ring_fd, wake_fd)
        self.map = mmap.mmap(self.ring_fd, 0)
        self.words = memoryview(self.map)[:HEADER_BYTES].cast("Q")

    def read(self) -> list[object]:
        return list(self.reader.read())

    def close(self) -> None:
        self.words.release()
        self.map.close()
        os.close(self.ring_fd)
        self.ring.close()
        self.reader.close()


@pytest.fixture
def both() -> Iterator[Both]:
    made = Both()
    yield made
    made.close()


FIT = PAGE_SIZE // len(record(0))


def test_records_come_whole_and_in_order_round_and_round(both: Both) -> None:
    chance = random.Random(7)
    sent, seen = 0, []
    for _ in range(500):
        count = chance.randrange(FIT)
        both.ring.write([record(sent + number) for number in range(count)])
        sent += count
        seen += numbers(both.read())
    assert seen == list(range(sent))
    assert both.reader.lost == 0


def test_what_finds_no_room_is_lost_and_told(both: Both) -> None:
    both.ring.write([record(number) for number in range(FIT + 10)])
    assert (numbers(both.read()), both.reader.lost) == (list(range(FIT)), 10)
    both.ring.write([record(100)])
    entries = both.read()
    assert entries[0] == Lost(10)
    assert numbers(entries) == [100]
    both.ring.write([record(101)])
    assert numbers(both.read()) == [101]


def test_what_was_lost_while_the_reader_slept_on_is_one_number(both: Both) -> None:
    both.ring.write([record(number) for number in range(FIT)])
    for number in range(30):
        both.ring.write([record(1000 + number)])
    assert numbers(both.read()) == list(range(FIT))
    both.ring.write([record(2000)])
    assert both.read()[0] == Lost(30)
    assert both.reader.lost == 30


def test_losses_at_the_end_are_told_when_it_ends() -> None:
    both = Both()
    both.ring.write([record(number) for number in range(FIT + 3)])
    both.read()
    both.ring.end()
    assert both.read() == [Lost(3)]
    assert both.reader.is_ended
    both.ring.close()
    both.reader.close()
    both.words.release()
    both.map.close()
    os.close(both.ring_fd)


HOSTILE: list[Callable[[Both], None]] = [
    lambda both: both.words.__setitem__(DATA_TAIL, (1 << 64) - 1),
    lambda both: both.words.__setitem__(DATA_TAIL, both.words[DATA_HEAD] + 1),
    lambda both: both.words.__setitem__(DATA_TAIL, both.words[DATA_HEAD] + (1 << 63)),
    lambda both: both.words.__setitem__(DATA_TAIL, 0),
    lambda both: both.words.__setitem__(DATA_TAIL, 3),
    lambda both: both.words.__setitem__(DATA_HEAD, 5),
    lambda both: both.words.__setitem__(DATA_SIZE, 0),
    lambda both: both.words.__setitem__(DATA_SIZE, 1 << 60),
    lambda both: both.words.__setitem__(LOST_WORD, 1 << 40),
    lambda both: both.words.__setitem__(SLEEPING, (1 << 64) - 1),
    lambda both: both.map.__setitem__(slice(0, len(both.map)), b"\xff" * len(both.map)),
    lambda both: both.map.__setitem__(slice(0, len(both.map)), bytes(len(both.map))),
    lambda both: both.map.madvise(mmap.MADV_REMOVE),
]


@pytest.mark.parametrize("deed", range(len(HOSTILE)))
def test_a_hostile_reader_hurts_itself_alone(deed: int) -> None:
    both = Both()
    guard = both.ring._data[-64:]
    for turn in range(40):
        both.ring.write([record(turn * 100 + number) for number in range(FIT // 2)])
        HOSTILE[deed](both)
        assert 0 <= both.ring._room() <= PAGE_SIZE
    del guard
    both.words[DATA_TAIL] = both.ring._head
    both.words[SLEEPING] = 0
    both.ring.write([record(77)])
    at = both.words[DATA_HEAD] - len(record(77)) & PAGE_SIZE - 1
    assert both.words[DATA_HEAD] == both.ring._head
    data = (both.map[HEADER_BYTES:] * 2)[at : at + len(record(77))]
    assert struct.unpack_from("<q", data, 40)[0] == 77
    both.close()


@pytest.mark.parametrize("length", [0, PAGE_SIZE, 1 << 30])
def test_the_file_cannot_be_cut_or_grown_under_the_kernel(both: Both, length: int) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(both.ring_fd, length)
    with pytest.raises(PermissionError):
        fcntl.fcntl(both.ring_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_the_pipe_wakes_who_sleeps_and_nobody_else(both: Both) -> None:
    both.ring.write([record(1)])
    assert both.reader.wait(0)
    both.read()
    assert not both.reader.wait(0)
    both.words[SLEEPING] = 1
    both.ring.write([record(2)])
    assert both.words[SLEEPING] == 0
    assert os.read(both.reader._wake_fd, 10) == b"\0"
    both.ring.write([record(3)])
    with pytest.raises(BlockingIOError):
        os.read(both.reader._wake_fd, 10)


def test_a_full_pipe_makes_no_write_wait(both: Both) -> None:
    # Its reader's end has flags of its own: to take O_NONBLOCK from it does nothing to the kernel's.
    fcntl.fcntl(both.reader._wake_fd, fcntl.F_SETFL, 0)
    for number in range(70_000):
        both.words[SLEEPING] = 1
        both.ring.write([] if number else [record(1)])
    assert numbers(both.read()) == [1]


def test_a_reader_that_is_gone_is_noticed() -> None:
    ring = Ring(1)
    ring_fd, wake_fd = ring.take_fds()
    reader = Reader(ring_fd, wake_fd)
    reader._words[SLEEPING] = 1
    reader.close()
    with pytest.raises(ReaderGone):
        ring.write([record(1)])
    ring.close()


def test_every_event_can_be_packed_and_read() -> None:
    for event in BY_NUMBER.values():
        assert event.layout.size % 8 == 0
        assert event.layout.size < 1 << 16


def test_many_records_that_find_no_room_are_counted_without_a_loop(both: Both) -> None:
    """Others wait meanwhile: as many steps of the interpreter for a hundred records as for a hundred thousand."""
    both.ring.write([record(0) * FIT])
    steps = []
    for count in (100, 100_000):
        before = both.reader.lost
        chunk = record(1) * count
        steps.append(steps_of(partial(both.ring.write, [chunk])))
        assert both.reader.lost - before == count
    assert max(steps) < 60


@pytest.mark.parametrize("seed", range(5))
def test_what_is_lost_does_not_depend_on_how_records_come_together(seed: int) -> None:
    """Records one by one, or many in one piece of memory, of one size or of several."""
    chance = random.Random(seed)
    other = SYS_ENTER.layout.pack(SYS_ENTER.layout.size, SYS_ENTER.number, 1, 1, 0, 7, 0, 0, 0, *([0] * 8))
    one, many = Both(), Both()
    for _ in range(40):
        records = [chance.choice((record(5), other)) if chance.random() < 0.2 else record(5) for _ in range(30)]
        cut = chance.randrange(31)
        one.ring.write(records)
        many.ring.write([part for part in (b"".join(records[:cut]), b"".join(records[cut:])) if part])
        assert one.reader.lost == many.reader.lost
        if chance.random() < 0.5:
            assert one.reader.take() == many.reader.take()
    assert one.reader.lost
    one.close()
    many.close()


def test_records_that_find_no_room_need_not_be_made(both: Both) -> None:
    size = len(record(0))
    both.ring.write([record(0)] * (FIT - 1))
    assert not both.ring.lose(10, size)
    both.ring.write([record(FIT - 1)])
    assert both.ring.lose(10, size)
    assert both.ring.lose(5, size)
    assert both.reader.lost == 15
    assert len(numbers(both.read())) == FIT
    assert not both.ring.lose(10, size)
    both.ring.write([record(77)])
    lost, found = both.read()
    assert lost == Lost(15)
    assert numbers([found]) == [77]
