"""ksmd: when a pass begins, how long it lasts, and that it waits for who holds an address space."""

from __future__ import annotations

import pytest

from kerneld.mm.ksm import items
from kerneld.mm.ksm import ksmd as ksmd_module
from kerneld.mm.ksm.ksmd import Ksmd
from kerneld.mm.ksm.scan import ksm_do_scan
from kerneld.mm.space import pace
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Madv
from tests.support.ksm import counts, mergeable, scan, sysfs, write_sysfs
from tests.support.machine import Machine, advise, mmap, page


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(ksmd_module, "monotonic", clock)
    return clock


def free(_mm: MmStruct) -> bool:
    return False


def end_pass(ksmd: Ksmd) -> None:
    while ksmd.is_scanning:
        ksmd.run()


def test_it_sleeps_while_nothing_is_mergeable_or_it_is_off(machine: Machine, mm: MmStruct, clock: Clock) -> None:
    ksmd = Ksmd(machine.frames, free)
    write_sysfs(machine, "run", 1)
    assert (ksmd.is_awake, ksmd.run(), ksmd.wait_seconds(None), ksmd.wait_seconds(7)) == (False, False, None, 7)
    mergeable(mm, "aa")
    assert (ksmd.is_awake, ksmd.run()) == (True, True)
    write_sysfs(machine, "run", 0)
    assert (ksmd.is_awake, ksmd.run(), ksmd.wait_seconds(None)) == (False, False, None)


def test_a_pass_has_so_many_pages_and_then_it_sleeps(machine: Machine, mm: MmStruct, clock: Clock) -> None:
    ksmd = Ksmd(machine.frames, free)
    write_sysfs(machine, "run", 1)
    write_sysfs(machine, "pages_to_scan", 3)
    mergeable(mm, "abcde")
    ksmd.run()
    end_pass(ksmd)
    assert sysfs(machine, "pages_scanned") == 3
    assert ksmd.wait_seconds(None) == pytest.approx(0.02)
    assert ksmd.wait_seconds(0.001) == 0.001
    assert not ksmd.run()
    write_sysfs(machine, "sleep_millisecs", 5)
    clock.now += 0.005
    assert (ksmd.wait_seconds(None), ksmd.run()) == (0, True)
    end_pass(ksmd)
    # The end of a full scan ends its pass.
    assert (sysfs(machine, "pages_scanned"), sysfs(machine, "full_scans")) == (5, 1)


def test_a_long_pass_is_in_pieces(
    machine: Machine, mm: MmStruct, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    ksmd = Ksmd(machine.frames, free)
    write_sysfs(machine, "run", 1)
    mergeable(mm, "abcde")
    for scanned in range(1, 6):
        assert ksmd.run()
        assert (sysfs(machine, "pages_scanned"), ksmd.is_scanning, ksmd.wait_seconds(9)) == (scanned, True, 0)
    write_sysfs(machine, "run", 0)
    assert not ksmd.is_scanning


def test_it_waits_for_who_holds_the_address_space(machine: Machine, mm: MmStruct, clock: Clock) -> None:
    held = [mm]
    ksmd = Ksmd(machine.frames, held.__contains__)
    write_sysfs(machine, "run", 1)
    write_sysfs(machine, "sleep_millisecs", 0)
    mergeable(mm, "aa")
    for _ in range(3):
        ksmd.run()
    assert counts(machine) == (0, 0, 0, 0)
    held.clear()
    while sysfs(machine, "full_scans") < 2:
        ksmd.run()
    assert counts(machine) == (1, 1, 0, 0)


def test_a_pass_goes_on_after_everything_was_unmerged(
    machine: Machine, mm: MmStruct, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    ksmd = Ksmd(machine.frames, free)
    write_sysfs(machine, "run", 1)
    write_sysfs(machine, "sleep_millisecs", 0)
    mergeable(mm, "aabb")
    ksmd.run()
    write_sysfs(machine, "run", 2)
    advise(mm, 0, 1, Madv.UNMERGEABLE)
    write_sysfs(machine, "run", 1)
    while sysfs(machine, "full_scans") < 2:
        ksmd.run()
        machine.check()
    assert counts(machine) == (1, 1, 1, 0)


def test_a_step_drops_a_bounded_number_of_items_and_passes_one_vma(
    machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of a large program goes at once; the scan forgets it in steps, and serves others in between."""
    monkeypatch.setattr(items, "MOST_DROPPED", 4)
    mergeable(mm, "a" * 20)
    for number in range(30, 60, 2):
        mmap(mm, 1, at=page(number))
    scan(machine, 2)
    advise(mm, 0, 19, Madv.DONTNEED)
    kept = []
    for _ in ksm_do_scan(ksm_of(machine.frames), machine.frames, 99, free):
        kept.append(mm.ksm_rmap_items)
        machine.check()
    assert max(a - b for a, b in zip([20, *kept], kept, strict=False)) == 4
    assert kept[-1] == 1
    assert len(kept) >= 5 + 15
    machine.exit(mm)
    scan(machine)
    assert counts(machine) == (0, 0, 0, 0)
