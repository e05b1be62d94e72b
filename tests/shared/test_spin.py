"""Polling before sleeping: when it is done, and when it is given up."""

from __future__ import annotations

import io
import os

import pytest

from shared import spin as spin_module
from shared.spin import ASK_EVERY, MOST_SKIPPED, Spin


@pytest.fixture(autouse=True)
def two_free_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(spin_module, "_is_crowded", lambda: False)
    monkeypatch.setattr(spin_module, "_involuntary_switches", lambda: 0)
    monkeypatch.setattr(spin_module, "SWITCHED_NS", 1 << 60)


def test_a_poll_ends_with_what_has_come() -> None:
    left = [0, 0, 7]
    assert Spin(1 << 60).wait(lambda: left.pop(0)) == 7
    assert left == []


@pytest.mark.parametrize("most", [4, MOST_SKIPPED])
def test_after_polls_without_a_result_ever_more_waits_sleep_at_once(most: int) -> None:
    spin, skipped = Spin(0, most), []
    for _ in range(12):
        assert spin.wait(lambda: 0) is None
        skipped.append(spin.skip)
        spin.skip = 0
    assert skipped == [min((2 << misses) - 2, most) for misses in range(12)]
    assert spin.wait(lambda: 1) == 1
    assert spin.wait(lambda: 0) is None
    assert spin.skip == 0


def test_a_wait_that_is_skipped_does_not_look() -> None:
    spin = Spin(0)
    spin.skip = 1
    assert spin.wait(lambda: pytest.fail("looked")) is None
    assert spin.skip == 0


@pytest.mark.parametrize("why", ["one processor", "crowded"])
def test_nobody_polls_without_a_free_processor(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "crowded":
        monkeypatch.setattr(spin_module, "_is_crowded", lambda: True)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    spin = Spin(1 << 60)
    for _ in range(3):
        assert spin.wait(lambda: pytest.fail("looked")) is None
        assert spin.skip == ASK_EVERY
        spin.skip = 0


def test_a_process_that_others_have_interrupted_does_not_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    spin = Spin(1 << 60)
    monkeypatch.setattr(spin_module, "_involuntary_switches", lambda: 2)
    assert spin.wait(lambda: pytest.fail("looked")) is None


@pytest.mark.parametrize(("milliseconds", "polls"), [(4, False), (12, True)])
def test_a_few_that_are_woken_are_no_reason_to_sleep(
    milliseconds: int, polls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three times in 4 ms somebody wants the processor; three times in 12 ms somebody has been woken."""
    clock = iter([0, *[milliseconds * 1_000_000] * 9])
    monkeypatch.setattr("shared.spin.time.perf_counter_ns", lambda: next(clock))
    spin = Spin(1 << 60)
    monkeypatch.setattr(spin_module, "_involuntary_switches", lambda: 3)
    monkeypatch.setattr(spin_module, "_is_crowded", lambda: False)
    assert spin.wait(lambda: 7) == (7 if polls else None)


def test_a_gap_ends_a_poll_only_if_another_task_has_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt leaves a gap too. What was seen at one gap does not end the poll at the next."""
    monkeypatch.setattr(spin_module, "SWITCHED_NS", -1)
    switches = [0, 0, 0, 1, 1]
    monkeypatch.setattr(spin_module, "_involuntary_switches", lambda: switches.pop(0))
    spin, looks = Spin(1 << 60), iter([0, 0, 0])
    spin._asked_in = ASK_EVERY
    assert spin.wait(lambda: next(looks)) is None
    assert (switches, next(looks, None)) == ([1], None)
    looks = iter([0, 7])
    assert spin.wait(lambda: next(looks)) == 7


@pytest.mark.parametrize(("running", "crowded"), [("1/9", False), ("2/9", False), ("3/9", True)])
def test_a_machine_is_crowded_if_more_want_to_run_than_there_are_processors(
    running: str, crowded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(spin_module, "open", lambda *_: io.BytesIO(f"0.5 0.4 0.3 {running} 77".encode()), raising=False)
    assert spin_module._is_crowded() is crowded


def test_a_machine_that_does_not_tell_is_not_crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(spin_module, "open", lambda *_: io.BytesIO(b""), raising=False)
    assert not spin_module._is_crowded()
