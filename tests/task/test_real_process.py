"""What the kernel asks the host about a real process: answered at once, whatever that process does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from kerneld.task.real_process import RealProcess, find_comm, find_effective_ids, find_ppid, find_tid
from tests.support.stuck_process import stuck_execve


def test_one_in_an_execve_that_does_not_end(tmp_path: Path) -> None:
    """/proc/PID/stat of such a one is never read to its end on newer kernels; SIGTERM would not end the daemon."""
    with stuck_execve(tmp_path) as pid:
        assert find_comm(pid) == "stuck_execve"
        assert find_effective_ids(pid) == (os.geteuid(), os.getegid())
        parent = find_ppid(pid)
        assert parent is not None
        assert find_ppid(parent) == os.getpid()
        assert RealProcess(pid).has_its_pid()


def test_one_that_has_ended_is_not_taken_for_another() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    real = RealProcess(pid)
    assert real.has_its_pid()
    os.waitpid(pid, 0)
    assert not real.has_its_pid()
    assert find_ppid(pid) is None
    assert find_effective_ids(pid) is None
    assert find_comm(pid) == ""
    assert not RealProcess(pid).has_its_pid()


def test_a_thread_by_its_number() -> None:
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    thread.start()
    assert find_tid(os.getpid(), os.getpid()) == os.getpid()
    assert thread.native_id is not None
    assert find_tid(os.getpid(), thread.native_id) == thread.native_id
    over.set()
    thread.join()
    assert find_tid(os.getpid(), os.getppid()) is None
    assert find_tid(os.getpid(), 1 << 23) is None
    assert find_tid(1 << 23, 1) is None


# Both processes write whole lines, also where Python does not buffer.
_IN_A_NAMESPACE = """
import ctypes, os, sys, threading
libc, newpid, newuser = ctypes.CDLL(None, use_errno=True), 1 << 29, 1 << 28
if libc.unshare(newpid) and libc.unshare(newuser | newpid):
    sys.exit(os.strerror(ctypes.get_errno()))
pid = os.fork()
if not pid:
    thread = threading.Thread(target=sys.stdin.read)
    thread.start()
    os.write(1, f"numbers {os.getpid()} {thread.native_id}\\n".encode())
    thread.join()
    os._exit(0)
os.write(1, f"{pid}\\n".encode())
os.waitpid(pid, 0)
"""


def test_a_thread_by_its_number_in_a_pid_namespace() -> None:
    """Its number there says nothing here."""
    command = [sys.executable, "-c", _IN_A_NAMESPACE]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as outer:
        assert outer.stdout is not None
        lines = sorted(outer.stdout.readline() for _ in range(2))
        if not lines[0]:
            pytest.skip(f"this host makes no PID namespaces: {outer.communicate()[1].splitlines()[-1]}")
        pid, (_, first, second) = int(lines[0]), lines[1].split()
        assert (first, second) == ("1", "2")
        (thread,) = {int(name) for name in os.listdir(f"/proc/{pid}/task")} - {pid}
        assert [find_tid(pid, number) for number in (1, 2, 3, pid, thread)] == [pid, thread, None, None, None]
        outer.communicate("")


def test_the_first_thread_of_a_process_that_has_ended_is_known() -> None:
    """It has asked for its attach before; the pidfd tells of its end."""
    gone = 1 << 22
    assert find_tid(gone, gone) == gone
    assert find_tid(gone, gone + 1) is None
