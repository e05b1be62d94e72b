"""The table of docs/waits.md is what `make waits` has printed."""

from __future__ import annotations

from tests.hostile.waits import CASES, PROMISE_MS
from tests.hostile.waits_table import Row, read_rows, table
from tests.support.client import ROOT

LINES = """call / world                                     call             its end     took  made in   longest turn
munmap / wide                                   18.1 (   18.2)    28.4 (   29.2)    2.14s   14.02s
munmap / vmas, 4 at once                        51.5 (   60.5)    14.5 (   15.7)    2.98s    3.00s   <-- over
mremap by GiB / wide                             0.1 (    0.2)     8.0 (    9.0)    0.00s    1.00s No such process
1 of them over 50 ms
"""


def test_a_line_is_a_case() -> None:
    assert read_rows(LINES.splitlines()) == [
        Row("munmap", "wide", 28.4, ""),
        Row("munmap", "vmas, 4 at once", 51.5, ""),
        Row("mremap by GiB", "wide", 8.0, "No such process"),
    ]


def test_a_call_is_a_line() -> None:
    assert table(read_rows(LINES.splitlines())).splitlines()[2:] == [
        "| munmap | wide 28, vmas, 4 at once **52** |",
        "| mremap by GiB | wide 8 (No such process) |",
    ]


def test_a_table_may_be_read_again() -> None:
    made = table(read_rows(LINES.splitlines()))
    again = read_rows(made.splitlines())
    assert [(row.call, row.world, row.failure) for row in again] == [
        ("munmap", "wide", ""),
        ("munmap", "vmas, 4 at once", ""),
        ("mremap by GiB", "wide", "No such process"),
    ]
    assert [row.ms for row in again] == [28, 52, 8]


def test_the_page_has_every_case_and_none_is_over_the_promise() -> None:
    rows = read_rows((ROOT / "docs/waits.md").read_text().splitlines())
    names = [f"{row.call} / {row.world}" for row in rows]
    assert sorted(names) == sorted(case.name for case in CASES)
    assert [row for row in rows if "not made" in row.failure] == []
    assert {f"{row.call} / {row.world}" for row in rows if row.ms > PROMISE_MS} == set()
