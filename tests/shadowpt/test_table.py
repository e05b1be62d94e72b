"""The order of stores, the sequence word, and what a reader in another process sees of both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerneld.shadowpt.table import ShadowTable
from shared.uapi.page import PAGE_SIZE
from tests.support.descriptors import open_descriptors
from tests.support.effort import examples
from tests.support.fake_shadowpt import read_rows, read_sequence

START, NR_PAGES = 0x7000_0000, 9
MAPPED = 4
Row = tuple[int, int]
"""state_flags and pfn of one page."""


class Client:
    """A table with a client's descriptors."""

    def __init__(self, nr_pages: int = NR_PAGES) -> None:
        self.nr_pages = nr_pages
        self.table = ShadowTable(START, START + nr_pages * PAGE_SIZE)
        self.fd, self.sequence_fd = self.table.client_fds()

    def rows(self) -> list[tuple[int, int, int]]:
        return read_rows(self.fd, self.nr_pages)

    def states(self) -> list[Row]:
        return [(flags, pfn) for _, pfn, flags in self.rows()]

    def sequence(self) -> int:
        return read_sequence(self.sequence_fd)

    def close(self) -> None:
        self.table.close()
        os.close(self.fd)
        os.close(self.sequence_fd)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.close()


def columns(states: list[Row]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    flags, pfns = zip(*states, strict=True)
    return np.array(flags, dtype=np.uint64), np.array(pfns, dtype=np.uint64)


class Watched(np.ndarray[Any, np.dtype[np.uint64]]):
    """A column that calls back after each store into it or into a slice of it, with the addresses stored to."""

    stored: Any = None

    @classmethod
    def watch(cls, column: npt.NDArray[np.uint64], stored: Any) -> Self:
        watched = column.view(cls)
        watched.stored = stored
        return watched

    def __array_finalize__(self, origin: Any) -> None:
        self.stored = getattr(origin, "stored", None)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        address = self.__array_interface__["data"][0]
        self.stored([address + 24 * int(row) for row in np.arange(self.size)[key].flat])


class WatchedWords:
    """The words of the table, calling back after each store."""

    def __init__(self, words: memoryview, stored: Any) -> None:
        self.words, self.stored = words, stored

    def __getitem__(self, index: int) -> int:
        return int(self.words[index])

    def __setitem__(self, index: int, value: int) -> None:
        self.words[index] = value
        self.stored([])


class Moments:
    """Every state of a table that another processor could see, store by store, with the sequence word of the time."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.seen = [client.states()]
        self.sequences: list[int] = []
        self.rows_stored: set[int] = set()
        table: Any = client.table
        self.base = table._vaddrs.__array_interface__["data"][0]
        for name in ("_vaddrs", "_pfns", "_flags"):
            setattr(table, name, Watched.watch(getattr(table, name), self.note))
        table._words = WatchedWords(table._words, self.note)

    def note(self, addresses: list[int]) -> None:
        self.rows_stored |= {(address - self.base) // 24 for address in addresses}
        self.seen.append(self.client.states())
        self.sequences.append(self.client.sequence())

    def check(self) -> None:
        """A frame is given to a row, or taken from it, only while the row does not say MAPPED."""
        assert all(number & 1 for number in self.sequences)
        for before, after in zip(self.seen, self.seen[1:], strict=False):
            for (old_flags, old_pfn), (new_flags, new_pfn) in zip(before, after, strict=True):
                if old_pfn != new_pfn:
                    assert not (old_flags | new_flags) & MAPPED
                assert bool(new_pfn) or not new_flags & MAPPED


ROW = st.one_of(
    st.sampled_from([(0, 0), (1, 0), (3, 0)]),
    st.tuples(st.sampled_from([5, 7]), st.integers(1, 3)),
)
STATES = st.lists(ROW, min_size=NR_PAGES, max_size=NR_PAGES)


@settings(max_examples=examples(50), deadline=None)
@given(old=STATES, new=STATES, single=st.booleans())
def test_every_moment_of_a_change_is_a_possible_state(old: list[Row], new: list[Row], single: bool) -> None:
    client = Client()
    try:
        client.table.update(0, *columns(old))
        client.table.publish()
        moments = Moments(client)
        if single:
            for index, (flags, pfn) in enumerate(new):
                client.table.update_one(index, flags, pfn)
        else:
            client.table.update(0, *columns(new))
        client.table.publish()
        moments.check()
        assert client.states() == new
        assert bool(moments.sequences) == (old != new)
        if not single:
            assert moments.rows_stored == {index for index in range(NR_PAGES) if old[index] != new[index]}
    finally:
        client.close()


def test_the_order_on_mapping_and_unmapping(client: Client) -> None:
    moments = Moments(client)
    client.table.update_one(2, 7, 55)
    client.table.update_one(2, 7, 66)
    client.table.update_one(2, 3, 0)
    steps = [state[2] for state in moments.seen]
    assert steps == [(0, 0), (0, 55), (7, 55), (3, 55), (3, 66), (7, 66), (3, 66), (3, 0), (3, 0)]


def test_a_part_is_updated_and_the_rest_is_not(client: Client) -> None:
    client.table.update(0, *columns([(7, 10)] * NR_PAGES))
    client.table.update(3, *columns([(1, 0), (5, 11)]))
    assert client.states() == [(7, 10)] * 3 + [(1, 0), (5, 11)] + [(7, 10)] * 4


def test_a_new_table_is_zeros(client: Client) -> None:
    assert client.rows() == [(0, 0, 0)] * NR_PAGES
    assert client.sequence() == 0


def test_vaddrs_flags_and_frames_go_separately(client: Client) -> None:
    client.table.update_one(1, 7, 8)
    client.table.write_vaddrs()
    vaddrs = [START + index * PAGE_SIZE for index in range(NR_PAGES)]
    assert [row[0] for row in client.rows()] == vaddrs
    assert client.rows()[1] == (vaddrs[1], 8, 7)
    client.table.clear_flags()
    assert client.rows() == [(vaddr, 0, 0) for vaddr in vaddrs]
    client.table.update_one(1, 7, 8)
    client.table.empty()
    assert client.rows() == [(0, 0, 0)] * NR_PAGES


def test_a_frame_number_of_64_bits_fits(client: Client) -> None:
    client.table.update_one(0, 7, 2**64 - 1)
    client.table.update(1, *columns([(7, 2**64 - 1)]))
    assert client.states()[:2] == [(7, 2**64 - 1)] * 2


def test_the_sequence_is_odd_while_changing_and_grows(client: Client) -> None:
    table = client.table
    table.publish()
    assert client.sequence() == 0
    table.update_one(0, 1, 0)
    table.update(1, *columns([(1, 0)] * 3))
    assert client.sequence() == 1
    table.publish()
    assert client.sequence() == 2
    table.update_one(0, 1, 0)
    assert client.sequence() == 2
    table.write_vaddrs()
    assert client.sequence() == 3
    table.publish()
    table.publish()
    assert client.sequence() == 4


def test_a_reader_that_keeps_its_mapping_sees_the_emptied_table_after_close() -> None:
    before = open_descriptors()
    client = Client()
    client.table.write_vaddrs()
    client.table.update_one(0, 7, 9)
    client.table.publish()
    client.table.empty()
    client.table.publish()
    client.table.close()
    assert client.rows() == [(0, 0, 0)] * NR_PAGES
    assert client.sequence() == 4
    os.close(client.fd)
    os.close(client.sequence_fd)
    assert open_descriptors() == before


def test_the_segment_is_the_table_rounded_up_to_pages(client: Client) -> None:
    largest = Client(2048)
    assert os.fstat(client.fd).st_size == PAGE_SIZE
    assert os.fstat(largest.fd).st_size == 2048 * 24
    assert os.fstat(largest.sequence_fd).st_size == PAGE_SIZE
    largest.close()


PARITY_READER = """
import mmap, sys
sequence = memoryview(mmap.mmap(int(sys.argv[1]), 4096, mmap.MAP_SHARED, mmap.PROT_READ)).cast("Q")
for line in sys.stdin:
    print(sequence[0], flush=True)
"""

SNAPSHOT_READER = """
import mmap, sys
fd, sequence_fd, pages, last = map(int, sys.argv[1:])
table = mmap.mmap(fd, pages * 24, mmap.MAP_SHARED, mmap.PROT_READ)
sequence = memoryview(mmap.mmap(sequence_fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)).cast("Q")
print("ready", flush=True)
whole = torn = 0
while True:
    before = sequence[0]
    copy = memoryview(table[:]).cast("Q")
    if before & 1 or sequence[0] != before:
        continue
    whole += 1
    torn += len(set(copy[1::3])) != 1
    if before >= last:
        break
print(whole, torn)
"""


def test_another_process_sees_the_parity(client: Client) -> None:
    command = [sys.executable, "-c", PARITY_READER, str(client.sequence_fd)]
    pass_fds = [client.sequence_fd]
    with subprocess.Popen(
        command, pass_fds=pass_fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None

        def ask() -> int:
            print(file=reader.stdin, flush=True)
            assert reader.stdout is not None
            return int(reader.stdout.readline())

        assert ask() == 0
        client.table.update_one(0, 7, 1)
        assert ask() == 1
        client.table.publish()
        assert ask() == 2
        reader.stdin.close()
        assert reader.wait() == 0


def test_a_snapshot_with_an_even_sequence_is_one_moment() -> None:
    client = Client(512)
    changes = 3000
    flags, pfns = columns([(7, 0)] * 256)
    command = [sys.executable, "-c", SNAPSHOT_READER, str(client.fd), str(client.sequence_fd), "512", str(2 * changes)]
    with subprocess.Popen(
        command, pass_fds=[client.fd, client.sequence_fd], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for pfn in range(1, changes + 1):
            pfns.fill(pfn)
            client.table.update(0, flags, pfns)
            client.table.update(256, flags, pfns)
            client.table.publish()
        whole, torn = map(int, reader.stdout.read().split())
        assert reader.wait() == 0
    client.close()
    assert whole > 0
    assert torn == 0
