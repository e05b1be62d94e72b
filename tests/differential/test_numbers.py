"""The numbers of /proc that the referee compares: which are the program's, and that each that differs is seen."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from kerneld.referee.compare import may_be_of_writeback
from kerneld.referee.execute import Execution
from kerneld.referee.host_view import find_uncounted
from kerneld.referee.match import Match
from kerneld.referee.numbers import (
    ProcTexts,
    find_different_number,
    find_different_total,
    parse_numbers,
    parse_smaps,
    since,
    totals,
)
from kerneld.referee.outcome import State
from kerneld.referee.program import At, Op

SMAPS = b"""\
7ffff7ffe000-7ffff7fff000 rw-p 00000000 00:00 0\x20
Size:                  4 kB
Rss:                   4 kB
Pss:                   2 kB
Anonymous:             4 kB
THPeligible:           0
VmFlags: rd wr mr mw me ac lo lf\x20
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]
Size:                132 kB
Rss:                   8 kB
Pss:                   5 kB
Anonymous:             8 kB
THPeligible:           0
VmFlags: rd wr mr mw me gd ac lo\x20
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Size:                  4 kB
VmFlags: ex\x20
"""
TEXTS = ProcTexts(
    b"7ffff7ffe000-7ffffffff000 ---p 00000000 00:00 0    [rollup]\nRss:   12 kB\nPss:   7 kB\nPss_Anon:    7 kB\n"
    b"Anonymous:   12 kB\n",
    b"Name:\tprogram\nVmPeak:\t    140 kB\nVmSize:\t    136 kB\nVmLck:\t     136 kB\nVmHWM:\t 16 kB\nVmRSS:\t  12 kB\n"
    b"RssAnon:\t  12 kB\nRssFile:\t  0 kB\nRssShmem:\t  0 kB\nVmData:\t 4 kB\nVmStk:\t 132 kB\nVmExe:\t 0 kB\n"
    b"VmLib:\t 0 kB\nVmPTE:\t 44 kB\nThreads:\t1\n",
    b"34 3 0 1 0 34 0\n",
    b"7 (a name) ) S " + b" ".join(str(number).encode() for number in range(4, 53)) + b"\n",
)


def test_mappings_and_their_numbers() -> None:
    program, stack, _ = parse_smaps(SMAPS)
    assert (program.start, program.end, program.name) == (0x7FFFF7FFE000, 0x7FFFF7FFF000, "")
    assert "??" in program.flags
    assert parse_numbers(program.numbers) == {"Size": 4, "Rss": 4, "Pss": 2, "Anonymous": 4, "THPeligible": 0}
    assert parse_numbers(stack.numbers)["Size"] == 132


def test_what_is_the_runners_own_is_taken_off() -> None:
    found = totals(TEXTS, parse_smaps(SMAPS)[1:])
    assert (found["rollup Rss"], found["rollup Pss"], found["rollup Pss_Anon"]) == (4, 2, 2)
    assert (found["VmPeak"], found["VmSize"], found["VmLck"]) == (8, 4, 4)
    assert (found["VmHWM"], found["VmRSS"], found["RssAnon"]) == (8, 4, 4)
    assert (found["statm size"], found["statm resident"], found["statm shared"]) == (1, 1, 0)
    assert (found["stat vsize"], found["stat rss"], found["stat rsslim"]) == ((23 >> 10) - 132, 24 - 2, 25)
    assert since(found, found | {"VmStk": 132, "VmData": 0})["VmStk"] == 0


def test_a_number_that_differs_is_named() -> None:
    numbers = b"Rss:    4 kB\nPss:    2 kB\n"
    assert find_different_number(numbers, numbers) is None
    assert find_different_number(numbers, b"Rss:    4 kB\nPss:    4 kB\n") == ("Pss", 2, 4)
    assert find_different_number(numbers, b"Rss:    4 kB\nPss:    2 kB\nNew:   1 kB\n") is None
    assert find_different_total({"VmLck": 4}, {"VmLck": 8}) == ("VmLck", 4, 8)


def test_what_is_rounded_or_lags_behind_may_differ_by_so_much() -> None:
    assert find_different_total({"rollup Pss": 4}, {"rollup Pss": 8}) is None
    assert find_different_total({"rollup Pss": 4}, {"rollup Pss": 9}) == ("rollup Pss", 4, 9)
    assert find_different_total({"VmHWM": 4}, {"VmHWM": 8}) is None
    assert find_different_total({"VmHWM": 4}, {"VmHWM": 8, "stat rss": 1}) == ("VmHWM", 4, 8)
    assert find_different_total({"VmHWM": 2048}, {"VmHWM": -164}) is None  # 6.1: faults of one thread
    assert find_different_total({"VmHWM": 0}, {"VmHWM": 8192}) == ("VmHWM", 0, 8192)


def test_counters_that_lag_behind_are_found_by_a_page() -> None:
    before = dict.fromkeys(("VmRSS", "RssAnon", "statm resident", "stat rss"), 8)
    assert find_uncounted(before, dict.fromkeys(before, 12)) == frozenset()
    assert find_uncounted(before, before | {"VmRSS": 12, "RssAnon": 12, "statm resident": 9}) == {"stat rss"}
    assert {"VmRSS", "VmSwap", "RssShmem", "statm shared"} <= find_uncounted(before, before)


@pytest.mark.parametrize("what", ["a mapping's", "a process's"])
def test_the_referee_sees_a_number_that_differs(match: Match, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    program = (Op(0, "mmap", (At(-1), 8192, 3, 0x22, 0), slot=0), Op(0, "store", (At(0), 8), data=b"\xf5"))
    assert match.play(program) is None
    run = Execution.run
    steps = itertools.count()

    def run_altered(self: Execution[Any], op: Op, **parts: bool) -> State:
        """kerneld's side runs first."""
        state = run(self, op, **parts)
        if next(steps) != 2:
            return state
        view = state.views[0]
        mapping = view.mappings[0]
        if what == "a mapping's":
            mapping = mapping._replace(
                numbers=mapping.numbers.replace(b"Anonymous:             4", b"Anonymous:      8")
            )
            return state._replace(views={0: view._replace(mappings=(mapping,))})
        return state._replace(views={0: view._replace(totals=view.totals | {"VmLck": 4})})

    monkeypatch.setattr(Execution, "run", run_altered)
    divergence = match.play(program)
    assert divergence is not None
    name = "Anonymous of the mapping" if what == "a mapping's" else "VmLck of process 0"
    assert divergence.step == 1
    assert divergence.difference[0].startswith(name)


@pytest.mark.parametrize(("file", "runs", "counts"), [(1, 1, False), (1, 2, False), (1, 9, True), (0, 1, True)])
def test_what_a_sync_of_the_host_may_have_written(
    match: Match, monkeypatch: pytest.MonkeyPatch, file: int, runs: int, counts: bool
) -> None:
    """Only of a file on a disk, and only if not all runs have it: a host may write all the time."""
    program = (Op(0, "mmap", (At(-1), 4096, 3, 1, 0), slot=0, file=file), Op(0, "store", (At(0), 8), data=b"\xf5"))
    assert match.play(program) is None
    run = Execution.run
    steps = itertools.count()

    def run_altered(self: Execution[Any], op: Op, **parts: bool) -> State:
        """In a run that ends by the difference, kerneld's second state is the third of all."""
        state = run(self, op, **parts)
        number = next(steps)
        if number % 4 != 2 or number >= 4 * runs:
            return state
        mapping = state.views[0].mappings[0]
        clean = mapping._replace(numbers=re.sub(rb"(Pss_Dirty: +)\d+", rb"\g<1>0", mapping.numbers))
        return state._replace(views={0: state.views[0]._replace(mappings=(clean,))})

    monkeypatch.setattr(Execution, "run", run_altered)
    assert (match.play(program) is not None) is counts


def test_what_a_page_that_was_written_shows() -> None:
    assert may_be_of_writeback(("Pss_Dirty of the mapping at 0x1000 of process 0", "4", "0"))
    assert may_be_of_writeback(("rollup Private_Clean of process 0", "4", "0"))
    assert may_be_of_writeback(("kpageflags of page 0x1000 of process 0", "UPTODATE DIRTY LRU", "UPTODATE LRU"))
    assert not may_be_of_writeback(("kpageflags of page 0x1000 of process 0", "UPTODATE DIRTY LRU", "UPTODATE"))
    assert not may_be_of_writeback(("Pss of the mapping at 0x1000 of process 0", "4", "0"))
