"""Memory files and files of a tmpfs: what of a mapping is resident, and what kind of memory that is, as on the host."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kerneld.fs.open_file import is_in_memory
from kerneld.fs.proc_smaps import MemSizeStats, _show_stats, gather_stats
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rss import Rss
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.file_machine import FileMachine, unmap

PAGES, WRITTEN = 40, 20
LENGTH = PAGES * PAGE_SIZE
BASE = 0x10_0000_0000
NUMBERS = ("Rss", "Pss", "Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Anonymous", "Referenced")
Step = tuple[str, int]
PROGRAMS: dict[str, list[Step]] = {
    "one read": [("read", 1)],
    "a read of a hole": [("read", 30)],
    "all": [("read", 1), ("read", 17), ("read", 21), ("read", 39)],
    "written": [("write", 2), ("write", 25)],
    "read, then written": [("read", 2), ("write", 3), ("read", 33), ("write", 33)],
}


def in_memory() -> int:
    return os.memfd_create("numbers")


def in_tmpfs() -> int:
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        return os.dup(file.fileno())


@pytest.fixture(params=[in_memory, in_tmpfs])
def fd(request: pytest.FixtureRequest) -> Iterator[int]:
    make: Callable[[], int] = request.param
    try:
        made = make()
    except OSError as error:
        pytest.skip(f"a file in memory: {error}")
    # Page by page: a host that makes large folios of one long write maps them as a whole.
    for number in range(WRITTEN):
        os.pwrite(made, bytes([number % 3]) * PAGE_SIZE, number * PAGE_SIZE)
    os.ftruncate(made, LENGTH)
    yield made
    os.close(made)


def on_host(fd: int, flags: int, program: list[Step]) -> dict[str, int]:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.munmap.argtypes = ctypes.c_uint64, (ctypes.c_uint64, ctypes.c_size_t)
    libc.mmap.argtypes = (ctypes.c_uint64, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    # On a leaf table's boundary, as the other side has it: what is mapped around a fault goes by that.
    own = libc.mmap(0, LENGTH + (4 << 20), 0, (Map.PRIVATE | Map.ANONYMOUS).value, -1, 0)
    at = (own + (2 << 20) - 1) & -(2 << 20)
    assert libc.mmap(at, LENGTH, 3, flags | Map.FIXED.value, fd, 0) == at
    for what, number in program:
        place = ctypes.c_ubyte.from_address(at + number * PAGE_SIZE)
        byte = place.value
        if what == "write":
            place.value = byte
    text = Path("/proc/self/smaps").read_text()
    found = re.search(rf"^{at:08x}-.*\n((?:[A-Z].*\n)*)", text, re.MULTILINE)
    libc.munmap(own, LENGTH + (4 << 20))
    assert found is not None
    return _numbers(found[1])


def _numbers(text: str) -> dict[str, int]:
    found = {name: int(number) for name, number in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return {name: found[name] for name in NUMBERS}


def on_kerneld(machine: FileMachine, mm: MmStruct, fd: int, flags: int, program: list[Step]) -> dict[str, int]:
    machine.map_fd(mm, fd, LENGTH, addr=BASE, prot=Prot.READ | Prot.WRITE, flags=flags | Map.FIXED)
    for what, number in program:
        vaddr = BASE + number * PAGE_SIZE
        byte = machine.load(mm, vaddr, 1)
        if what == "write":
            machine.store(mm, vaddr, byte)
    stats = MemSizeStats()
    for _ in gather_stats(mm, BASE, BASE + LENGTH, stats):
        pass
    return _numbers(_show_stats(stats, rollup=False))


@pytest.mark.parametrize("flags", [Map.PRIVATE.value, Map.SHARED.value])
@pytest.mark.parametrize("program", PROGRAMS)
def test_smaps_has_the_hosts_numbers(machine: FileMachine, fd: int, program: str, flags: int) -> None:
    mm = machine.new_mm()
    here = on_kerneld(machine, mm, fd, flags, PROGRAMS[program])
    assert here == on_host(fd, flags, PROGRAMS[program])
    assert mm.rss.counts[Rss.FILE] == 0
    assert mm.rss.counts[Rss.SHMEM] + mm.rss.counts[Rss.ANON] == here["Rss"] >> 2


def test_what_is_a_hole_the_host_says_each_time(machine: FileMachine, fd: int) -> None:
    """Also of what others have written to, or punched, since the file was mapped."""
    mm = machine.new_mm()
    machine.map_fd(mm, fd, LENGTH, addr=BASE, flags=Map.SHARED | Map.FIXED)
    os.pwrite(fd, b"now", 33 * PAGE_SIZE)
    machine.load(mm, BASE + 32 * PAGE_SIZE, 1)
    assert mm.rss.counts[Rss.SHMEM] == 2


def test_a_file_of_a_disk_is_none(machine: FileMachine, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(LENGTH))
    fd = os.open(tmp_path / "file", os.O_RDWR)
    if is_in_memory(fd):
        pytest.skip("temporary files lie in memory here")
    mm = machine.new_mm()
    machine.map_fd(mm, fd, LENGTH, addr=BASE, flags=Map.SHARED | Map.FIXED)
    machine.load(mm, BASE, 1)
    assert (mm.rss.counts[Rss.SHMEM], mm.rss.counts[Rss.FILE]) == (0, 16)
    os.close(fd)


def test_what_is_kept_to_ask_the_host_goes_with_the_file(machine: FileMachine) -> None:
    fd = os.memfd_create("asked")
    os.ftruncate(fd, 1 << 40)
    mm = machine.new_mm()
    machine.map_fd(mm, fd, LENGTH, addr=BASE, flags=Map.SHARED | Map.FIXED)
    machine.map_fd(mm, fd, LENGTH, addr=2 * BASE, flags=Map.SHARED | Map.FIXED, pgoff=1 << 27)
    assert machine.load(mm, BASE, 1) == machine.load(mm, 2 * BASE, 1) == b"\0"
    assert mm.rss.counts[Rss.SHMEM] == 2
    assert Path("/proc/self/maps").read_text().count("memfd:asked") == 1
    unmap(mm, BASE, LENGTH)
    unmap(mm, 2 * BASE, LENGTH)
    assert "memfd:asked" not in Path("/proc/self/maps").read_text()
    os.close(fd)


def test_where_the_host_does_not_say_every_page_counts_as_there(
    machine: FileMachine, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("kerneld.fs.host_mmap.map_file", refuse)
    mm = machine.new_mm()
    machine.map_fd(mm, fd, LENGTH, addr=BASE, flags=Map.SHARED | Map.FIXED)
    machine.load(mm, BASE + 32 * PAGE_SIZE, 1)
    assert mm.rss.counts[Rss.SHMEM] == 8
