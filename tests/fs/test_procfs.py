"""Paths, rights, and the views of the whole machine."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import numpy as np
import pytest

from kerneld.fs.proc_page import stable_page_flags
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.frames.frames import PG_TABLE, ZERO_PFN
from kerneld.task.ptrace import ptrace_may_access
from kerneld.task.task import Cred
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from tests.fs.host import proc
from tests.fs.world import World
from tests.support.errors import fails
from tests.support.file_machine import ROOT, RW, USER

PUBLIC = ("status", "stat", "statm", "comm", "cmdline")
PRIVATE = ("maps", "smaps", "smaps_rollup", "pagemap")


def test_the_root_lists_the_pids(world: World) -> None:
    world.add(7, USER)
    world.add(1 << 21, USER)
    expected = "".join(f"{pid}\n" for pid in sorted([7, os.getpid(), 1 << 21]))
    for path in ("", ".", "/", "./."):
        assert world.text(path) == expected


def test_self_is_the_reader(world: World) -> None:
    other = world.add(7, USER, comm="other")
    for path in ("self/comm", "thread-self/comm", "/self//comm", f"{world.me.pid}/comm"):
        assert world.text(path) == "program\n"
    assert world.text("self/comm", other) == world.text("7/comm") == "other\n"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("nothing", errno.ENOENT),
        ("self/nothing", errno.ENOENT),
        ("self/nothing/below", errno.ENOENT),
        ("kerneld/nothing", errno.ENOENT),
        ("../etc/passwd", errno.ENOENT),
        ("99999/maps", errno.ENOENT),
        ("99999", errno.ENOENT),
        ("-1/maps", errno.ENOENT),
        ("9" * 5000 + "/maps", errno.ENOENT),
        ("\u0661/maps", errno.ENOENT),
        ("\u00b2/maps", errno.ENOENT),
        pytest.param(f"0{os.getpid()}/maps", errno.ENOENT, id="a leading zero"),
        ("self", errno.EISDIR),
        pytest.param(f"{os.getpid()}", errno.EISDIR, id="a process"),
        ("kerneld", errno.EISDIR),
        ("self/maps/below", errno.ENOTDIR),
        ("self/pagemap/below", errno.ENOTDIR),
        ("meminfo/below", errno.ENOTDIR),
        ("kpagecount/below", errno.ENOTDIR),
        ("kerneld/status/below", errno.ENOTDIR),
    ],
)
def test_paths_where_no_file_is(world: World, path: str, code: int) -> None:
    assert fails(code, world.read, path)


def test_an_offset_that_is_none(world: World) -> None:
    assert fails(errno.EINVAL, world.read, "self/maps", offset=1 << 63)
    assert world.read("self/maps", offset=(1 << 63) - 1) == b""
    assert world.read("meminfo", length=0) == b""


def test_a_process_that_has_ended_is_not_there(world: World) -> None:
    other = world.add(7, USER)
    assert world.read("7/status", length=20)
    world.forget(other)
    assert fails(errno.ENOENT, world.read, "7/status", offset=20)
    assert world.text("") == f"{os.getpid()}\n"


@pytest.mark.parametrize(
    ("reader", "target", "allowed"),
    [
        (ROOT, USER, True),
        (Cred(1000, 1000, superuser=True), ROOT, True),
        (USER, USER, True),
        (USER, Cred(1001, 1000, superuser=False), False),
        (USER, Cred(1000, 1001, superuser=False), False),
        (USER, ROOT, False),
        (USER, Cred(1000, 1000, superuser=True), False),
    ],
)
def test_who_may_look_into_whom(world: World, reader: Cred, target: Cred, allowed: bool) -> None:
    one, other = world.add(7, reader), world.add(8, target)
    assert ptrace_may_access(one, other) is allowed
    assert ptrace_may_access(one, one)
    for name in PUBLIC:
        world.read(f"8/{name}", one)
    for name in PRIVATE:
        world.read(f"7/{name}", one)
        if allowed:
            world.read(f"8/{name}", one)
        else:
            assert fails(errno.EACCES, world.read, f"8/{name}", one)
    for name in ("kpagecount", "kpageflags"):
        if reader.superuser:
            assert world.read(name, one, length=8)
        else:
            assert fails(errno.EACCES, world.read, name, one, length=8)
    for name in ("meminfo", "vmstat", "buddyinfo", "kerneld/status", "kerneld/tasks", "kerneld/settings"):
        assert world.read(name, one)


def test_mem_is_what_the_memory_holds_up_to_a_page_that_cannot_be_had(world: World) -> None:
    one, other = world.add(7, USER), world.add(8, ROOT)
    addr = world.map_anonymous(2, one)
    world.machine.store(one.live_mm, addr + PAGE_SIZE - 2, b"fo")
    world.machine.store(one.live_mm, addr + PAGE_SIZE, b"ur")
    assert world.read("self/mem", one, offset=addr + PAGE_SIZE - 2, length=4) == b"four"
    do_mprotect(one.live_mm, addr, 2 * PAGE_SIZE, Prot.NONE)
    assert world.read("7/mem", other, offset=addr + PAGE_SIZE, length=2 * PAGE_SIZE) == b"ur" + bytes(PAGE_SIZE - 2)
    assert fails(errno.EIO, world.read, "self/mem", one, offset=addr + 2 * PAGE_SIZE, length=1)
    assert fails(errno.EACCES, world.read, "8/mem", one)


def test_meminfo_has_the_hosts_lines_in_the_hosts_order(world: World) -> None:
    theirs, ours = proc("meminfo").splitlines(), world.text("meminfo").splitlines()
    keys = [line.partition(":")[0] for line in ours]
    host_keys = [line.partition(":")[0] for line in theirs]
    assert [key for key in host_keys if key in keys] == [key for key in keys if key in host_keys]
    assert len(set(keys) & set(host_keys)) > 40
    widths = {line.partition(":")[0]: len(line) for line in theirs}
    for line in ours:
        key = line.partition(":")[0]
        assert len(line) == widths.get(key, len(line)), line
        assert re.fullmatch(r"[\w()]+: +\d+( kB)?", line)


def test_meminfo_and_vmstat_count_each_use_of_a_frame(world: World, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(4 * PAGE_SIZE))
    fd = os.open(path, os.O_RDWR)
    mm = world.me.live_mm
    before = world.rows("meminfo")
    anon = world.map_anonymous(5)
    shmem = world.map_anonymous(3, flags=Map.SHARED)
    locked = world.map_anonymous(2, flags=Map.PRIVATE | Map.LOCKED)
    file = world.machine.map_fd(mm, fd, 4 * PAGE_SIZE, prot=RW, flags=Map.SHARED)
    os.close(fd)
    for vaddr in (anon, anon + PAGE_SIZE, shmem, file, file + 2 * PAGE_SIZE):
        world.machine.store(mm, vaddr, b"x")
    world.machine.load(mm, anon + 3 * PAGE_SIZE, 1)
    world.machine.load(mm, locked, 1)
    cached = len(next(iter(mm.vmas.overlapping(file, file + 1))).file.mapping.pages)  # type: ignore[union-attr]
    rows = {key: int(value.split()[0]) for key, value in world.rows("meminfo").items()}
    assert rows["MemTotal"] == world.frames.total_pages * 4
    assert rows["MemFree"] == world.frames.free_pages * 4 < int(before["MemFree"].split()[0])
    assert rows["AnonPages"] == (2 + 2) * 4
    assert (rows["Shmem"], rows["Cached"], rows["Mapped"]) == (4, (1 + cached) * 4, (1 + cached) * 4)
    assert rows["Dirty"] == 2 * 4
    assert rows["Mlocked"] == rows["Unevictable"] == 2 * 4
    assert rows["PageTables"] == (mm.page_table.table_pages - 1) * 4, "without the root"
    assert rows["Inactive(anon)"] == (2 + 1) * 4
    assert rows["MemAvailable"] == rows["MemFree"] + cached * 4
    assert rows["Committed_AS"] == (5 + 3 + 2) * 4
    used = rows["AnonPages"] + rows["Cached"] + rows["PageTables"] + 4
    assert rows["MemTotal"] - rows["MemFree"] == used
    vmstat = dict(line.split() for line in world.text("vmstat").splitlines())
    assert int(vmstat["nr_free_pages"]) * 4 == rows["MemFree"]
    assert (vmstat["nr_dirty"], vmstat["nr_mlock"], vmstat["nr_shmem"]) == ("2", "2", "1")


def test_vmstat_has_lines_of_the_hosts_in_the_hosts_order(world: World) -> None:
    host_keys = [line.split()[0] for line in proc("vmstat").splitlines()]
    keys = [line.split()[0] for line in world.text("vmstat").splitlines()]
    assert [key for key in host_keys if key in keys] == keys


def test_buddyinfo_has_the_hosts_shape_and_all_that_is_free(world: World) -> None:
    shape = re.compile(r"Node \d+, zone {1,8}(\w+) (( *\d+ ){11})")
    lines = proc("buddyinfo").splitlines()
    (ours,) = world.text("buddyinfo").splitlines()
    matches = [shape.fullmatch(line) for line in (*lines, ours)]
    assert all(matches)
    assert matches[-1] is not None
    assert ours.index(matches[-1][1]) + len(matches[-1][1]) == 21
    blocks = [int(count) for count in matches[-1][2].split()]
    free = sum(count << order for order, count in enumerate(blocks))
    assert free + len(world.frames.buddy.pcp) == world.frames.free_pages


def test_kpagecount_and_kpageflags_are_the_frames(world: World) -> None:
    mm = world.me.live_mm
    addr = world.map_anonymous(2)
    world.machine.store(mm, addr, b"x")
    world.fork(world.me, 7)
    (word,) = memoryview(world.read("self/pagemap", offset=addr // PAGE_SIZE * 8, length=8)).cast("Q")
    pfn = word & (1 << 55) - 1
    assert int.from_bytes(world.read("kpagecount", offset=pfn * 8, length=8), "little") == 2
    flags = memoryview(world.read("kpageflags", length=1 << 20)).cast("Q")
    assert len(flags) == world.frames.ram.nr_frames
    assert flags[pfn] == 1 << 3 | 1 << 5 | 1 << 11 | 1 << 12 | 1 << 14
    assert flags[ZERO_PFN] == 1 << 24
    few = np.array([pfn, ZERO_PFN, pfn, mm.page_table.root])
    assert stable_page_flags(world.frames, few).tolist() == [flags[number] for number in few]
    assert flags[mm.page_table.root] == 0, "no page table, says Linux v6.8"
    tables = [number for number, flag in enumerate(flags) if flag & 1 << 26]
    assert tables == [number for number, flag in enumerate(world.frames.flags_at) if flag & PG_TABLE]
    free = sum(flag >> 10 & 1 for flag in flags)
    assert free + len(world.frames.buddy.pcp) == world.frames.free_pages
    for name in ("kpagecount", "kpageflags"):
        assert world.read(name, offset=world.frames.ram.nr_frames * 8, length=8) == b""
        assert len(world.read(name, offset=(world.frames.ram.nr_frames - 1) * 8, length=80)) == 8
        assert fails(errno.EINVAL, world.read, name, offset=4, length=8)
        assert fails(errno.EINVAL, world.read, name, offset=8, length=4)


def test_what_kerneld_says_of_itself(world: World) -> None:
    world.add(7, USER)
    rows = world.rows("kerneld/status")
    assert (rows["Pid"], rows["Tasks"], rows["ShadowTable"]) == (str(os.getpid()), "2", "closed")
    assert re.fullmatch(r"\d+\.\d\d s", rows["Uptime"])
    assert rows["CachedUnused"] == "0 kB"
    for name in ("MemTotal", "MemFree", "SwapTotal", "SwapFree"):
        assert rows[name] == world.rows("meminfo")[name]
    assert "ShadowOpener" not in rows
    world.shadowpt.session = ("tracking", 12, 7)
    rows = world.rows("kerneld/status")
    assert (rows["ShadowTable"], rows["ShadowOpener"], rows["ShadowTarget"]) == ("tracking", "12", "7")


def test_a_line_a_task(world: World) -> None:
    other = world.add(7, USER, comm="tab\there")
    world.machine.store(other.live_mm, world.map_anonymous(3, other), b"x")
    lines = world.text("kerneld/tasks").splitlines()
    assert lines == [f"{os.getpid()}\t0\t1\t0\t0\tR\tprogram", "7\t1000\t1\t12\t4\tS\ttab\there"]


def test_a_view_that_changes_while_it_is_read_ends_where_it_ended(world: World) -> None:
    first = world.read("kerneld/tasks")
    world.add(7, USER)
    assert world.read("kerneld/tasks", offset=len(first)) == b""
    assert len(world.read("kerneld/tasks")) > len(first)
