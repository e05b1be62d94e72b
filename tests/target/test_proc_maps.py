"""The formats of /proc/self/maps and /proc/self/pagemap, as the host's kernel writes them."""

from __future__ import annotations

from pathlib import Path

from target.proc_maps import Mapping, find_mapping, parse_maps, read_pfns
from tests.target.fake_process import STACK_START, FakeProcess


def test_a_line_with_a_name_and_one_without() -> None:
    text = (
        "00400000-00401000 r-xp 00000000 08:01 42                       /bin/a program\n"
        "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 \n"
    )
    first, second = parse_maps(text)
    assert (first.start, first.end, first.rights, first.name) == (0x400000, 0x401000, "r-xp", "/bin/a program")
    assert (second.start, second.end, second.name) == (0x7FFC00000000, 0x7FFC00021000, "")


def test_the_hosts_own_maps_can_be_read() -> None:
    mappings = parse_maps(Path("/proc/self/maps").read_text())

    assert isinstance(find_mapping(mappings, "[stack]"), Mapping)
    assert find_mapping(mappings, "[no such]") is None


def test_frames_are_those_of_present_pages() -> None:
    process = FakeProcess()
    process.mem.store_u8(STACK_START, 1)

    assert read_pfns(process.as_process(), STACK_START, 2) == [0x100, 0]
