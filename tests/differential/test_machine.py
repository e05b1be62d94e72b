"""The counters of the whole machine: what is compared of them, and when nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.referee.errors import HostError
from kerneld.referee.execute import play
from kerneld.referee.machine import Counters, HostCounters, find_different_counter
from kerneld.referee.program import At, Op
from kerneld.referee.simulated import Simulated
from shared.uapi.mman import Madv
from tests.differential.alone import LAYOUT, facts

MEMINFO = b"MemTotal:       24682084 kB\nCommitted_AS:      %d kB\n"
RW, ANON = 3, 0x22
REGION = Op(0, "mmap", (At(-1), 3 * 4096, RW, ANON, 0), slot=0)


def counters(faults: int, committed_kb: int, own: int = 0) -> Counters:
    vmstat = f"nr_free_pages 5\nnr_anon_pages 7\npgfault {faults}\npgmajfault 0\n".encode()
    return Counters(vmstat, MEMINFO % committed_kb, own, own)


def test_differences_of_what_is_compared() -> None:
    found = counters(5, 20).since(counters(2, 8))
    assert found == {"nr_anon_pages": 0, "pgfault": 3, "pgmajfault": 0, "Committed_AS": 12}


def test_faults_of_who_reads_spoil_all() -> None:
    assert counters(5, 20, own=1).since(counters(2, 8)) == {}


def test_the_first_counter_that_differs_is_named() -> None:
    assert find_different_counter({"pgfault": 1, "nr_mapped": 2}, {"nr_mapped": 2}) is None
    assert find_different_counter({"pgfault": 1, "nr_mapped": 2}, {"nr_mapped": 3}) == ("nr_mapped", 2, 3)


def test_a_host_whose_counters_cannot_be_collected(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="not exact here: No such file"):
        HostCounters(tmp_path)


def test_kernelds_counters_of_each_operation(tmp_path: Path) -> None:
    program = (
        REGION,
        Op(0, "store", (At(0), 1), data=b"\xf5"),
        Op(0, "madvise", (At(0), 3 * 4096, Madv.POPULATE_WRITE.value)),
        Op(0, "mlock2", (At(0), 4096, 0)),
        Op(0, "fork", (1,)),
        Op(0, "munmap", (At(0), 3 * 4096)),
    )
    ours = Simulated(tmp_path, facts())
    try:
        found = [state.counters for state in play(ours, LAYOUT, program, counts=True)]
    finally:
        ours.close()
    names = ("nr_anon_pages", "pgfault", "nr_mlock", "Committed_AS")
    assert [tuple(each[name] for name in names) for each in found if each] == [
        (0, 0, 0, 12),
        (1, 1, 0, 0),
        (2, 2, 0, 0),
        (0, 0, 1, 0),
        (0, 0, -1, -12),
    ]
    assert found[4] == {}
