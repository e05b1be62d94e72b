"""Pauses: by time, by Enter, and their early ends."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shared.client import KerneldGone
from target.pace import PROMPT, DelayPace, EndOfInput, StepPace


@pytest.fixture
def connection() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for descriptor in ends:
        try:
            os.close(descriptor)
        except OSError:
            continue


def test_a_delay_of_nothing_does_not_wait(connection: tuple[int, int]) -> None:
    os.close(connection[1])
    try:
        DelayPace(0, connection[0]).wait(3)
        looked = False
    except KerneldGone:
        # Who waits sees that the connection has ended.
        looked = True
    assert not looked


def test_a_delay_ends_when_kerneld_goes_away(connection: tuple[int, int]) -> None:
    os.close(connection[1])
    with pytest.raises(KerneldGone):
        DelayPace(3600, connection[0]).wait()


def test_enter_is_one_line_and_the_next_stays_in_the_pipe(connection: tuple[int, int]) -> None:
    source, writer = os.pipe()
    os.write(writer, b"\n and more\nrest")
    said: list[str] = []
    pace = StepPace(said.append, connection[0], source)

    pace.wait()
    pace.wait(3)

    assert os.read(source, 100) == b"rest"
    assert [text.strip() for text in said] == [PROMPT, PROMPT]
    os.close(source)
    os.close(writer)


def test_no_more_input_ends_the_tour(connection: tuple[int, int]) -> None:
    source, writer = os.pipe()
    os.close(writer)
    with pytest.raises(EndOfInput):
        StepPace(lambda _text: None, connection[0], source).wait()
    os.close(source)


def test_waiting_for_enter_ends_when_kerneld_goes_away(connection: tuple[int, int]) -> None:
    source, writer = os.pipe()
    os.close(connection[1])
    with pytest.raises(KerneldGone):
        StepPace(lambda _text: None, connection[0], source).wait()
    os.close(source)
    os.close(writer)
