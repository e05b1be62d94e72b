"""`kerneld ftrace` beside a real kerneld and a real target: the last question of the assignment, answered by a run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

import pytest

from shared.uapi.mman import Map, Prot
from tests.support.client import Client
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon

NULL_WRITE = [
    (0, "exc_page_fault"),
    (1, "handle_page_fault"),
    (2, "do_user_addr_fault"),
    (3, "lock_vma_under_rcu"),
    (3, "lock_mm_and_find_vma"),
    (4, "find_vma"),
    (3, "bad_area_nosemaphore"),
    (4, "__bad_area_nosemaphore"),
    (5, "force_sig_fault"),
    (6, "force_sig_fault_to_task"),
    (7, "force_sig_info_to_task"),
    (8, "send_signal_locked"),
    (9, "sigaddset"),
    (9, "signal_wake_up"),
    (1, "irqentry_exit"),
    (2, "irqentry_exit_to_user_mode"),
    (3, "exit_to_user_mode_prepare"),
    (4, "exit_to_user_mode_loop"),
    (5, "arch_do_signal_or_restart"),
    (6, "get_signal"),
    (7, "do_group_exit"),
    (8, "do_exit"),
    (9, "do_task_dead"),
    (10, "__schedule"),
    (11, "deactivate_task"),
    (12, "dequeue_task"),
    (11, "pick_next_task"),
    (11, "context_switch"),
]
"""Depth and name of each function, in Linux v6.8's order: target/answers/null-write.md has the lines of its sources."""
LINE = re.compile(r" 0\) . *[0-9.]* *(?:us)? *\|  ((?:  )*)(\w+)\(\)( \{|;)")


class Ftrace:
    """A `kerneld ftrace` that has begun."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert process.stdout is not None
        self.stdout: IO[str] = process.stdout
        self.header = [self.stdout.readline() for _ in range(4)]

    def end(self) -> tuple[str, str]:
        """Press Ctrl+C; return what it has written on stdout and stderr."""
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=SECONDS)


@contextmanager
def ftrace(daemon: Daemon, *options: str) -> Iterator[Ftrace]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "kerneld", "ftrace", *options],
        env=daemon.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield Ftrace(process)
        finally:
            process.kill()


def calls(lines: Sequence[str]) -> list[tuple[int, str]]:
    """Return depth and name of each function that begins in a graph."""
    found = [match for line in lines if (match := LINE.match(line))]
    return [(len(match[1]) // 2, match[2]) for match in found]


def run_target(daemon: Daemon, *options: str) -> int:
    target = [sys.executable, "-P", "-m", "target", "--delay", "0", *options]
    return subprocess.run(target, env=daemon.environment, capture_output=True, check=False).returncode


def test_a_write_through_a_null_pointer_takes_linuxs_way(own_daemon: Daemon) -> None:
    filters = [word for name in dict.fromkeys(name for _, name in NULL_WRITE) for word in ("--filter", name)]
    with ftrace(own_daemon, "--graph", "--graph-function", "exc_page_fault", *filters) as trace:
        assert run_target(own_daemon, "--scenario", "null-write") == -signal.SIGSEGV
        out, err = trace.end()
    assert calls(out.splitlines()) == NULL_WRITE
    assert trace.process.returncode == 0
    assert err.splitlines()[-1] == "        28 calls of 28 functions, 0 records lost"


def test_unfiltered_the_same_chain_is_there_in_order(own_daemon: Daemon) -> None:
    with ftrace(own_daemon, "--graph") as trace:
        assert run_target(own_daemon, "--scenario", "null-write") == -signal.SIGSEGV
        out, _err = trace.end()
    names = [name for _, name in calls(out.splitlines())]
    begun = names[names.index("exc_page_fault") :]
    wanted = [name for _, name in NULL_WRITE]
    assert [name for name in begun if name in wanted][: len(wanted)] == wanted
    assert {"dispatch", "answer_usual"} & set(names), "the server's functions are the kernel's too"


def test_a_slow_reader_hurts_itself_alone(own_daemon: Daemon) -> None:
    with ftrace(own_daemon, "--graph", "--buffer", "4096") as trace:
        trace.process.send_signal(signal.SIGSTOP)
        assert run_target(own_daemon, "--scenario", "demand") == 0
        trace.process.send_signal(signal.SIGCONT)
        # A loss is told before the next record: there is one once the reader has read.
        assert run_target(own_daemon, "--scenario", "demand") == 0
        out, err = trace.end()
    lost = int(err.splitlines()[-1].split()[-3])
    assert lost > 0
    told = [int(line.split()[2]) for line in out.splitlines() if line.startswith("CPU:0 [LOST")]
    assert 0 < sum(told) <= lost


def test_count_and_file(own_daemon: Daemon, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "functions")
    client = own_daemon.client()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "kerneld", "ftrace", "--filter", "sys_getpid", "--count", "3", "-o", path],
        env=own_daemon.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        while process.poll() is None:
            client.p.getpid()
        assert process.stderr is not None
        assert process.stderr.read().splitlines() == [
            "         3 sys_getpid",
            "         3 calls of 1 functions, 0 records lost",
        ]
    assert process.returncode == 0
    with open(path, encoding="utf-8") as file:
        shown = [line for line in file if not line.startswith("#")]
    assert len(shown) == 3
    assert all(line.rstrip().endswith(": sys_getpid <-run") for line in shown)


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--filter", "nonesuch"), 2),
        (("--graph-function", "nonesuch", "--graph"), 2),
        (("--filter", ""), 2),
        (("--pid", "4194304"), 5),
        (("--count", "0"), 2),
        (("--socket", "/nonexistent/kerneld.sock"), 3),
    ],
)
def test_errors_are_one_line_and_a_status(daemon: Daemon, options: tuple[str, ...], status: int) -> None:
    result = subprocess.run(
        [sys.executable, "-P", "-m", "kerneld", "ftrace", *options],
        env=daemon.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert result.returncode == status
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("kerneld: ")]
    assert len(errors) == 1


def test_one_process_alone(daemon: Daemon, target: Client) -> None:
    other = daemon.client()
    with ftrace(daemon, "--graph", "--pid", str(target.pid)) as trace:
        start = target.p.mmap(0, 4096, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        other.p.getpid()
        target.p.mem.store_u8(start, 1)
        out, _err = trace.end()
    names = [name for _, name in calls(out.splitlines())]
    assert {"do_mmap", "do_anonymous_page"} <= set(names)
    assert not {"sys_getpid", "answer_usual"} & set(names)
    assert "=>" not in out
