"""The function tracer's lines, in the columns of Linux's."""

from __future__ import annotations

import pytest

from shared.trace.event import Event
from shared.trace.events import FUNCGRAPH_ENTRY, FUNCGRAPH_EXIT, FUNCTION
from shared.trace.graph_text import Graph, duration_text, function_line
from shared.trace.record import Comm, Lost, Record
from shared.trace.text import Names


def record(event: Event, pid: int = 7, time: int = 0, **fields: object) -> Record:
    return Record(event, time, pid, pid, 0, (), 0, 0, fields)


def begins(func: str, depth: int, pid: int = 7) -> Record:
    return record(FUNCGRAPH_ENTRY, pid, func=func, depth=depth)


def ends(func: str, depth: int, duration: int = 1234, pid: int = 7) -> Record:
    return record(FUNCGRAPH_EXIT, pid, func=func, depth=depth, overrun=0, calltime=1000, rettime=1000 + duration)


def lines(*records: Record | Lost, classes: bool = False) -> list[str]:
    names = Names()
    names.note(Comm(7, 1, "target"))
    names.note(Comm(8, 2, "a-very-long-name"))
    graph = Graph(names, classes=classes)
    found: list[str] = []
    for one in records:
        found += graph.lost(one) if isinstance(one, Lost) else graph.add(one)
    return found + list(graph.end())


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "  0.000 us    |  "),
        (1_234, "  1.234 us    |  "),
        (10_000, "  10.000 us   |  "),
        (10_001, "+ 10.001 us   |  "),
        (123_456, "! 123.456 us  |  "),
        (1_234_567, "# 1234.567 us |  "),
        (12_345_678, "* 12345.67 us |  "),
        (123_456_789, "@ 123456.7 us |  "),
        (1_234_567_890, "$ 1234567 us  |  "),
    ],
)
def test_durations(nanoseconds: int, text: str) -> None:
    assert duration_text(nanoseconds) == text


def test_a_leaf_is_one_line_and_what_calls_is_a_block() -> None:
    assert lines(
        begins("do_user_addr_fault", 0), begins("MmStruct.find_vma", 1), ends("MmStruct.find_vma", 1),
        ends("do_user_addr_fault", 0, 12_500),
    ) == [
        " 0)               |  do_user_addr_fault() {",
        " 0)   1.234 us    |    find_vma();",
        " 0) + 12.500 us   |  }",
    ]  # fmt: skip


def test_a_method_with_its_class() -> None:
    assert lines(begins("VmaTree.find", 0), ends("VmaTree.find", 0), classes=True) == [
        " 0)   1.234 us    |  VmaTree.find();"
    ]


def test_what_has_begun_and_is_not_over_stays_open() -> None:
    assert lines(begins("f", 0)) == [" 0)               |  f() {"]


def test_an_end_whose_beginning_was_lost_says_whose_it_is() -> None:
    assert lines(begins("f", 0), begins("g", 1), Lost(3), ends("f", 0)) == [
        " 0)               |  f() {",
        " 0)               |    g() {",
        "CPU:0 [LOST 3 EVENTS]",
        " 0)   1.234 us    |  } /* f */",
    ]


def test_another_process_is_announced() -> None:
    found = lines(begins("f", 0), ends("f", 0), begins("g", 0, 8), ends("g", 0, pid=8))
    assert found[1:] == [
        " ------------------------------------------\n"
        " 0)    target-7    =>   a-very--8   \n"
        " ------------------------------------------\n",
        " 0)   1.234 us    |  g();",
    ]


def test_the_plain_tracers_line() -> None:
    names = Names()
    names.note(Comm(7, 1, "target"))
    line = function_line(
        record(FUNCTION, time=3_684_123_456_789, func="VmaTree.find", parent="find_vma"), names, classes=False
    )
    assert line == "          target-7       [000]  3684.123456: find <-find_vma"


def test_a_name_cannot_steer_the_terminal() -> None:
    names = Names()
    names.note(Comm(7, 1, "\x1b[2J\nevil"))
    shown = function_line(record(FUNCTION, func="f", parent="g"), names, classes=False)
    graph = Graph(names, classes=False)
    shown += "".join([*graph.add(begins("f", 0, pid=9)), *graph.add(begins("f", 0)), *graph.add(ends("f", 0))])
    assert "?[2J?evil" in shown
    assert "\x1b" not in shown
