"""Maps as text into values, names into ranges; the referee for the format is this host's own /proc/self/maps."""

from __future__ import annotations

from pathlib import Path

import pytest

from inspector.maps import NamedRun, find_named
from shared.proc_maps import Mapping, parse_maps

TEXT = """\
00400000-00401000 r--p 00000000 08:02 173521      /usr/bin/a program
00401000-00403000 r-xp 00001000 08:02 173521      /usr/bin/a program
00600000-00601000 rw-p 00002000 08:02 173521      /usr/bin/a program
00e03000-00e24000 rw-p 00000000 00:00 0           [heap]
7f0000000000-7f0000010000 rw-p 00000000 00:00 0
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
"""


def test_lines_become_mappings() -> None:
    mappings = parse_maps(TEXT)
    assert len(mappings) == 6
    assert mappings[1] == Mapping(0x401000, 0x403000, "r-xp", 0x1000, "08:02", 173521, "/usr/bin/a program")
    assert mappings[4] == Mapping(0x7F00_0000_0000, 0x7F00_0001_0000, "rw-p", 0, "00:00", 0, "")


def test_the_hosts_own_maps_are_understood() -> None:
    text = Path("/proc/self/maps").read_text(encoding="utf-8")
    mappings = parse_maps(text)
    assert len(mappings) == text.count("\n")
    for line, mapping in zip(text.splitlines(), mappings, strict=True):
        assert line.startswith(f"{mapping.start:08x}-{mapping.end:08x} {mapping.perms} {mapping.offset:08x} ")
        assert line.endswith(mapping.name)
    assert find_named(mappings, "[stack]") is not None


@pytest.mark.parametrize("line", ["nonsense", "00400000 r--p 0 08:02 1", "zz-qq r--p 0 08:02 1"])
def test_another_format_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"maps|base 16|unpack|literal"):
        parse_maps(line)


@pytest.mark.parametrize("name", ["/usr/bin/a program", "a program"])
def test_neighbours_of_one_name_are_one_range(name: str) -> None:
    assert find_named(parse_maps(TEXT), name) == NamedRun(0x400000, 0x403000, elsewhere=1)


@pytest.mark.parametrize("name", ["[heap]", "heap"])
def test_brackets_need_not_be_typed(name: str) -> None:
    assert find_named(parse_maps(TEXT), name) == NamedRun(0xE03000, 0xE24000, elsewhere=0)


def test_a_file_comes_before_what_stands_in_brackets() -> None:
    text = TEXT + "7fff00000000-7fff00001000 r--p 00000000 08:02 7 /tmp/heap\n"
    assert find_named(parse_maps(text), "heap") == NamedRun(0x7FFF_0000_0000, 0x7FFF_0000_1000, elsewhere=0)


@pytest.mark.parametrize("name", ["", "[vdso]", "program", "/bin/a program"])
def test_no_such_name(name: str) -> None:
    assert find_named(parse_maps(TEXT), name) is None
