"""The OOM killer: how bad a process is, who is chosen, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.mm.frames.kernel_objects import VMA_BYTES
from kerneld.mm.reclaim.oom import (
    OOM_SCORE_ADJ_MIN,
    OomKiller,
    OomTask,
    oom_badness,
    pgtables_bytes,
    select_bad_process,
    total_of,
)
from kerneld.mm.space.mm import MmStruct
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import ANON, BASE, NONE, RW, SHARED_ANON, Machine, checked, mmap, page, store


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(swap_bytes=1 << 20))


def user(machine: Machine, pages: int, flags: int = ANON) -> MmStruct:
    """Return an address space with so many resident pages."""
    mm = machine.new_mm()
    if pages:
        mmap(mm, pages, RW, flags, at=BASE)
        for number in range(pages):
            store(mm, page(number), b"x")
    return mm


def task(pid: int, mm: MmStruct, *copies: MmStruct) -> OomTask:
    return OomTask(pid, 1000, f"task{pid}", mm, copies)


def test_badness_is_what_would_be_won(machine: Machine) -> None:
    mm = user(machine, 5)
    tables = pgtables_bytes(mm) // PAGE_SIZE
    assert tables == 3
    assert oom_badness(mm) == 5 + tables
    machine.reclaim_all()
    assert oom_badness(mm) == 5 + tables, "what is in the swap file counts on"
    assert oom_badness(user(machine, 0)) == 0


def test_shared_memory_counts_for_who_maps_it(machine: Machine) -> None:
    assert oom_badness(user(machine, 5, SHARED_ANON)) == 5 + 3


def test_very_many_mappings_count_as_the_memory_that_they_take(machine: Machine) -> None:
    mm = machine.new_mm()
    for number in range(1001):
        mmap(mm, 1, NONE, at=page(2 * number))
    assert oom_badness(mm) == pgtables_bytes(mm) // PAGE_SIZE + 1001 * VMA_BYTES // PAGE_SIZE


def test_the_worst_is_chosen_and_of_equals_the_last(machine: Machine) -> None:
    small, large, other = (user(machine, pages) for pages in (2, 6, 6))
    assert select_bad_process([]) is None
    assert select_bad_process([task(1, large), task(2, small)]) == task(1, large)
    assert select_bad_process([task(1, large), task(2, other), task(3, small)]) == task(2, other)


def test_an_adjustment_counts_in_thousandths_of_all_memory(machine: Machine) -> None:
    small, large = user(machine, 2), user(machine, 6)
    thousandth = total_of(machine.frames) // 1000
    more = -(-(oom_badness(large) - oom_badness(small)) // thousandth)
    chosen = [task(1, small)._replace(oom_score_adj=adj) for adj in (more - 1, more + 1)]
    assert [select_bad_process([each, task(2, large)]) for each in chosen] == [task(2, large), chosen[1]]
    spared = task(2, large)._replace(oom_score_adj=OOM_SCORE_ADJ_MIN)
    assert select_bad_process([task(1, small), spared]) == task(1, small)
    assert select_bad_process([spared]) is None


def test_a_copy_that_waits_for_a_child_counts_for_its_parent(machine: Machine) -> None:
    small, large = user(machine, 2), user(machine, 6)
    chosen = select_bad_process([task(1, large), task(2, small, machine.fork(large))])
    assert chosen is not None
    assert chosen.pid == 2


@pytest.mark.parametrize("is_free", [False, True])
def test_the_killer_kills_one_and_says_whether_that_made_room(machine: Machine, *, is_free: bool) -> None:
    killed: list[int] = []

    def kill(pid: int) -> bool:
        killed.append(pid)
        return is_free

    tasks = [task(1, user(machine, 2)), task(2, user(machine, 6))]
    killer = OomKiller(machine.frames, lambda: tasks, lambda: "allocator", kill)
    assert killer.out_of_memory() is is_free
    assert killed == [2]
    assert machine.frames.vmstat["oom_kill"] == 1


def test_without_anybody_to_kill_nothing_is_done(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    killer = OomKiller(machine.frames, list, lambda: "allocator", lambda pid: True)
    assert not killer.out_of_memory()
    assert "no killable processes" in capsys.readouterr().out
    assert machine.frames.vmstat["oom_kill"] == 0


def test_the_log_has_what_linux_says(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [task(1, user(machine, 2)), task(7, user(machine, 6))]
    OomKiller(machine.frames, lambda: tasks, lambda: "allocator", lambda pid: True).out_of_memory()
    said = capsys.readouterr().out
    assert "allocator invoked oom-killer: gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0" in said
    assert "Out of memory: Killed process 7 (task7) total-vm:24kB, anon-rss:24kB, file-rss:0kB, shmem-rss:0kB" in said
    assert "task=task7,pid=7,uid=1000" in said
