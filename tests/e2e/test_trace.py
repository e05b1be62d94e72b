"""`kerneld trace` and the ring, against a real daemon: what comes, how it ends, and that no reader harms anybody."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kerneld.trace.rings import MAX_USER_RINGS
from shared.client import Process
from shared.client.trace import TraceSession
from shared.failure import Status
from shared.stop_signals import STOP_SIGNALS
from shared.trace.attr import TraceAttr
from shared.trace.events import EVENTS, MM_FAULT, SYS_ENTER
from shared.trace.record import Record
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.daemons import KERNELD, environment, kerneld, private_socket, running_daemon
from tests.support.patience import SECONDS

RW, ANON = Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """The socket and the pid of a daemon that runs."""
    directory = tmp_path_factory.mktemp("run")
    path = private_socket(directory)
    with running_daemon(path) as process:
        yield path, process.pid


@pytest.fixture
def client(daemon: tuple[Path, int]) -> Iterator[Process]:
    process = Process.attach(str(daemon[0]))
    yield process
    process.close()


@contextmanager
def tracing(daemon: tuple[Path, int], *args: str) -> Iterator[subprocess.Popen[str]]:
    """Run `kerneld trace` beside the test."""
    command = [*KERNELD, "trace", *args]
    process = subprocess.Popen(
        command, env=environment(daemon[0]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def until(done: Callable[[], object], client: Process) -> None:
    """Make calls until something is so."""
    deadline = time.monotonic() + SECONDS
    while not done():
        assert time.monotonic() < deadline
        client.getpid()


def rings(daemon: tuple[Path, int]) -> int:
    """Return how many rings the daemon has mapped."""
    return Path(f"/proc/{daemon[1]}/maps").read_text().count("memfd:kerneld-trace")


def test_json_ends_by_itself_after_so_many(daemon: tuple[Path, int], client: Process) -> None:
    with tracing(daemon, "--format", "json", "--event", "sys_enter", "--pid", str(client.pid), "--count", "5") as trace:
        until(lambda: trace.poll() is not None, client)
        out, err = trace.communicate()
    assert trace.returncode == Status.OK
    events = [json.loads(line) for line in out.splitlines()]
    assert [(event["event"], event["pid"], event["fields"]["id"]) for event in events] == [
        ("raw_syscalls:sys_enter", client.pid, 39)
    ] * 5
    assert events[0]["comm"] == Path("/proc/self/comm").read_text().strip()[:15]
    assert err.splitlines()[-1].split() == ["5", "events,", "0", "lost"]


@pytest.mark.parametrize("signo", STOP_SIGNALS)
def test_text_is_as_of_trace_pipe_and_a_signal_ends_it(
    daemon: tuple[Path, int], client: Process, tmp_path: Path, signo: signal.Signals
) -> None:
    output = tmp_path / "trace"
    with tracing(daemon, "-o", str(output), "--pid", str(client.pid)) as trace:
        until(lambda: rings(daemon), client)
        address = client.mmap(0, 8 * PAGE_SIZE, RW, ANON)
        client.mem.store_u64(address, 1)
        trace.send_signal(signo)
        out, err = trace.communicate(timeout=SECONDS)
    assert (trace.returncode, out) == (Status.OK, "")
    lines = output.read_text().splitlines()
    line = next(line for line in lines if "fault:handle_mm_fault" in line)
    assert re.fullmatch(
        rf" *\S+-{client.pid} +\[000\] +\d+\.\d{{6}}: fault:handle_mm_fault: mm=\d+ access=write address={address:#x} "
        rf"nr_pages=1 kind=anonymous result=minor cause=store/fault@{address:#x}",
        line,
    )
    totals = {line.split()[1]: int(line.split()[0]) for line in err.splitlines()}
    assert totals["fault:handle_mm_fault"] == 1
    assert totals.pop("events,") == len(lines) == sum(totals.values())
    until(lambda: not rings(daemon), client)


def test_a_duration_ends_it(daemon: tuple[Path, int]) -> None:
    done = kerneld(daemon[0], "trace", "--duration", "0.01", "--event", "sched:*")
    assert (done.returncode, done.stderr.split()[-3:]) == (Status.OK, ["events,", "0", "lost"])


def test_the_list_has_every_event(tmp_path: Path) -> None:
    done = kerneld(tmp_path, "trace", "--list")
    assert [line for line in done.stdout.splitlines() if not line.startswith(" ")] == [event.name for event in EVENTS]


@pytest.mark.parametrize(
    ("args", "status"),
    [
        (["--event", "nonsense"], Status.USAGE),
        (["--pid", "0"], Status.USAGE),
        (["--pid", "x"], Status.USAGE),
        (["--format", "xml"], Status.USAGE),
        (["--buffer", "much"], Status.USAGE),
        (["--count", "0"], Status.USAGE),
        (["--duration", "-1"], Status.USAGE),
        (["--pid", "4194303"], Status.NO_PROCESS),
        (["--buffer", "64G"], Status.FAILED),
        (["-o", "/nowhere/trace"], Status.FAILED),
    ],
)
def test_bad_input_is_one_line(daemon: tuple[Path, int], args: list[str], status: Status) -> None:
    done = kerneld(daemon[0], "trace", *args)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.count("kerneld: ") == 1


def test_without_a_daemon_it_is_3(tmp_path: Path) -> None:
    done = kerneld(tmp_path / "kerneld.sock", "trace")
    assert done.returncode == Status.NO_DAEMON


@pytest.mark.parametrize("signo", [0, signal.SIGKILL])
def test_the_end_of_the_process_ends_its_trace(daemon: tuple[Path, int], client: Process, signo: int) -> None:
    code = "from shared.client import Process; p = Process.attach(); print(flush=True); input(); p.exit(0)"
    program = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(daemon[0]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with program:
        assert program.stdout is not None
        program.stdout.readline()
        with tracing(daemon, "--format", "json", "--event", "sched", "--pid", str(program.pid)) as trace:
            until(lambda: rings(daemon), client)
            if signo:
                program.send_signal(signo)
            else:
                program.communicate("\n")
            out, _err = trace.communicate(timeout=SECONDS)
    assert trace.returncode == 0
    assert [json.loads(line)["event"] for line in out.splitlines()][-1] == "sched:sched_process_exit"


def test_a_daemon_that_dies_is_4(tmp_path: Path) -> None:
    path = private_socket(tmp_path)
    with running_daemon(path) as process:
        here = (path, process.pid)
        client = Process.attach(str(path))
        with tracing(here) as trace:
            until(lambda: rings(here), client)
            process.kill()
            _out, err = trace.communicate(timeout=SECONDS)
        client.close()
    assert trace.returncode == Status.DAEMON_GONE
    # It is noticed while it waits, or by a request: the first one's answer may be under way when the ring is there.
    assert err.splitlines()[-1] in (
        "kerneld: kerneld went away",
        "kerneld: kerneld is gone: it stopped, or it has released this process",
    )


def test_a_reader_that_is_killed_leaves_nothing(daemon: tuple[Path, int], client: Process) -> None:
    fds = len(os.listdir(f"/proc/{daemon[1]}/fd"))
    with tracing(daemon) as trace:
        until(lambda: rings(daemon), client)
        trace.kill()
        trace.wait()
        until(lambda: not rings(daemon), client)
        # Its connection is let go of when its end is seen, which may be a turn later.
        until(lambda: len(os.listdir(f"/proc/{daemon[1]}/fd")) <= fds, client)
    assert len(os.listdir(f"/proc/{daemon[1]}/fd")) == fds


def test_a_reader_that_stops_reading_keeps_nobody_waiting(daemon: tuple[Path, int], client: Process) -> None:
    with tracing(daemon, "--buffer", "4K") as trace:
        until(lambda: rings(daemon), client)
        trace.send_signal(signal.SIGSTOP)
        for _ in range(3000):
            assert client.getpid() == client.pid
        trace.send_signal(signal.SIGCONT)
        until(lambda: "LOST" in (trace.stdout.readline() if trace.stdout else ""), client)
        trace.send_signal(signal.SIGINT)
        _out, err = trace.communicate(timeout=SECONDS)
    assert int(err.splitlines()[-1].split()[2]) > 1000


def test_a_program_traces_itself(client: Process) -> None:
    address = client.mmap(0, 512 * PAGE_SIZE, RW, ANON)
    session = TraceSession(client, ("fault", "raw_syscalls:sys_enter"), (client.pid,))
    with client.batch() as batch:
        for number in range(128):
            batch.store(address + number * PAGE_SIZE, b"x")
    session.stop()
    records = [entry for entry in session.reader.read() if isinstance(entry, Record)]
    assert sum(record.fields["nr_pages"] for record in records if record.event is MM_FAULT) == 128
    assert records[-1].event is SYS_ENTER
    assert session.reader.is_ended
    session.close()
    client.munmap(address, 512 * PAGE_SIZE)


def test_who_closes_the_pipe_alone_leaves_no_memory(daemon: tuple[Path, int], client: Process) -> None:
    """The daemon hears of it without being asked anything about traces."""
    kept = []
    for _ in range(2 * MAX_USER_RINGS):
        packed = TraceAttr(("raw_syscalls",), (), 16).pack()
        memory = ctypes.create_string_buffer(packed, len(packed))
        _reply, (ring, pipe) = client.call_for_fds(Nr.PERF_EVENT_OPEN, ctypes.addressof(memory), data=packed)
        kept.append(ring)
        client.getpid()
        assert os.fstat(ring).st_blocks
        os.close(pipe)
        client.getpid()
        assert not os.fstat(ring).st_blocks
        assert not rings(daemon)
    for ring in kept:
        os.close(ring)
