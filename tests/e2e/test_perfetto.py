"""`kerneld trace --format perfetto` beside a real kerneld: files as Perfetto's own messages read them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError

from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from tests.commands.trace.perfetto.perfetto_file import PerfettoFile
from tests.support.client import Client
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon

RW, ANON = int(Prot.READ | Prot.WRITE), int(Map.PRIVATE | Map.ANONYMOUS)


def work(target: Client) -> None:
    """Map eight pages, write to them, let them go."""
    start = target.p.mmap(0, 8 * PAGE_SIZE, RW, ANON)
    for number in range(8):
        target.p.mem.store_u8(start + number * PAGE_SIZE, 1)
    target.p.munmap(start, 8 * PAGE_SIZE)


def resident(target: Client) -> int:
    return int(target.p.read_proc("self/statm").split()[1])


def wait_for(file: Path, tracer: subprocess.Popen[str], found: Callable[[PerfettoFile], object]) -> PerfettoFile:
    """Return the file once it has what is wanted, while it is being written."""
    while True:
        assert tracer.poll() is None, tracer.communicate()
        try:
            read = PerfettoFile(file.read_bytes()) if file.exists() and file.stat().st_size else None
        except DecodeError:
            read = None  # Half of a write.
        if read is not None and found(read):
            return read
        os.sched_yield()


def start(daemon: Daemon, file: Path, *options: str) -> subprocess.Popen[str]:
    return daemon.program("kerneld", "trace", "--format", "perfetto", "-o", str(file), *options)


def test_calls_with_faults_nested_in_their_stores(daemon: Daemon, target: Client, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    with start(daemon, file, "--pid", str(target.pid), "--count", "500") as tracer:
        while tracer.poll() is None:
            work(target)
        _out, err = tracer.communicate(timeout=SECONDS)
    assert (tracer.returncode, err.splitlines()[-1].split()) == (0, ["500", "events,", "0", "lost"])
    read = PerfettoFile(file.read_bytes())
    assert set(read.threads.values()) == {(target.pid, target.pid)}
    assert {one.name for one in read.slices[target.pid]} == {"mmap", "store", "munmap"}
    faults = [fault for one in read.slices[target.pid] if one.name == "store" for fault in one.children]
    assert len(faults) > 10
    assert {(fault.name, fault.args.get("kind", "anonymous")) for fault in faults} == {("page fault", "anonymous")}


def test_the_counter_of_a_process_and_its_child(daemon: Daemon, target: Client, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    with start(daemon, file) as tracer:
        wait_for(file, tracer, lambda read: target.pid in read.counters)
        work(target)
        memory = target.p.mmap(0, 5 * PAGE_SIZE, RW, ANON)
        target.p.mem.store(memory, b"x" * 5 * PAGE_SIZE)
        with target.fork() as child:
            child.p.munmap(memory, PAGE_SIZE)
            truths = {one.pid: resident(one) for one in (target, child)}
            target.p.getppid()
            wait_for(file, tracer, lambda read: any(one.name == "getppid" for one in read.slices[target.pid]))
            tracer.send_signal(signal.SIGINT)
            out, err = tracer.communicate(timeout=SECONDS)
    assert (tracer.returncode, out) == (0, "")
    assert err.splitlines()[-1].endswith(" 0 lost")
    read = PerfettoFile(file.read_bytes())
    assert {pid: read.counters[pid][-1][1] for pid in truths} == truths
    assert truths[child.pid] == truths[target.pid] - 1
    (fork,) = [one for one in read.instants[child.pid] if one.name == "sched_process_fork"]
    assert (fork.args["parent_pid"], fork.args["child_pid"]) == (target.pid, child.pid)


def test_what_a_killed_trace_leaves_is_a_file(daemon: Daemon, target: Client, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    with start(daemon, file, "--pid", str(target.pid)) as tracer:
        wait_for(file, tracer, lambda read: read.counters)
        work(target)
        before = wait_for(file, tracer, lambda read: any(one.name == "munmap" for one in read.slices[target.pid]))
        tracer.kill()
        tracer.communicate(timeout=SECONDS)
    after = PerfettoFile(file.read_bytes())
    assert after.slices == before.slices
    assert len([one for one in after.slices[target.pid] if one.name == "store"]) == 8


@pytest.mark.parametrize("options", [["--event", "nonsense"], ["--format", "png"]])
def test_wrong_usage_makes_no_file(daemon: Daemon, tmp_path: Path, options: list[str]) -> None:
    file = tmp_path / "trace"
    with start(daemon, file, *options) as tracer:
        out, err = tracer.communicate(timeout=SECONDS)
    assert (tracer.returncode, out, err.count("\n"), file.exists()) == (2, "", 1, False)
