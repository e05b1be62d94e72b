"""What people and programs read. JSON is read back; text lines are compared whole, for they are what is promised."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click
import pytest

from inspector.table import Entry, diff
from inspector.view import (
    WIDE_COLUMNS,
    Print,
    flag_words,
    json_line,
    maps_json_line,
    maps_lines,
    page_json_line,
    text_lines,
)
from shared.proc_maps import Mapping
from shared.uapi.page import PAGE_SIZE

BASE = 0x7F00_0000_0000
TIME = datetime(2024, 11, 22, 14, 3, 7, 123_456, tzinfo=UTC)


def make_print(before: list[tuple[int, int]] | None, now: list[tuple[int, int]], exited: bool = False) -> Print:
    """Return a print of (flags, pfn) cells from BASE on."""

    def entries(cells: list[tuple[int, int]]) -> list[Entry]:
        return [Entry(BASE + index * PAGE_SIZE, pfn, flags) for index, (flags, pfn) in enumerate(cells)]

    return Print(
        time=TIME,
        pid=42,
        start=BASE,
        end=BASE + len(now) * PAGE_SIZE,
        entries=entries(now),
        changes=diff(None if before is None else entries(before), entries(now)),
        first=before is None,
        exited=exited,
    )


def plain(shown: Print, every_page: bool = False) -> list[str]:
    """Return the text of a print without colours."""
    return [click.unstyle(line) for line in text_lines(shown, every_page)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (0, "-"),
        (1, "allocated"),
        (3, "allocated anonymous"),
        (7, "allocated anonymous mapped"),
        (5, "allocated mapped"),
        (0x9, "allocated 0x8"),
    ],
)
def test_flags_in_words(flags: int, words: str) -> None:
    assert flag_words(flags) == words


def test_a_first_print() -> None:
    assert plain(make_print(None, [(7, 0x1A3), (7, 0x1A4), (3, 0), (0, 0)])) == [
        "14:03:07.123  pid 42  0x7f0000000000-0x7f0000004000  4 pages: 3 allocated, 3 anonymous, 2 mapped, first print",
        "  0x7f0000000000-0x7f0000002000     2 pages  pfn 0x1a3..0x1a4      allocated anonymous mapped",
        "  0x7f0000002000-0x7f0000003000      1 page  pfn -                 allocated anonymous",
        "  0x7f0000003000-0x7f0000004000      1 page  pfn -                 -",
    ]


def test_a_narrow_terminal_has_no_line_in_two() -> None:
    shown = make_print(None, [(7, 0x2A_5237), (7, 0x2A_5238), (3, 0), *[(0, 0)] * 2045])
    assert [click.unstyle(line) for line in text_lines(shown, every_page=False, narrow=True)] == [
        "14:03:07.123  pid 42  0x7f0000000000-0x7f0000800000",
        "  2048 pages: 3 allocated, 3 anonymous, 2 mapped, first print",
        "  0x7f0000000000     2 pages  pfn 0x2a5237..0x2a5238  allocated anonymous mapped",
        "  0x7f0000002000      1 page  pfn -                 allocated anonymous",
        "  0x7f0000003000  2045 pages  pfn -                 -",
    ]


def test_a_wide_line_is_no_longer_than_is_said() -> None:
    shown = make_print([(3, 0)] * 2048, [(7, 0x12_0000 + page) for page in range(2048)])
    assert max(len(line) for line in plain(shown)[1:]) == WIDE_COLUMNS
    narrow = [click.unstyle(line) for line in text_lines(shown, every_page=False, narrow=True)]
    assert max(map(len, narrow)) <= 80


def test_changes_are_marked() -> None:
    before = [(3, 0), (7, 2), (7, 3), (3, 0)]
    lines = plain(make_print(before, [(7, 1), (3, 0), (7, 9), (3, 0)]))
    assert lines[0].endswith("4 pages: 4 allocated, 4 anonymous, 2 mapped, 3 changed")
    assert [line[0] for line in lines[1:]] == ["+", "-", "*", " "]


def test_every_page_has_a_line() -> None:
    lines = plain(make_print(None, [(7, 1), (7, 1), (3, 0)]), every_page=True)
    assert lines[1:] == [
        "  0x7f0000000000  pfn 0x1       allocated anonymous mapped",
        "  0x7f0000001000  pfn 0x1       allocated anonymous mapped",
        "  0x7f0000002000  pfn -         allocated anonymous",
    ]


def test_one_frame_under_many_pages_says_each() -> None:
    assert "pfn 0x1 each " in plain(make_print(None, [(7, 1), (7, 1)]))[1]


def test_only_changed_lines_are_coloured() -> None:
    header, changed, unchanged = text_lines(make_print([(3, 0), (3, 0)], [(7, 1), (3, 0)]), every_page=False)
    assert changed == click.style(click.unstyle(changed), fg="green")
    assert unchanged == click.unstyle(unchanged)
    assert header != click.unstyle(header)


def test_an_exit_is_in_the_header() -> None:
    assert "pid 42 (exited)  " in plain(make_print(None, [(0, 0)], exited=True))[0]


def test_json_is_one_line_with_everything() -> None:
    line = json_line(make_print([(3, 0), (3, 0)], [(3, 0), (7, 9)], exited=True))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2024-11-22T14:03:07.123+00:00",
        "pid": 42,
        "start": BASE,
        "end": BASE + 0x2000,
        "entries": [{"vaddr": BASE, "pfn": 0, "flags": 3}, {"vaddr": BASE + 0x1000, "pfn": 9, "flags": 7}],
        "changed": [1],
        "exited": True,
    }


def test_a_page_as_json() -> None:
    value = json.loads(page_json_line(TIME, 42, Entry(BASE, 9, 7), b"\x00\xff"))
    assert value == {
        "time": "2024-11-22T14:03:07.123+00:00",
        "pid": 42,
        "vaddr": BASE,
        "pfn": 9,
        "flags": 7,
        "contents": "00ff",
    }


def test_maps_can_be_pasted_back() -> None:
    heap = Mapping(0xE0_3000, 0xE2_4000, "rw-p", 0, "00:00", 0, "[heap]")
    nameless = Mapping(BASE, BASE + 0x1000, "---p", 0, "00:00", 0, "")
    assert list(maps_lines([heap, nameless])) == [
        "0x000000e03000 0x000000e24000  rw-p       132 KiB  [heap]",
        "0x7f0000000000 0x7f0000001000  ---p         4 KiB",
    ]
    assert json.loads(maps_json_line(TIME, 42, [heap]))["maps"] == [heap._asdict()]


def test_a_name_steers_no_terminal() -> None:
    mapping = Mapping(BASE, BASE + PAGE_SIZE, "r--p", 0, "08:02", 7, "/tmp/\x1b[31mred\x07 \udcff \u00e9")
    (line,) = maps_lines([mapping])
    assert line.endswith("/tmp/\\033[31mred\\007 \\377 \u00e9")
