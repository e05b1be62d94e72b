"""What a program inside reads under /proc about memory is kerneld's, of itself and of others inside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.native.inside import Inside

LINE = re.compile(r"^[0-9a-f]+-[0-9a-f]+ [r-][w-][x-][ps] [0-9a-f]{8} [0-9a-f]{2,}:[0-9a-f]{2,} \d+ *(.*)$")


def test_maps_are_the_programs_own(inside: Inside) -> None:
    lines = inside.run(["cat", "/proc/self/maps"]).output.splitlines()
    names = []
    for line in lines:
        found = LINE.match(line)
        assert found is not None, line
        names.append(found[1])
    assert {"[heap]", "[stack]"} <= set(names)
    assert any(name.endswith("/cat") for name in names)
    assert not any("kerneld" in name for name in names)


@pytest.mark.parametrize("pid", ["self", "thread-self", "$$", "self/task/$$"])
def test_every_name_of_a_process_leads_there(inside: Inside, pid: str) -> None:
    assert "[stack]" in inside.run(["sh", "-c", f"read -r line < /proc/{pid}/maps; exec cat /proc/{pid}/maps"]).output


def test_status_is_the_hosts_with_our_lines_of_memory(inside: Inside) -> None:
    inner, outer = (run(["cat", "/proc/self/status"]).output.splitlines() for run in (inside.run, inside.outside))
    names = [line.split(":")[0] for line in inner]
    assert names == [line.split(":")[0] for line in outer]
    assert int(dict(line.split(":\t") for line in inner)["VmRSS"].split()[0]) > 0


def test_stat_has_our_fields_of_memory(inside: Inside) -> None:
    stat, statm = inside.run(["cat", "/proc/self/stat", "/proc/self/statm"]).output.splitlines()
    fields = stat.rsplit(")", 1)[1].split()
    assert len(fields) == 50
    assert int(fields[23 - 3]) == int(statm.split()[0]) * 4096
    assert int(fields[28 - 3]) >> 32 == 0x7FFF


def test_the_machines_memory_is_ours(inside: Inside) -> None:
    inner = inside.run(["cat", "/proc/meminfo"]).output
    assert inner.startswith("MemTotal:         524280 kB")


def test_others_inside_are_seen_and_the_hosts_as_they_are(inside: Inside, programs: dict[str, Path]) -> None:
    process = inside.start([str(programs["waits"])])
    assert process.stdout is not None
    assert process.stdout.readline()
    assert "10000000-10001000 r--p" in inside.run(["cat", f"/proc/{process.pid}/maps"]).output
    process.communicate("")
    assert inside.agrees(["cat", "/proc/1/comm"]).status == 0


def test_pagemap_is_read_in_any_piece(inside: Inside) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("this host has no /usr/bin/python3")
    program = (
        "import ctypes, mmap, os, struct\n"
        "m = mmap.mmap(-1, 8 * 4096); m[4096] = 1\n"
        "at = ctypes.addressof(ctypes.c_char.from_buffer(m))\n"
        "f = open('/proc/self/pagemap', 'rb', buffering=0)\n"
        "f.seek(at // 4096 * 8); words = struct.unpack('8Q', f.read(64))\n"
        "copy = os.dup(f.fileno())\n"
        "assert struct.unpack('8Q', os.pread(copy, 64, at // 4096 * 8)) == words\n"
        "print([word >> 63 for word in words])\n"
    )
    assert inside.agrees([str(python), "-c", program]).output == "[0, 1, 0, 0, 0, 0, 0, 0]\n"


def test_the_programs_file_is_its_own(inside: Inside) -> None:
    assert inside.agrees(["readlink", "/proc/self/exe"]).status == 0
