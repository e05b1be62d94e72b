"""The runner: what it prints and when it pauses."""

from __future__ import annotations

from pathlib import Path

import pytest

from target.inspector_command import also_command, follow_command, inspector_command
from target.scenario import Beats, Note, Scenario, Step, Watch
from target.stage import Stage, Window
from target.tour import Tour
from tests.target.fake_process import FakePace, FakeProcess


def make_tour(directory: Path, *, is_followed: bool = False) -> tuple[Tour, FakeProcess, list[str]]:
    process = FakeProcess()
    said: list[str] = []
    stage = Stage(process.as_process(), Window(), directory)
    pace = FakePace(process.log, lambda: said.append("<pause>"))
    return Tour(stage, pace, said.append, is_followed=is_followed), process, said


def two_steps(stage: Stage) -> Beats:
    yield Step("the first")
    stage.map_in_window(0, 1)
    yield Note("one\n  two")
    yield Step("the second")
    stage.store(stage.window.start, "x")


def test_a_pause_stands_between_a_step_and_what_it_does(tmp_path: Path) -> None:
    tour, process, said = make_tour(tmp_path)

    tour.play(Scenario("two", "Two", "", two_steps))

    assert process.log == ["pause", "mmap", "pause", "store", "pause", "munmap"]
    assert said == [
        "  1. the first\n",
        "<pause>",
        "      > one\n",
        "      >   two\n",
        "  2. the second\n",
        "<pause>",
        "  3. munmap of what is left in the window: its entries lose flags and pfn.\n",
        "<pause>",
    ]


def test_the_window_is_empty_for_each_scenario(tmp_path: Path) -> None:
    tour, process, _said = make_tour(tmp_path)
    scenario = Scenario("two", "Two", "", two_steps)

    tour.play_all([scenario, scenario])

    assert process.log.count("mmap") == 2


def test_a_process_that_ends_keeps_its_window(tmp_path: Path) -> None:
    tour, process, _said = make_tour(tmp_path)

    tour.play(Scenario("two", "Two", "", two_steps, ends_process=True))

    assert "munmap" not in process.log


def test_the_beginning_names_pid_range_and_command(tmp_path: Path) -> None:
    tour, process, said = make_tour(tmp_path)

    tour.begin()

    text = "".join(said)
    window = Window()
    assert f"process {process.pid}," in text
    assert f"{window.start:#x} to {window.end:#x}" in text
    assert inspector_command(process.pid, window.start, window.end) in text
    assert process.log == ["long pause"]


def test_a_watch_is_said_with_its_own_command(tmp_path: Path) -> None:
    def play(stage: Stage) -> Beats:
        yield Watch(77, 0x10000, 0x20000, "a place")

    tour, process, said = make_tour(tmp_path)
    tour.play(Scenario("watch", "Watch", "", play, in_window=False))

    assert f"{inspector_command(77, 0x10000, 0x20000)}\n" in "".join(said)
    assert process.log == ["long pause"]


def test_a_tour_that_is_followed_has_one_command(tmp_path: Path) -> None:
    def play(stage: Stage) -> Beats:
        yield Watch(77, 0x10000, 0x20000, "a place")

    tour, process, said = make_tour(tmp_path, is_followed=True)
    tour.begin()
    tour.play(Scenario("watch", "Watch", "", play, in_window=False))

    text = "".join(said)
    assert text.count("inspector") == 1
    assert f"{follow_command(process.pid)}\n" in text
    assert "Next: a place, 0x10000 to 0x20000." in text
    # Nobody has to start anything.
    assert process.log == ["pause"]


def test_a_range_of_two_processes_is_said_for_both(tmp_path: Path) -> None:
    def play(stage: Stage) -> Beats:
        yield Watch(77, 0x10000, 0x20000, "a place", also=78)

    tour, _process, said = make_tour(tmp_path)
    tour.play(Scenario("watch", "Watch", "", play, in_window=False))
    assert f"{also_command(78, 0x10000, 0x20000, 77)}\n" in "".join(said)


def test_no_address_is_broken_at_the_lines_end(tmp_path: Path) -> None:
    addresses = [f"{Window().page(index):#x}" for index in range(40)]

    def play(stage: Stage) -> Beats:
        yield Step(" ".join(addresses))

    tour, _process, said = make_tour(tmp_path)
    tour.play(Scenario("long", "Long", "", play))

    words = "".join(said).split()
    assert all(address in words for address in addresses)
    assert max(len(line) for line in "".join(said).splitlines()) <= 110


def test_a_scenario_cut_short_puts_its_things_away(tmp_path: Path) -> None:
    put_away = []

    def play(stage: Stage) -> Beats:
        try:
            yield Step("the only one")
        finally:
            put_away.append(stage)

    def interrupt() -> None:
        raise KeyboardInterrupt

    process = FakeProcess()
    stage = Stage(process.as_process(), Window(), tmp_path)
    said: list[str] = []
    tour = Tour(stage, FakePace(process.log, interrupt), said.append)
    with pytest.raises(KeyboardInterrupt):
        tour.play(Scenario("cut", "Cut", "", play))

    assert put_away == [stage]
