"""The flags of frames that the referee compares: which count, and that one that differs is seen."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kerneld.referee.compare import may_be_of_migration
from kerneld.referee.execute import Execution
from kerneld.referee.match import Match
from kerneld.referee.outcome import State
from kerneld.referee.page_flags import find_different_flags
from kerneld.referee.program import At, Op
from kerneld.referee.rights import sees_frames

REFERENCED, UPTODATE, DIRTY, ACTIVE, WRITEBACK, ZERO_PAGE = (1 << bit for bit in (2, 3, 4, 6, 8, 24))
UNEVICTABLE, MLOCKED = 1 << 18, 1 << 33


def test_flags_that_differ_are_named() -> None:
    assert find_different_flags({1: UPTODATE}, {1: UPTODATE}) is None
    assert find_different_flags({0: 0, 1: UPTODATE}, {0: 0, 1: UPTODATE | DIRTY}) == (1, "UPTODATE", "UPTODATE DIRTY")
    assert find_different_flags({1: 0}, {1: UPTODATE}) == (1, "none", "UPTODATE")


def test_flags_of_accesses_are_compared_by_themselves() -> None:
    ours, hosts = {1: UPTODATE}, {1: UPTODATE | REFERENCED | ACTIVE}
    assert find_different_flags(ours, hosts) is None
    assert find_different_flags(ours, hosts, of_accesses=True) == (1, "none", "REFERENCED ACTIVE")


def test_flags_of_locked_memory_are_compared() -> None:
    ours, hosts = {1: UPTODATE}, {1: UPTODATE | UNEVICTABLE | MLOCKED}
    assert find_different_flags(ours, hosts) == (1, "UPTODATE", "UPTODATE UNEVICTABLE MLOCKED")


def test_flags_of_the_moment_and_what_the_zero_page_keeps_are_not_compared() -> None:
    assert find_different_flags({1: UPTODATE}, {1: UPTODATE | WRITEBACK}) is None
    old = ZERO_PAGE | REFERENCED | ACTIVE | DIRTY
    for of_accesses in (False, True):
        assert find_different_flags({1: ZERO_PAGE}, {1: old}, of_accesses=of_accesses) is None
    assert find_different_flags({1: ZERO_PAGE}, {1: old | UPTODATE}) is not None
    assert find_different_flags({1: DIRTY}, {1: old}) is not None


@pytest.mark.parametrize(("flag", "name"), [(DIRTY, "kpageflags of page"), (ACTIVE, "Referenced and active in")])
def test_the_referee_sees_a_flag_that_differs(
    match: Match, monkeypatch: pytest.MonkeyPatch, flag: int, name: str
) -> None:
    if not sees_frames():
        pytest.skip("only root sees the frames of pages and their flags")
    if flag == ACTIVE and "Referenced is not compared" in match.describe():
        pytest.skip("this host marks accessed pages in another way than Linux v6.8 by default")
    program = (Op(0, "mmap", (At(-1), 8192, 3, 0x22, 0), slot=0), Op(0, "store", (At(0), 8), data=b"\xf5"))
    assert match.play(program) is None
    run = Execution.run
    steps = itertools.count()

    def run_altered(self: Execution[Any], op: Op, **parts: bool) -> State:
        """kerneld's side runs first. A host with DAMON is asked again."""
        state = run(self, op, **parts)
        if next(steps) % 4 != 2:
            return state
        view = state.views[0]
        flags = {vaddr: word ^ flag for vaddr, word in view.page_flags.items()}
        return state._replace(views={0: view._replace(page_flags=flags)})

    monkeypatch.setattr(Execution, "run", run_altered)
    divergence = match.play(program)
    assert divergence is not None
    assert divergence.step == 1
    assert divergence.difference[0].startswith(name)


@pytest.mark.parametrize(("runs", "counts"), [(1, False), (3, False), (4, True)])
def test_a_dirty_page_of_the_host_counts_if_it_comes_each_time(
    match: Match, monkeypatch: pytest.MonkeyPatch, runs: int, counts: bool
) -> None:
    if not sees_frames():
        pytest.skip("only root sees the frames of pages and their flags")
    program = (Op(0, "mmap", (At(-1), 8192, 3, 0x22, 0), slot=0), Op(0, "store", (At(0), 8), data=b"\xf5"))
    run = Execution.run
    steps = itertools.count()

    def run_altered(self: Execution[Any], op: Op, **parts: bool) -> State:
        """kerneld's side runs first."""
        state = run(self, op, **parts)
        number = next(steps)
        if number % 4 != 3 or number >= 4 * runs:
            return state
        view = state.views[0]
        flags = {vaddr: word | DIRTY for vaddr, word in view.page_flags.items()}
        return state._replace(views={0: view._replace(page_flags=flags)})

    monkeypatch.setattr(Execution, "run", run_altered)
    assert (match.play(program) is not None) is counts


_COMPACT = Path("/proc/sys/vm/compact_memory")


@contextlib.contextmanager
def _compaction() -> Iterator[None]:
    """Have the host move pages all the time."""
    is_over = threading.Event()

    def compact() -> None:
        while not is_over.wait(0.005):
            _COMPACT.write_text("1")

    thread = threading.Thread(target=compact)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def test_a_host_that_moves_pages_is_a_referee(match: Match) -> None:
    try:
        _COMPACT.write_text("1")
    except OSError as error:
        pytest.skip(f"this host's pages cannot be made to move: {error}")
    pages = 64
    written = (Op(0, "mmap", (At(-1), pages << 12, 3, 0x22, 0), slot=0), Op(0, "touch", (At(0), pages << 12, 1)))
    program = written + tuple(Op(0, "mincore", (At(0), pages << 12)) for _ in range(40))
    with _compaction():
        for _ in range(3):
            assert match.play(program) is None


def test_what_a_page_that_has_moved_shows() -> None:
    name = "kpageflags of page 0x1000 of process 0"
    assert may_be_of_migration((name, "UPTODATE LRU ANON", "UPTODATE DIRTY LRU ANON"))
    assert not may_be_of_migration((name, "UPTODATE DIRTY LRU ANON", "UPTODATE LRU ANON"))
    assert may_be_of_migration((name, "UPTODATE LRU ANON", "UPTODATE DIRTY ANON"))
    assert may_be_of_migration(("the page at 0x1000 of process 0", "present exclusive", "swapped"))
    assert may_be_of_migration((name, "UPTODATE LRU ANON", "none"))
    assert may_be_of_migration(("the page at 0x1000 of process 0", "present", "present soft-dirty"))
    assert not may_be_of_migration(("the page at 0x1000 of process 0", "present soft-dirty", "present"))
    assert not may_be_of_migration((name, "UPTODATE LRU ANON", "UPTODATE DIRTY LRU"))
    assert not may_be_of_migration(("the page at 0x1000 of process 0", "swapped", "present exclusive"))


@pytest.mark.parametrize(
    "name", ["Shared_Dirty of the mapping at 0x1000 of process 0", "rollup Shared_Dirty of process 0"]
)
def test_in_a_newer_kernels_smaps_a_page_that_is_moving_is_shared(name: str) -> None:
    private = name.replace("Shared", "Private")
    assert may_be_of_migration((name, "0", "140"))
    assert not may_be_of_migration((name, "140", "0"))
    assert may_be_of_migration((private, "256", "116"))
    assert not may_be_of_migration((private, "116", "256"))
    assert not may_be_of_migration((name.replace("Shared_Dirty", "Anonymous"), "0", "140"))
