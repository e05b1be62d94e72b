"""What the kernel asks the host about a real process: answered at once, whatever that process does."""

from __future__ import annotations

import os
from pathlib import Path

from kerneld.task.real_process import RealProcess, find_comm, find_effective_ids, find_ppid
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
