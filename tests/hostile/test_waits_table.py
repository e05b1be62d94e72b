"""The table of docs/waits.md is what `make waits` has printed."""

from __future__ import annotations

from tests.hostile.waits_table import Row, read_rows, table

LINES = """call / world                                     call             its end     took   longest turn in ms
munmap / wide                                   18.1 (   18.2)    28.4 (   29.2)    2.14s
munmap / vmas, 4 at once                        51.5 (   60.5)    14.5 (   15.7)    2.98s   <-- over
mremap by GiB / wide                             0.1 (    0.2)     8.0 (    9.0)    0.00s Cannot allocate memory
1 of them over 50 ms
"""


def test_a_line_is_a_case() -> None:
    assert read_rows(LINES.splitlines()) == [
        Row("munmap", "wide", 28.4, ""),
        Row("munmap", "vmas, 4 at once", 51.5, ""),
        Row("mremap by GiB", "wide", 8.0, "Cannot allocate memory"),
    ]


def test_a_call_is_a_line() -> None:
    assert table(read_rows(LINES.splitlines())).splitlines()[2:] == [
        "| munmap | wide 28, vmas, 4 at once **52** |",
        "| mremap by GiB | wide 8 (Cannot allocate memory) |",
    ]
