"""Memory of every kind that a program inside can ask for: the same as outside."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.native.inside import End, Inside
from tests.support.rights import needs_the_hosts_rights
from tests.support.small_disk import small_disk

_ONLINE = Path("/sys/devices/system/node/online")
_HAS_ONE_NODE = _ONLINE.exists() and _ONLINE.read_text() == "0\n"


def test_dev_zero_is_memory(inside: Inside, programs: dict[str, Path]) -> None:
    assert "after the child: 1 2, status 0" in inside.agrees([str(programs["zero"])]).output


def test_memory_without_access_over_most_addresses(inside: Inside, programs: dict[str, Path]) -> None:
    """As thread and memory sanitizers make it; it goes round the stub."""
    assert inside.agrees([str(programs["reserves"])]).output.count("done") == 5


def test_what_of_a_file_is_in_memory(inside: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    """A part of a new file that nobody has read is not, and its first access is a major fault."""
    end = inside.agrees([str(programs["incore"]), str(tmp_path / "file")])
    assert end.output.count("0 from 0 1 from 9 0 from 10\n") == 3


SEGMENTS = """import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p] + [ctypes.c_long] * 5
def map_at(address, pages, flags, fd, offset):
    return libc.mmap(address, pages * 4096, 1, 2 | flags, fd, offset * 4096)
def tell(what):
    lines = [line for line in open("/proc/self/maps") if sys.argv[1] in line]
    print(what, len(lines), [ctypes.string_at(base + page * 4096, 1) for page in range(4)])
fd = os.open(sys.argv[1] + "/one", os.O_RDONLY)
base = map_at(None, 4, 0, fd, 0)
tell("whole")
assert map_at(base + 4096, 1, 16, fd, 1) == base + 4096
tell("the same file")
os.dup2(os.open(sys.argv[1] + "/one", os.O_RDONLY), fd)
assert map_at(base + 4096, 1, 16, fd, 1) == base + 4096
tell("opened again")
os.dup2(os.open(sys.argv[1] + "/two", os.O_RDONLY), fd)
assert map_at(base + 8192, 1, 16, fd, 2) == base + 8192
tell("another file by the same number")
assert map_at(base, 1, 16, fd, 3) == base
tell("and again")
os.close(fd)
print(map_at(base, 1, 16, fd, 0) == ctypes.c_void_p(-1).value)
"""


def test_segments_of_a_file_that_is_mapped_by_the_same_number(inside: Inside, tmp_path: Path) -> None:
    """kerneld compares the descriptor with the file that was mapped last, and is sent none if it is of that one."""
    for name, letters in (("one", "abcd"), ("two", "efgh")):
        (tmp_path / name).write_text("".join(letter * 4096 for letter in letters))
    end = inside.agrees([sys.executable, "-I", "-c", SEGMENTS, str(tmp_path)])
    assert (end.status, end.errors) == (0, "")
    assert "the same file 1 " in end.output


def test_more_pages_than_the_host_has_mappings_for(inside: Inside, programs: dict[str, Path]) -> None:
    limit = int(Path("/proc/sys/vm/max_map_count").read_text())
    pages = limit + limit // 16
    if pages > 80_000:
        pytest.skip(f"this host has mappings for more pages than the machine has: vm.max_map_count is {limit}")
    assert inside.agrees([str(programs["scattered"]), str(pages)]).output == f"{pages} pages, 0 of them wrong\n"


def test_memory_policies_of_a_machine_with_one_node(inside: Inside, programs: dict[str, Path]) -> None:
    inner = inside.run([str(programs["policies"])])
    assert (inner.status, inner.errors) == (0, "")
    assert "four pages: 3 mappings" in inner.output


@needs_the_hosts_rights
@pytest.mark.skipif(not _HAS_ONE_NODE, reason="this host has not one node of memory, number 0")
def test_memory_policies_are_those_of_a_host_with_one_node(inside: Inside, programs: dict[str, Path]) -> None:
    """The program moves pages of all processes, as only the superuser may."""
    assert inside.agrees([str(programs["policies"])]).status == 0


def test_memory_that_may_be_merged(inside: Inside, programs: dict[str, Path]) -> None:
    expected = """advice: 0 0, mergeable: 1 0, not: 0 0
too many arguments: -1 -1
all of it: 0, before: 1 0, later: 1
the child: 1 1
the next program: 1 1
none: 0 0 0
"""
    assert inside.run([str(programs["mergeable"])]) == End(0, expected, "")
    # Not every host is built with CONFIG_KSM; and before Linux 6.7 no next program was mergeable too.
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if Path("/sys/kernel/mm/ksm").exists() and release >= (6, 7):
        assert inside.outside([str(programs["mergeable"])]).output == expected


def test_huge_pages_that_a_process_forbids(inside: Inside, programs: dict[str, Path]) -> None:
    """Not every host has huge pages, and its own setting may be `never`."""
    allowed, forbidden = "0, eligible 1, huge 2048 kB, collapse 0", "1, eligible 0, huge 0 kB, collapse -1"
    told = re.sub(r", THP_enabled:\t[01]", "", inside.run([str(programs["thp_disable"])]).output)
    assert told.splitlines() == [
        f"at first: {allowed}", "-1 -1 -1", "0", f"forbidden: {forbidden}", f"child: {forbidden}",
        f"next program: {forbidden}", "0", f"allowed: {allowed}",
    ]  # fmt: skip
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    if setting.exists() and "[never]" not in setting.read_text() and release >= (6, 1):
        inside.agrees([str(programs["thp_disable"])])


def test_memory_that_has_a_name(inside: Inside, programs: dict[str, Path]) -> None:
    """Not every host is built with CONFIG_ANON_VMA_NAME."""
    parts = "1 [anon:an arena] 1 [anon:an arena] 1 [anon:an arena] 1 [anon:other] 2 [anon:an arena]"
    whole = f"[anon:{'n' * 79}]"
    expected = f"""named: 0 0
process: 1 [anon_shmem:shared] 6 [anon:an arena]
another: 0
parts: 1 [anon_shmem:shared] {parts}
errors: -14 -14 -22 -22 -22 -12 -9
child: 1 [anon:x] 1 [anon_shmem:shared] {parts}
next program:
long: 0
all of it: 1 [anon_shmem:shared] 2 {whole} 1 {whole} 5 {whole}
"""
    assert inside.run([str(programs["names"])]) == End(0, expected, "")
    if "named: -" not in (outside := inside.outside([str(programs["names"])]).output):
        assert outside == expected


@pytest.mark.parametrize(("flags", "child"), [(1, 1), (3, 0)])
def test_memory_that_does_not_become_executable(
    flags: int, child: int, inside: Inside, programs: dict[str, Path]
) -> None:
    """PR_SET_MDWE, which hosts have since v6.3, its second flag since v6.6."""
    argv = [str(programs["mdwe"]), str(flags)]
    told = inside.run(argv).output
    for who, has in (("process", flags), ("child", child), ("next program", child)):
        assert f"{who}: flags: {has} 0\nrwx: {'-1 13' if has else '0 0'}\n" in told
    if "flags: -1" not in (outside := inside.outside(argv).output):
        assert told == outside


def test_stores_to_holes_of_a_file_on_a_full_file_system(
    inside: Inside, programs: dict[str, Path], tmp_path: Path
) -> None:
    with small_disk(tmp_path) as disk:
        expected = """a hole: 0
full: data 0, the same hole 0, another one SIGBUS
room again: 0
in the file: 1 1 1 0
"""
        assert inside.agrees([str(programs["full"]), str(disk)]).output == expected


def test_lengths_that_the_host_refuses(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["lengths"])]).output
    assert "epoll_wait 0xffffffff: -1 Invalid argument" in output
    assert "read of a pipe 0xffffffff: 10 " in output


def test_copies_at_every_place_of_a_buffer(inside: Inside, programs: dict[str, Path], tmp_path: Path) -> None:
    assert inside.agrees([str(programs["copies"]), str(tmp_path / "file")]).output == "0 wrong\n"


def test_protection_keys(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["keys"])]).output
    assert output == "no keys\n" or "14 keys, sum 119, PKRU 0xfffffff4" in output


def test_pages_of_a_file_in_another_order(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["remap"])]).output
    assert "it keeps its pages: x y" in output


def test_system_v_shared_memory(inside: Inside, programs: dict[str, Path]) -> None:
    output = inside.agrees([str(programs["sysv"])]).output
    assert "kept: a b z" in output
    assert "attach of a removed one: 0" in output


def test_segments_are_listed(inside: Inside) -> None:
    made = inside.run(["python3", "-c", LISTED]).output
    assert made == "1 segment of 12345 bytes, mode 640, 0 attached\n"


LISTED = """
import ctypes
libc = ctypes.CDLL(None)
id = libc.shmget(0, 12345, 0o640)
lines = open("/proc/sysvipc/shm").read().splitlines()
mine = [line.split() for line in lines[1:] if line.split()[1] == str(id)]
libc.shmctl(id, 0, None)
print(len(mine), "segment of", mine[0][3], "bytes, mode", mine[0][2] + ",", mine[0][6], "attached")
"""
