"""status, stat, statm, comm and cmdline: the host's fields in the host's order, with this machine's numbers."""

from __future__ import annotations

import os
import re
import time

from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE
from shared.uapi.signals import Disposition
from tests.fs.host import proc
from tests.fs.world import World, split_line
from tests.support.file_machine import USER, unmap


def stat_fields(text: str) -> list[str]:
    """Return the fields of a stat line, with the name, which may hold anything, as the second."""
    match = re.fullmatch(r"(\d+) \((.*)\) ([A-Z] .*)\n", text, re.DOTALL)
    assert match
    return [match[1], match[2], *match[3].split(" ")]


def test_status_is_the_hosts_but_for_what_this_machine_has_not(world: World) -> None:
    theirs, ours = proc("self/status").splitlines(), world.text("self/status").splitlines()
    host_keys = [split_line(line)[0] for line in theirs]
    keys = [split_line(line)[0] for line in ours]
    assert [key for key in host_keys if key in keys] == keys
    shapes = {split_line(line)[0]: re.sub(r"[0-9a-f]+", "0", line.partition(":")[2]) for line in theirs}
    for line in ours:
        key, value = line.partition(":")[::2]
        if value.endswith(" kB"):
            assert (len(value), value[0]) == (12, "\t")
            assert re.sub(r"\t *\d+", "\t0", value) == re.sub(r"\t *0", "\t0", shapes[key])
        elif key.startswith("Sig") or key == "ShdPnd":
            assert len(value) == 17


def test_status_says_who_a_process_is(world: World) -> None:
    other = world.add(os.getppid(), USER, comm="a\\b\nc")
    world.me.dispositions = {2: Disposition.IGNORE, 11: Disposition.CAUGHT, 15: Disposition.DEFAULT}
    rows = world.rows("self/status")
    assert (rows["Name"], rows["Pid"], rows["Tgid"]) == ("program", str(os.getpid()), str(os.getpid()))
    assert (rows["PPid"], rows["State"], rows["Threads"]) == (str(os.getppid()), "R (running)", "1")
    assert (rows["SigIgn"], rows["SigCgt"]) == (f"{1 << 1:016x}", f"{1 << 10:016x}")
    rows = world.rows(f"{other.pid}/status")
    assert (rows["Name"], rows["State"]) == ("a\\\\b\\nc", "S (sleeping)")
    assert rows["Uid"] == rows["Gid"] == "1000\t1000\t1000\t1000"


def test_status_counts_memory_and_remembers_peaks(world: World) -> None:
    mm = world.me.live_mm
    addr = world.map_anonymous(10)
    shared = world.map_anonymous(4, flags=Map.SHARED)
    for page in range(6):
        world.machine.store(mm, addr + page * PAGE_SIZE, b"x")
    world.machine.store(mm, shared, b"x")
    rows = world.rows("self/status")
    assert (rows["VmSize"], rows["VmPeak"], rows["VmData"]) == ("56 kB", "56 kB", "40 kB")
    assert (rows["VmRSS"], rows["VmHWM"]) == ("28 kB", "28 kB")
    assert (rows["RssAnon"], rows["RssFile"], rows["RssShmem"]) == ("24 kB", "0 kB", "4 kB")
    assert rows["VmPTE"] == f"{(mm.page_table.table_pages - 1) * 4} kB"
    unmap(mm, addr, 8 * PAGE_SIZE)
    rows = world.rows("self/status")
    assert (rows["VmSize"], rows["VmPeak"], rows["VmRSS"], rows["VmHWM"]) == ("24 kB", "56 kB", "4 kB", "28 kB")
    mm.start_code, mm.end_code, mm.exec_vm = 0x40_0FFF, 0x40_1001, 5
    rows = world.rows("self/status")
    assert (rows["VmExe"], rows["VmLib"]) == ("8 kB", "12 kB")
    mm.exec_vm = 0


def test_statm_is_status_in_pages(world: World) -> None:
    assert len(proc("self/statm").split()) == 7
    mm = world.me.live_mm
    world.machine.store(mm, world.map_anonymous(3), b"x")
    world.machine.store(mm, world.map_anonymous(2, flags=Map.SHARED), b"x")
    assert world.text("self/statm") == "5 2 1 0 0 3 0\n"


def test_stat_has_52_fields_of_the_hosts_kind(world: World) -> None:
    theirs, ours = stat_fields(proc("self/stat")), stat_fields(world.text("self/stat"))
    assert len(theirs) == len(ours) == 52
    assert all(re.fullmatch(r"-?\d+", field) for field in ours[3:])
    # pid, name; state, parent, group and session of the real process; SIGCHLD to the parent; no exit code yet
    for index in (0, 2, 3, 4, 5, 37, 51):
        assert ours[index] == theirs[index]
    assert abs(int(ours[21]) / 100 - time.monotonic()) < 60


def test_stat_counts_memory_and_faults(world: World) -> None:
    mm = world.me.live_mm
    world.machine.store(mm, world.map_anonymous(3), b"x")
    world.me.min_flt, world.me.maj_flt = 7, 2
    mm.start_code, mm.end_code, mm.start_stack = 0x40_0000, 0x40_1000, 0x7000_0000
    mm.start_data, mm.end_data, mm.arg_start, mm.arg_end, mm.env_start, mm.env_end = range(1, 7)
    mm.start_brk = 9
    fields = world.text("self/stat").split()
    assert (fields[9], fields[11], fields[19], fields[22], fields[23]) == ("7", "2", "1", str(3 * PAGE_SIZE), "1")
    assert fields[24] == str((1 << 64) - 1)
    assert fields[25:28] == [str(0x40_0000), str(0x40_1000), str(0x7000_0000)]
    assert fields[44:51] == ["1", "2", "9", "3", "4", "5", "6"]
    stranger = world.add(5, USER)
    hidden = world.text(f"{world.me.pid}/stat", stranger).split()
    assert hidden[25:28] == ["1", "1", "0"]
    assert hidden[44:51] == ["0"] * 7
    assert (fields[2], hidden[2], hidden[34]) == ("R", "S", "0")
    assert world.text("5/stat").split()[34] == "1"
    mm.start_code = mm.end_code = mm.start_stack = mm.start_brk = 0


def test_comm(world: World) -> None:
    world.me.comm = "odd (name) \udcff"
    assert world.read("self/comm") == b"odd (name) \xff\n"
    assert stat_fields(world.read("self/stat").decode("latin-1"))[1] == "odd (name) \xff"


def test_cmdline_is_read_from_the_programs_memory(world: World) -> None:
    mm = world.me.live_mm
    assert world.read("self/cmdline") == b""
    addr = world.map_anonymous(3)
    text = b"prog\0--option\0\xff\0"
    start = addr + PAGE_SIZE - 6
    for index, byte in enumerate(text + b"ENV=1\0"):
        world.machine.store(mm, start + index, bytes([byte]))
    mm.arg_start, mm.arg_end = start, start + len(text)
    mm.env_start, mm.env_end = mm.arg_end, mm.arg_end + 6
    assert world.read("self/cmdline") == text
    assert world.read("self/cmdline", offset=5, length=4) == text[5:9]
    world.machine.store(mm, mm.arg_end - 1, b"!")
    assert world.read("self/cmdline") == b"prog\0"
    world.machine.store(mm, start + 4, b"-")
    world.machine.store(mm, start + 13, b"-")
    assert world.read("self/cmdline") == b"prog---option-\xff!ENV=1\0"
    unmap(mm, addr, 3 * PAGE_SIZE)
    assert world.read("self/cmdline") == b""


def test_cmdline_reads_no_file(world: World, tmp_path: object) -> None:
    path = f"{tmp_path}/secret"
    with open(path, "wb") as made:
        made.write(b"secret\0")
    fd = os.open(path, os.O_RDONLY)
    mm = world.me.live_mm
    mm.arg_start = world.machine.map_fd(mm, fd)
    os.close(fd)
    mm.arg_end = mm.env_start = mm.env_end = mm.arg_start + 7
    assert world.read("self/cmdline") == b""
