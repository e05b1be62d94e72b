"""The file of a record: what is written is read; what is cut off or damaged is read as far as it goes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from shared.recording.chunks import NoRecord, pack_head
from shared.recording.head import make_head
from shared.recording.reader import Recording
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import page
from tests.support.recorded import recorded, state
from tests.support.traced import TracedWorld


@pytest.fixture(scope="module")
def made() -> bytes:
    """A record of some hundred events with several key frames."""
    world = TracedWorld()
    program = world.attach()
    with recorded(world, key_events=50) as record:
        program.mmap(100, at=page(0))
        for number in range(60):
            program.store(page(number), b"x")
            record.read()
        program.call(Nr.MADVISE, page(0), 30 * PAGE_SIZE, Madv.DONTNEED)
        data = record.file()
    world.close()
    return data


def test_every_event_has_its_number(made: bytes) -> None:
    recording = Recording(made)
    numbers = [number for number, _record in recording.records()]
    assert numbers == list(range(recording.nr_events))
    assert len([one for one in recording.chunks() if one.kind == b"KEYF"]) > 3
    assert [number for number, _record in recording.records(70, 90)] == list(range(70, 90))
    middle = recording.record(100)
    assert middle is not None
    assert recording.record(recording.number_at(middle.time)) == middle
    assert not recording.is_cut


def test_a_file_is_mapped(made: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.kdrecord"
    path.write_bytes(made)
    assert Recording.open(path).nr_events == Recording(made).nr_events
    path.write_bytes(b"")
    with pytest.raises(NoRecord, match="empty"):
        Recording.open(path)


def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(made: bytes) -> None:
    whole = Recording(made)
    begin = next(place.end for place in whole.places())
    for length in range(0, begin, 997):
        with pytest.raises(NoRecord, match=r"cut off|no record"):
            Recording(made[:length])
    counts = []
    for length in random.Random(1).sample(range(begin, len(made)), 60):
        part = Recording(made[:length])
        counts.append(part.nr_events)
        assert part.nr_events <= whole.nr_events
        assert state(part.machine(part.nr_events)) == state(whole.machine(part.nr_events))
        assert len(list(part.records())) == part.nr_events
    assert len(set(counts)) > 20


def test_damage_is_no_exception(made: bytes) -> None:
    """Any byte may be wrong: there is a record to be read, or one line that says why there is none."""
    chance = random.Random(2)
    readable = 0
    for _ in range(150):
        data = bytearray(made)
        for _ in range(chance.choice((1, 1, 20))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            recording = Recording(bytes(data))
        except NoRecord:
            continue
        readable += 1
        recording.machine(min(recording.nr_events, 1 << 20))
        assert len(list(recording.records(0, 500))) <= max(500, recording.nr_events)
    assert 0 < readable < 150


def test_what_is_no_record_says_so() -> None:
    head = pack_head(make_head(pids=(), superuser=True))
    for data, why in (
        (b"", "no record"),
        (b"\x7fELF" + bytes(100), "no record"),
        (head[:8] + b"\x02" + head[9:], "version 2"),
        (head[:50], "cut off"),
        (head[:16] + b"[" + head[17:], "damaged"),
        (head, "first key frame"),
    ):
        with pytest.raises(NoRecord, match=why):
            Recording(data)
