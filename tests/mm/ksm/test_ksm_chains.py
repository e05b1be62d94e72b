"""More pages of one content than one frame may serve: chains. And the files of /sys/kernel/mm/ksm, and the advisor.

Source: Linux v6.8 mm/ksm.c: stable_node_dup(), the KSM_ATTRs, scan_time_advisor().
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator

import pytest

from kerneld.mm.ksm import items, stable
from kerneld.mm.ksm.advisor import scan_time_advisor
from kerneld.mm.ksm.scan import ksm_do_scan
from kerneld.mm.ksm.sysfs import KSM_FILES, WRITABLE_KSM_FILES, show_ksm, store_ksm
from kerneld.mm.space import pace
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Madv
from tests.support.ksm import counts, fill, mergeable, merged, scan, sysfs, write_sysfs
from tests.support.machine import Machine, advise, errno_of, page, pfn_of


def chains(machine: Machine) -> tuple[int, int]:
    return sysfs(machine, "stable_node_chains"), sysfs(machine, "stable_node_dups")


def test_a_frame_serves_as_many_pages_as_said(machine: Machine, mm: MmStruct) -> None:
    write_sysfs(machine, "max_page_sharing", 3)
    mergeable(mm, "aaaaaaab")
    scan(machine, 2)
    assert len({pfn_of(mm, page(number)) for number in range(6)}) == 2
    assert (merged(mm, 8), counts(machine), chains(machine)) == ("kkkkkk--", (2, 4, 2, 0), (1, 2))
    fill(mm, "a", 7)
    scan(machine, 2)
    assert (counts(machine), chains(machine)) == ((3, 5, 0, 0), (1, 3))


def test_a_chain_of_one_is_a_node_again(machine: Machine, mm: MmStruct) -> None:
    write_sysfs(machine, "max_page_sharing", 2)
    write_sysfs(machine, "stable_node_chains_prune_millisecs", 0)
    mergeable(mm, "aaaa")
    scan(machine, 2)
    assert chains(machine) == (1, 2)
    fill(mm, "bc")
    mergeable(mm, "a", 6)
    scan(machine)
    assert (chains(machine), counts(machine)[:2]) == ((0, 0), (1, 1))


def test_a_chain_of_none_goes(machine: Machine, mm: MmStruct) -> None:
    write_sysfs(machine, "max_page_sharing", 2)
    mergeable(mm, "aaaa")
    scan(machine, 2)
    fill(mm, "bcde")
    mergeable(mm, "a", 6)
    scan(machine)
    assert (chains(machine), counts(machine)[:2]) == ((0, 0), (0, 0))


FEW = 2
"""What one step may look at in these tests."""


@pytest.fixture
def most_looked_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterable[object]], int]:
    """Return the most nodes and items that a step of some pieces has looked at; a step is between two yields."""
    seen = 0

    def count(name: str) -> None:
        inner = getattr(items, name)

        def counted(*args: object) -> object:
            nonlocal seen
            seen += 1
            return inner(*args)

        for module in (items, stable):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, counted)

    def run(pieces: Iterable[object]) -> int:
        nonlocal seen
        most = seen = 0
        for _ in pieces:
            most, seen = max(most, seen), 0
        return max(most, seen)

    count("ksm_page_of")
    count("_set_free")
    for module in (items, stable):
        monkeypatch.setattr(module, "MOST_DROPPED", FEW)
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    return run


def full_scan(machine: Machine) -> Iterator[None]:
    return ksm_do_scan(ksm_of(machine.frames), machine.frames, 1 << 20, lambda mm: False)


def test_the_pages_of_a_frame_that_goes_are_set_free_step_by_step(
    machine: Machine, mm: MmStruct, most_looked_at: Callable[[Iterable[object]], int]
) -> None:
    mergeable(mm, "a" * 12)
    scan(machine, 2)
    assert (counts(machine), mm.ksm_merging_pages) == ((1, 11, 0, 0), 12)
    fill(mm, "bcdefghijklm")
    assert most_looked_at(full_scan(machine)) <= FEW + 4
    machine.check()
    assert (counts(machine)[:2], mm.ksm_merging_pages) == ((0, 0), 0)


def test_a_page_of_a_frame_that_has_gone_may_go_before_its_turn(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "a" * 4)
    scan(machine, 2)
    fill(mm, "bcde")
    ksm = ksm_of(machine.frames)
    slot = ksm.slots.first
    assert slot is not None
    node = slot.items[0].head
    assert node is not None
    assert not items.ksm_page_of(ksm, machine.frames, node)
    machine.check()
    items.drop_items(ksm, machine.frames, slot, 0, 3)
    machine.check()
    assert mm.ksm_merging_pages == 1
    scan(machine)
    assert (ksm.leaving, mm.ksm_merging_pages) == ([], 0)


def test_a_long_chain_is_pruned_step_by_step(
    machine: Machine, mm: MmStruct, most_looked_at: Callable[[Iterable[object]], int]
) -> None:
    """Of seven frames the four oldest are stale, and the fifth has room: a search looks at the two youngest only."""
    write_sysfs(machine, "max_page_sharing", 3)
    mergeable(mm, "a" * 21)
    scan(machine, 2)
    assert chains(machine) == (1, 7)
    fill(mm, "bcdefghijklmno")
    write_sysfs(machine, "stable_node_chains_prune_millisecs", 0)
    mergeable(mm, "a", 30)
    assert most_looked_at(full_scan(machine)) <= 2 * FEW + 2
    scan(machine)
    assert (pfn_of(mm, page(30)), chains(machine)) == (pfn_of(mm, page(14)), (1, 3))
    assert counts(machine)[:2] == (3, 5)


def test_the_nodes_of_a_chain_are_removed_step_by_step(
    machine: Machine, mm: MmStruct, most_looked_at: Callable[[Iterable[object]], int]
) -> None:
    write_sysfs(machine, "max_page_sharing", 2)
    mergeable(mm, "a" * 20)
    scan(machine, 2)
    assert chains(machine) == (1, 10)
    assert most_looked_at(store_ksm(machine.frames, "run", "2")) <= 2 * FEW
    machine.check()
    assert (chains(machine), counts(machine)) == ((0, 0), (0, 0, 0, 0))


def test_children_may_go_over_the_limit(machine: Machine, mm: MmStruct) -> None:
    write_sysfs(machine, "max_page_sharing", 2)
    mergeable(mm, "aa")
    scan(machine, 2)
    for _ in range(3):
        machine.fork(mm)
    scan(machine)
    assert (counts(machine)[:2], chains(machine)) == ((1, 7), (0, 0))


def test_what_the_tree_depends_on_cannot_change_while_a_page_is_merged(machine: Machine, mm: MmStruct) -> None:
    mergeable(mm, "aa")
    scan(machine, 2)
    assert errno_of(lambda: write_sysfs(machine, "max_page_sharing", 7)) == errno.EBUSY
    assert errno_of(lambda: write_sysfs(machine, "merge_across_nodes", 0)) == errno.EBUSY
    write_sysfs(machine, "max_page_sharing", 256)
    advise(mm, 0, 2, Madv.UNMERGEABLE)
    scan(machine)
    write_sysfs(machine, "max_page_sharing", 7)
    write_sysfs(machine, "merge_across_nodes", 0)
    assert (sysfs(machine, "max_page_sharing"), sysfs(machine, "merge_across_nodes")) == (7, 0)


def test_all_files_can_be_read(machine: Machine) -> None:
    shown = {name: show_ksm(machine.frames, name) for name in KSM_FILES}
    usual = {
        "run": b"0", "pages_to_scan": b"100", "sleep_millisecs": b"20", "max_page_sharing": b"256", "smart_scan": b"1",
        "use_zero_pages": b"0", "merge_across_nodes": b"1", "stable_node_chains_prune_millisecs": b"2000",
        "advisor_mode": b"[none] scan-time", "advisor_max_cpu": b"70", "advisor_min_pages_to_scan": b"500",
        "advisor_max_pages_to_scan": b"30000", "advisor_target_scan_time": b"200",
    }  # fmt: skip
    assert shown == {name: usual.get(name, b"0") + b"\n" for name in KSM_FILES}
    assert errno_of(lambda: show_ksm(machine.frames, "nothing")) == errno.ENOENT


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("run", "3", errno.EINVAL),
        ("run", "-1", errno.EINVAL),
        ("run", "", errno.EINVAL),
        ("run", " 1", errno.EINVAL),
        ("pages_to_scan", "4294967296", errno.EINVAL),
        ("pages_to_scan", "1 ", errno.EINVAL),
        ("sleep_millisecs", "x", errno.EINVAL),
        ("max_page_sharing", "1", errno.EINVAL),
        ("max_page_sharing", "-5", errno.EINVAL),
        ("max_page_sharing", "2147483648", errno.ERANGE),
        ("merge_across_nodes", "2", errno.EINVAL),
        ("use_zero_pages", "2", errno.EINVAL),
        ("smart_scan", "o", errno.EINVAL),
        ("advisor_mode", "scan", errno.EINVAL),
        ("advisor_target_scan_time", "0", errno.EINVAL),
        ("pages_shared", "1", errno.EACCES),
        ("nothing", "1", errno.ENOENT),
    ],
)
def test_refused_writes(machine: Machine, name: str, text: str, error: int) -> None:
    """Source: Linux v6.8 lib/kstrtox.c; files of sysfs without a store cannot be opened for writing."""
    assert errno_of(lambda: write_sysfs(machine, name, text)) == error


def test_numbers_are_taken_as_linux_takes_them(machine: Machine) -> None:
    for name in sorted(
        WRITABLE_KSM_FILES - {"run", "advisor_mode", "use_zero_pages", "smart_scan", "merge_across_nodes"}
    ):
        write_sysfs(machine, name, "+0007")
        assert sysfs(machine, name) == 7
    for value, text in ((1, "Yes"), (0, "off"), (1, "on"), (0, "No")):
        write_sysfs(machine, "use_zero_pages", text)
        assert sysfs(machine, "use_zero_pages") == value


def test_the_advisor_owns_pages_to_scan(machine: Machine) -> None:
    write_sysfs(machine, "pages_to_scan", 7)
    write_sysfs(machine, "advisor_mode", "scan-time")
    assert show_ksm(machine.frames, "advisor_mode") == b"none [scan-time]\n"
    assert sysfs(machine, "pages_to_scan") == 500
    assert errno_of(lambda: write_sysfs(machine, "pages_to_scan", 7)) == errno.EINVAL
    write_sysfs(machine, "advisor_mode", "none")
    assert sysfs(machine, "pages_to_scan") == 100


@pytest.mark.parametrize(
    ("seconds", "cpu", "pages"),
    [
        # factor = 200 * 100 / s; change = 30 % of 100; pages = 500 * 100 / factor * 30 / 100, within the limits of cpu.
        (100, 1.0, 5000),
        (400, 40.0, 500),
        (1000, 500.0, 700),
        (2, 0.0, 5000),
    ],
)
def test_the_advisor_after_a_scan(machine: Machine, seconds: int, cpu: float, pages: int) -> None:
    ksm = ksm_of(machine.frames)
    write_sysfs(machine, "advisor_mode", "scan-time")
    ksm.cpu_seconds = cpu
    scan_time_advisor(ksm, seconds)
    assert ksm.settings.pages_to_scan == pages
