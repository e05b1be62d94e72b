"""maps, smaps, smaps_rollup and pagemap: the host's shape, and the host's numbers where the same is done on both."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import re
from pathlib import Path

import pytest

from kerneld.errors import SysError
from kerneld.mm.calls.brk import do_brk
from kerneld.mm.calls.madvise import set_anon_name_in_pieces
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.space.pace import run_at_once
from kerneld.task.exec import fresh_mm
from kerneld.task.task import Thread
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from tests.fs.host import MAPS_LINE, host_memory, pagemap_of, proc, smaps_of
from tests.fs.world import World
from tests.support.errors import fails
from tests.support.file_machine import RW, unmap

EXCLUSIVE, FILE, SWAP, PRESENT = 1 << 56, 1 << 61, 1 << 62, 1 << 63
STATE = EXCLUSIVE | FILE | SWAP | PRESENT
PFN_MASK = (1 << 55) - 1
NEWER_KEYS = {"KSM", "Pss_Dirty", "ProtectionKey"}
"""Of smaps: from Linux 6.7 and 6.0 on, and where the processor has protection keys."""


def words(data: bytes) -> list[int]:
    return memoryview(data).cast("Q").tolist()


def pagemap(world: World, vaddr: int, nr_pages: int, pid: int | str = "self") -> list[int]:
    return words(world.read(f"{pid}/pagemap", offset=vaddr // PAGE_SIZE * 8, length=nr_pages * 8))


@pytest.fixture
def file_addr(world: World, tmp_path: Path) -> int:
    """The address of a shared mapping of a file of two pages, both of which are in memory."""
    path = tmp_path / "a file\nof two lines"
    path.write_bytes(b"x" * 2 * PAGE_SIZE)
    fd = os.open(path, os.O_RDWR)
    addr = world.machine.map_fd(world.me.live_mm, fd, 2 * PAGE_SIZE, prot=RW, flags=Map.SHARED)
    os.close(fd)
    world.machine.store(world.me.live_mm, addr, b"dirty")
    world.machine.load(world.me.live_mm, addr + PAGE_SIZE, 1)
    return addr


def test_every_line_has_the_hosts_shape(world: World, file_addr: int) -> None:
    world.map_anonymous(3)
    world.map_anonymous(1, flags=Map.SHARED)
    for text in (proc("self/maps"), world.text("self/maps")):
        for line in text.splitlines():
            match = MAPS_LINE.match(line)
            assert match, line
            if match["name"]:
                assert line.index(match["name"]) == max(73, len(line) - len(match["name"]))
            else:
                assert line.endswith(" 0 ")


def test_names_and_fields_of_maps(world: World, file_addr: int, tmp_path: Path) -> None:
    mm = fresh_mm(world.frames, world.me.rlimits, world.sysctl)
    world.machine.mms.append(mm)
    other = world.add(99, world.me.cred, mm)
    stack = next(iter(mm.vmas))
    do_brk(mm, mm.start_brk + 3 * PAGE_SIZE, privileged=False)
    shared = world.map_anonymous(2, other, Map.SHARED)
    (shmem,) = mm.vmas.overlapping(shared, shared + 1)
    assert shmem.file is not None
    assert world.text("99/maps").splitlines() == [
        f"{mm.start_brk:08x}-{mm.brk:08x} rw-p 00000000 00:00 0 ".ljust(72) + " [heap]",
        f"{shared:08x}-{shared + 2 * PAGE_SIZE:08x} rw-s 00000000 00:01 {shmem.file.ino} ".ljust(72)
        + " /dev/zero (deleted)",
        f"{stack.start:08x}-{stack.end:08x} rw-p 00000000 00:00 0 ".ljust(72) + " [stack]",
    ]
    status = (tmp_path / "a file\nof two lines").stat()
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
    line = f"{file_addr:08x}-{file_addr + 2 * PAGE_SIZE:08x} rw-s 00000000 {device} {status.st_ino} ".ljust(72)
    assert world.text("self/maps") == f"{line} {tmp_path}/a file\\012of two lines\n"


def test_names_that_programs_have_given(world: World) -> None:
    """The heap and the stack keep theirs."""
    mm = fresh_mm(world.frames, world.me.rlimits, world.sysctl)
    world.machine.mms.append(mm)
    other = world.add(99, world.me.cred, mm)
    do_brk(mm, mm.start_brk + PAGE_SIZE, privileged=False)
    world.map_anonymous(1, other)
    world.map_anonymous(1, other, Map.SHARED)
    with contextlib.suppress(SysError):
        run_at_once(set_anon_name_in_pieces(mm, 0, TASK_SIZE, "a name"))
    expected = ["[heap]", "[anon_shmem:a name]", "[anon:a name]", "[stack]"]
    assert sorted(line[73:] for line in world.text("99/maps").splitlines()) == sorted(expected)
    assert sorted(re.findall(r"\[.*\]", world.text("99/smaps"))) == sorted(expected)


def test_rights_and_offsets(world: World, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(bytes(8 * PAGE_SIZE))
    fd = os.open(path, os.O_RDONLY)
    mm = world.me.live_mm
    addr = world.machine.map_fd(mm, fd, 4 * PAGE_SIZE, prot=Prot.READ | Prot.EXEC, pgoff=3)
    shared = world.machine.map_fd(mm, fd, PAGE_SIZE, flags=Map.SHARED, pgoff=1)
    os.close(fd)
    do_mprotect(mm, addr + PAGE_SIZE, PAGE_SIZE, int(Prot.NONE))
    path.rename(tmp_path / "renamed")
    rows = [line.split() for line in world.text("self/maps").splitlines()]
    assert [(int(row[0].split("-")[0], 16), row[1], row[2]) for row in rows] == [
        (shared, "r--s", "00001000"),
        (addr, "r-xp", "00003000"),
        (addr + PAGE_SIZE, "---p", "00004000"),
        (addr + 2 * PAGE_SIZE, "r-xp", "00005000"),
    ]
    assert {row[5] for row in rows} == {str(tmp_path / "renamed")}


def test_an_empty_heap_has_no_name_and_neither_has_what_lies_beside_it(world: World) -> None:
    mm = world.me.live_mm
    addr = world.map_anonymous(2)
    for brk in (addr, addr + 2 * PAGE_SIZE):
        mm.start_brk = mm.brk = brk
        assert "[heap]" not in world.text("self/maps")
    mm.start_brk = addr + PAGE_SIZE
    assert world.text("self/maps").endswith("[heap]\n")


def test_smaps_has_the_hosts_fields_in_the_hosts_order(world: World, file_addr: int) -> None:
    theirs, ours = (
        [line for line in text.split(" (deleted)\n")[-1].splitlines() if not MAPS_LINE.match(line)]
        for text in (proc("self/smaps"), world.text("self/smaps"))
    )
    keys = [line.partition(":")[0] for line in ours]
    host_keys = [line.partition(":")[0] for line in theirs][: [line[:7] for line in theirs].index("VmFlags") + 1]
    assert [key for key in host_keys if key in keys] == [key for key in keys if key in host_keys]
    assert set(keys) - set(host_keys) <= NEWER_KEYS
    assert set(host_keys) <= set(keys)
    widths = {line.partition(":")[0]: len(line) for line in theirs}
    for line in ours:
        key = line.partition(":")[0]
        if line.endswith(" kB") and key in widths:
            assert len(line) == widths[key]


def test_smaps_rollup_has_the_hosts_shape(world: World, file_addr: int) -> None:
    theirs, ours = proc("self/smaps_rollup").splitlines(), world.text("self/smaps_rollup").splitlines()
    header = re.compile(r"^[0-9a-f]{8,16}-[0-9a-f]{8,16} ---p 00000000 00:00 0 +\[rollup\]$")
    assert header.match(theirs[0])
    assert header.match(ours[0])
    assert ours[0].index("[") == 73
    shape = [re.sub(r" *\d+ kB", "", line) for line in ours[1:]]
    host_shape = [re.sub(r" *\d+ kB", "", line) for line in theirs[1:]]
    assert [key for key in shape if key in host_shape] == host_shape
    assert {key.rstrip(":") for key in shape if key not in host_shape} <= NEWER_KEYS
    assert {len(line) for line in ours[1:]} == {27}


def test_smaps_numbers_are_the_hosts_for_the_same_accesses(world: World) -> None:
    addr = world.map_anonymous(8)
    with host_memory(8) as start:
        for page in (0, 3, 4):
            ctypes.memset(start + page * PAGE_SIZE, 1, 1)
            world.machine.store(world.me.live_mm, addr + page * PAGE_SIZE, b"\1")
        for page in (1, 6):
            assert ctypes.string_at(start + page * PAGE_SIZE, 1) == b"\0"
            assert world.machine.load(world.me.live_mm, addr + page * PAGE_SIZE, 1) == b"\0"
        theirs, ours = smaps_of(proc("self/smaps"), start), smaps_of(world.text("self/smaps"), addr)
    assert ours["Rss"] == ours["Private_Dirty"] == "12 kB"
    for flags in (theirs, ours):
        flags["VmFlags"] = flags["VmFlags"].replace(" sd", "")  # A host without CONFIG_MEM_SOFT_DIRTY has none.
        flags.pop("THPeligible")
    assert {key: value for key, value in ours.items() if key in theirs} == {
        key: value for key, value in theirs.items() if key in ours
    }


def test_pages_shared_by_a_fork_are_shared_out(world: World, file_addr: int) -> None:
    addr = world.map_anonymous(4)
    mm = world.me.live_mm
    for page in range(4):
        world.machine.store(mm, addr + page * PAGE_SIZE, b"x")
    child = world.fork(world.me, 4242)
    world.machine.store(mm, addr, b"mine")
    ours, theirs = (smaps_of(world.text(f"{pid}/smaps"), addr) for pid in (world.me.pid, child.pid))
    assert (ours["Rss"], ours["Pss"], ours["Private_Dirty"], ours["Shared_Dirty"]) == (
        "16 kB",
        "10 kB",
        "4 kB",
        "12 kB",
    )
    assert (theirs["Rss"], theirs["Pss"], theirs["Private_Dirty"]) == ("16 kB", "10 kB", "4 kB")
    file = smaps_of(world.text("self/smaps"), file_addr)
    assert (file["Rss"], file["Pss"], file["Anonymous"], file["Private_Dirty"]) == ("8 kB", "8 kB", "0 kB", "4 kB")


def test_the_rollup_is_the_sum(world: World, file_addr: int) -> None:
    mm = world.me.live_mm
    for flags in (Map.PRIVATE, Map.SHARED, Map.PRIVATE | Map.LOCKED):
        addr = world.map_anonymous(5, flags=flags)
        world.machine.store(mm, addr, b"x")
        world.machine.store(mm, addr + 3 * PAGE_SIZE, b"x")
    blocks = [smaps_of(world.text("self/smaps"), vma.start) for vma in mm.vmas]
    rollup = world.rows("self/smaps_rollup")
    for key in set(blocks[0]) & set(rollup):
        assert int(rollup[key].split()[0]) == sum(int(block[key].split()[0]) for block in blocks), key
    assert rollup["Locked"] == "20 kB"
    assert rollup["Pss_Shmem"] == "8 kB"
    assert rollup["Pss_File"] == "8 kB"
    assert rollup["Pss_Anon"] == "28 kB"


def test_pagemap_is_the_hosts_for_the_same_accesses(world: World) -> None:
    for flags, host_flags in ((Map.PRIVATE, mmap.MAP_PRIVATE), (Map.SHARED, mmap.MAP_SHARED)):
        addr = world.map_anonymous(6, flags=flags)
        with host_memory(6, host_flags) as start:
            ctypes.memset(start + 2 * PAGE_SIZE, 1, 1)
            world.machine.store(world.me.live_mm, addr + 2 * PAGE_SIZE, b"\1")
            ctypes.string_at(start + 5 * PAGE_SIZE, 1)
            world.machine.load(world.me.live_mm, addr + 5 * PAGE_SIZE, 1)
            theirs = [word & STATE for word in pagemap_of(start, 6)]
        assert [word & STATE for word in pagemap(world, addr, 6)] == theirs
        assert theirs[0] == 0
        assert theirs[2] & PRESENT


def test_pagemap_names_the_frames_to_the_superuser_alone(world: World, file_addr: int) -> None:
    mm = world.me.live_mm
    addr = world.map_anonymous(3)
    world.machine.store(mm, addr + PAGE_SIZE, b"x")
    do_mprotect(mm, addr + PAGE_SIZE, PAGE_SIZE, int(Prot.NONE))
    pte = mm.page_table.find_pte(addr + PAGE_SIZE)
    assert pte is not None
    pfn = (world.machine.ram.words[pte] & 0x000F_FFFF_FFFF_F000) >> 12
    assert [word & PFN_MASK for word in pagemap(world, addr, 3)] == [0, pfn, 0]
    world.me.cred = type(world.me.cred)(0, 0, superuser=False)
    assert [word & (PFN_MASK | STATE) for word in pagemap(world, addr, 3)] == [0, PRESENT | EXCLUSIVE, 0]
    assert [word & (PFN_MASK | STATE) for word in pagemap(world, file_addr, 2)] == [PRESENT | FILE | EXCLUSIVE] * 2


def test_pagemap_by_window(world: World) -> None:
    addr = world.map_anonymous(4)
    window = pagemap(world, addr - 2 * PAGE_SIZE, 8)
    soft_dirty = [bool(word & 1 << 55) for word in window]
    assert soft_dirty == [False] * 2 + [True] * 4 + [False] * 2
    last = TASK_SIZE // PAGE_SIZE * 8
    assert world.read("self/pagemap", offset=last - 16, length=64) == bytes(16)
    assert world.read("self/pagemap", offset=last, length=64) == b""
    assert world.read("self/pagemap", offset=(1 << 63) - 8, length=64) == b""
    assert world.read("self/pagemap", length=0) == b""
    for offset, length in ((4, 8), (8, 4), (1, 1)):
        assert fails(errno.EINVAL, world.read, "self/pagemap", offset=offset, length=length)


@pytest.mark.parametrize("view", ["maps", "smaps"])
def test_pieces_of_any_size_make_the_whole(world: World, file_addr: int, view: str) -> None:
    for _ in range(7):
        world.map_anonymous(1)
        world.me.live_mm.mmap_base -= 2 * PAGE_SIZE
        world.map_anonymous(1, flags=Map.SHARED)
    whole = world.read(f"self/{view}")
    for size in (1, 7, 100, 4096):
        pieces = b""
        while piece := world.read(f"self/{view}", offset=len(pieces), length=size):
            assert len(piece) <= size
            pieces += piece
        assert pieces == whole
    assert world.read(f"self/{view}", offset=50, length=60) == whole[50:110]
    assert world.read(f"self/{view}", offset=10, length=60) == whole[10:70]
    assert world.read(f"self/{view}", offset=len(whole) + 5) == b""


def test_a_change_between_two_pieces_tears_no_line(world: World) -> None:
    starts = [world.map_anonymous(1, flags=Map.SHARED) for _ in range(6)]
    text = world.read("self/maps", length=150).decode()
    for start in starts[::2]:
        unmap(world.me.live_mm, start)
    while piece := world.read("self/maps", offset=len(text), length=150):
        text += piece.decode()
    assert all(MAPS_LINE.match(line) for line in text.splitlines())
    assert {f"{start:x}" for start in starts[1::2]} <= {line.split("-")[0] for line in text.splitlines()}
    assert text.endswith("\n")


def test_two_readers_do_not_disturb_each_other(world: World) -> None:
    for _ in range(5):
        world.map_anonymous(1, flags=Map.SHARED)
    other = world.add(77, world.me.cred)
    whole = world.read("self/maps")
    first = world.read("self/maps", length=33)
    assert world.read(f"{world.me.pid}/maps", other, length=70) == whole[:70]
    assert world.read("self/maps", offset=33, length=500) == whole[33:533]
    assert first == whole[:33]
    assert world.read(f"{world.me.pid}/maps", other, offset=70, length=70) == whole[70:140]


def test_two_threads_of_a_process_read_at_the_same_time(world: World) -> None:
    """Each continues in its own text, though the mappings that it has read are gone meanwhile."""
    starts = [world.map_anonymous(1, flags=Map.SHARED) for _ in range(6)]
    other = Thread(78, world.me)
    text = world.read("self/maps", length=150)
    assert world.procfs.read(other, "self/maps", 0, 150) == text
    for start in starts[:3]:
        unmap(world.me.live_mm, start)
    for position in (150, 160, 170):
        text += world.read("self/maps", offset=position, length=10)
        assert world.procfs.read(other, "self/maps", position, 10) == text[-10:]
    text += world.read("self/maps", offset=len(text))
    assert all(MAPS_LINE.match(line) for line in text.decode().splitlines())
