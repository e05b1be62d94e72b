"""Each scenario on a fake process: the order of announcements and calls, and what the texts say of addresses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE
from target.scenario import Note, Scenario, Step, Watch
from target.scenarios import TOUR, files, program
from target.stage import Stage, Window
from tests.target.fake_process import FakeProcess

BY_NAME = {scenario.name: scenario for scenario in TOUR}


def play(name: str, directory: Path) -> tuple[FakeProcess, list[Step | Note | Watch]]:
    """Play one scenario; the process's log has the beats among the calls."""
    process = FakeProcess()
    beats = []
    for beat in BY_NAME[name].play(Stage(process.as_process(), Window(), directory)):
        process.log.append(type(beat).__name__)
        beats.append(beat)
    return process, beats


def calls_by_step(process: FakeProcess) -> list[list[str]]:
    """Return the calls behind each step, without the reads that only report."""
    groups: list[list[str]] = [[]]
    for entry in process.log:
        if entry == "Step":
            groups.append([])
        elif entry not in ("Note", "Watch"):
            groups[-1].append(entry)
    return groups


@pytest.mark.parametrize("scenario", TOUR, ids=lambda scenario: scenario.name)
def test_nothing_is_done_before_it_is_announced(scenario: Scenario, tmp_path: Path) -> None:
    process, beats = play(scenario.name, tmp_path)

    assert calls_by_step(process)[0] == []
    assert sum(isinstance(beat, Step) for beat in beats) >= 2


@pytest.mark.parametrize(
    ("name", "calls"),
    [
        ("demand", [["mmap"], ["store"], ["load", "load"], ["store"], ["munmap"]]),
        ("hole", [["mmap", *["store"] * 8], ["munmap"], ["mmap"]]),
        ("heap", [["malloc", "store"], ["malloc", "malloc", "store", "store"], ["free"], ["free", "free"]]),
        ("large", [["malloc"], ["store"], ["free"]]),
        ("stack", [["store"], ["store"], ["munmap"]]),
        ("file-shared", [["mmap"], ["load"], ["store", "load"], ["msync"], ["munmap"]]),
        ("file-private", [["mmap"], ["load", "load"], ["store", "load"], ["munmap"]]),
        ("fork", [["mmap", *["store"] * 4], ["fork"], ["load"], ["store"], ["store"], []]),
        ("protect", [["mmap", *["store"] * 4], ["mprotect"], ["fork"], ["mprotect", "load"]]),
        ("huge", [["mmap", "madvise"], ["store"], ["madvise"], ["load"], ["munmap"]]),
        ("reclaim", [["mmap", *["load"] * 4], ["madvise"], ["load"]]),
        ("swap", [["mmap", *["store"] * 4], ["madvise"], ["load"], ["munmap"]]),
        ("oom", [["mmap", *["store"] * 4], ["fork"], ["load"] * 4]),
        ("exit", [["mmap", "store"], []]),
    ],
)
def test_calls_follow_their_steps(name: str, calls: list[list[str]], tmp_path: Path) -> None:
    process, _beats = play(name, tmp_path)

    assert calls_by_step(process)[1:] == calls


@pytest.mark.parametrize("scenario", [s for s in TOUR if s.in_window], ids=lambda scenario: scenario.name)
def test_window_scenarios_name_addresses_in_the_window(scenario: Scenario, tmp_path: Path) -> None:
    window = Window()
    _process, beats = play(scenario.name, tmp_path)

    first = next(beat for beat in beats if isinstance(beat, Step))
    addresses = [int(text, 16) for text in re.findall(r"0x[0-9a-f]+", first.text)]
    assert addresses
    assert all(window.start <= address < window.end for address in addresses)


@pytest.mark.parametrize("name", ["heap", "large", "stack", "exec"])
def test_ranges_outside_the_window_are_given_to_watch(name: str, tmp_path: Path) -> None:
    process, beats = play(name, tmp_path)

    (watch,) = [beat for beat in beats if isinstance(beat, Watch)]
    assert watch.pid == process.pid
    assert watch.start % PAGE_SIZE == watch.end % PAGE_SIZE == 0
    assert 0 < watch.end - watch.start <= MAX_SPT_RANGE
    assert not Window().start <= watch.start < Window().end


def test_demand_reports_the_zero_page_and_the_frame_after_it(tmp_path: Path) -> None:
    _process, beats = play("demand", tmp_path)

    notes = [beat.text for beat in beats if isinstance(beat, Note)]
    assert notes[2].endswith("pfn 0x1, pfn 0x1")
    assert notes[3].endswith("pfn 0x101, pfn 0x1")


def test_shared_file_changes_on_the_disk_at_msync(tmp_path: Path) -> None:
    _process, beats = play("file-shared", tmp_path)

    notes = [beat.text for beat in beats if isinstance(beat, Note)]
    assert f'the real file "{files.ORIGINAL}"' in notes[1]
    assert notes[2] == f'The real file reads "{files.CHANGED}".'


def test_private_file_stays_as_it_was(tmp_path: Path) -> None:
    _process, beats = play("file-private", tmp_path)

    notes = [beat.text for beat in beats if isinstance(beat, Note)]
    assert notes[-1] == f'The real file reads "{files.ORIGINAL}".'


@pytest.mark.parametrize("name", ["file-shared", "file-private"])
def test_a_real_file_is_gone_with_its_scenario(name: str, tmp_path: Path) -> None:
    play(name, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_protect_shows_the_real_wait_status_of_the_child(tmp_path: Path) -> None:
    _process, beats = play("protect", tmp_path)

    assert any(isinstance(beat, Note) and "killed by signal 11 (SIGSEGV)" in beat.text for beat in beats)


def test_fork_offers_the_childs_table_too(tmp_path: Path) -> None:
    process, beats = play("fork", tmp_path)

    (watch,) = [beat for beat in beats if isinstance(beat, Watch)]
    assert watch.pid != process.pid
    assert beats[-1] == Note(f"waitpid: process {watch.pid} exited with status 0.")


def test_exec_is_skipped_without_a_program_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "find_program", lambda: None)

    process, beats = play("exec", tmp_path)

    assert len(beats) == 1
    assert isinstance(beats[0], Note)
    assert "x86-64" in beats[0].text
    assert "execve" not in process.log


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"\x7fELF\x02\x01\x01\x00" + bytes(8) + b"\x03\x00\x3e\x00", True),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(8) + b"\x03\x00\xb7\x00", False),
        (b"\x7fELF\x01\x01\x01\x00" + bytes(8) + b"\x03\x00\x3e\x00", False),
        (b"#!/bin/sh\n" + bytes(20), False),
        (b"", False),
    ],
)
def test_only_x86_64_elf_files_are_programs_of_the_machine(head: bytes, expected: bool) -> None:
    assert program.is_x86_64_elf(head) is expected


def test_without_a_swap_file_the_scenario_says_how_to_have_one() -> None:
    process = FakeProcess()
    process.meminfo["SwapTotal"] = 0
    beats = list(BY_NAME["swap"].play(Stage(process.as_process(), Window(), Path())))
    assert isinstance(beats[-1], Note)
    assert "kerneld start --swap 64M" in beats[-1].text
    assert "madvise" not in process.log


@pytest.mark.parametrize(
    ("meminfo", "is_superuser", "why"),
    [
        ({"MemTotal": 3 << 20}, True, "--ram 256M"),
        ({"MemAvailable": 1000}, True, "other processes"),
        ({}, False, "only root"),
    ],
)
def test_memory_is_not_used_up_where_others_would_pay(meminfo: dict[str, int], is_superuser: bool, why: str) -> None:
    process = FakeProcess()
    process.meminfo |= meminfo
    process.is_superuser = is_superuser
    (note,) = BY_NAME["oom"].play(Stage(process.as_process(), Window(), Path()))
    assert isinstance(note, Note)
    assert note.text.startswith("Skipped: ")
    assert why in note.text
    assert process.log == []


def test_the_oom_killer_takes_the_child(tmp_path: Path) -> None:
    _process, beats = play("oom", tmp_path)
    told = " ".join(beat.text for beat in beats if isinstance(beat, Note))
    assert "was killed by signal 9 (SIGKILL)" in told
