"""`kerneld strace` beside a real kerneld and real targets."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.client import Client
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon

RW, ANON = int(Prot.READ | Prot.WRITE), int(Map.PRIVATE | Map.ANONYMOUS)


@contextmanager
def straced(daemon: Daemon, target: Client, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a strace of a target that has begun: the target calls until it is seen to."""
    with daemon.program("kerneld", "strace", str(target.pid), *options) as tracer:
        try:
            assert tracer.stdout is not None
            os.set_blocking(tracer.stdout.fileno(), False)
            line = ""
            # What cannot be waited for may come in pieces.
            while not (line := line + tracer.stdout.readline()).endswith("\n"):
                assert tracer.poll() is None, tracer.communicate()
                target.p.getppid()
            os.set_blocking(tracer.stdout.fileno(), True)
            yield tracer
        finally:
            tracer.kill()


def lines(tracer: subprocess.Popen[str]) -> list[str]:
    """Return what is printed until the end, without the calls that showed its beginning."""
    out, _err = tracer.communicate(timeout=SECONDS)
    # The newline of the line that showed the beginning may come by itself.
    out = out.removeprefix("\n")
    return [line for line in out.splitlines() if "getppid" not in line]


def test_calls_of_a_target(daemon: Daemon, target: Client) -> None:
    with straced(daemon, target) as tracer:
        start = target.p.mmap(0, 2 * PAGE_SIZE, RW, ANON)
        target.p.mem.store_u8(start, 1)
        with pytest.raises(OSError, match="Cannot allocate memory"):
            target.p.mmap(0, 1 << 46, RW, ANON)
        target.p.read_proc("self/statm")
        target.post(_exit_with_3)
        printed = lines(tracer)
    assert tracer.returncode == 0
    assert printed == [
        f"mmap(NULL, 8192, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = {start:#x}",
        "mmap(NULL, 70368744177664, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS, -1, 0) = -1 ENOMEM "
        "(Cannot allocate memory)",
        *[line for line in printed if line.startswith("procread(")],
        "exit_group(3)                           = ?",
        "+++ exited with 3 +++",
    ]
    assert re.fullmatch(r"procread\(0, \d+\) +=? *= \d+", next(line for line in printed if "procread" in line))


def _exit_with_3(me: object) -> None:
    me.p.exit(3)  # type: ignore[attr-defined]


def _write_to_null(me: object) -> None:
    me.p.mem.store_u8(0, 1)  # type: ignore[attr-defined]


def test_a_write_to_null(daemon: Daemon, target: Client) -> None:
    with straced(daemon, target, "-e", "all,machine") as tracer:
        target.post(_write_to_null)
        assert lines(tracer) == [
            "store(NULL, 1)                          = ?",
            "--- SIGSEGV {si_signo=SIGSEGV, si_code=SEGV_MAPERR, si_addr=NULL} ---",
            "+++ killed by SIGSEGV +++",
        ]
    assert target.wait() == -signal.SIGSEGV


def test_children_are_followed(daemon: Daemon, target: Client) -> None:
    with straced(daemon, target, "-f") as tracer:
        child = target.fork()
        child.p.getuid()
        child.post(_exit_with_3)
        target.p.getuid()
        target.post(_exit_with_3)
        printed = lines(tracer)
    whose = f"[pid {child.pid:>5}] "
    of_child = [line.removeprefix(whose) for line in printed if line.startswith(whose)]
    assert f"strace: Process {child.pid} attached" in printed
    assert re.fullmatch(rf"attach\(1, 0, 0x[0-9a-f]+\) += {child.pid}", of_child[0])
    assert of_child[-1] == "+++ exited with 3 +++"
    assert any(line.startswith("getuid()") for line in of_child)
    assert any(line.startswith(f"[pid {target.pid:>5}] exit_group(3)") for line in printed)
    assert any(line.startswith("clone() ") for line in printed)


def test_execve_has_the_name_that_it_was_given(daemon: Daemon, target: Client, tmp_path: Path) -> None:
    """By a symbolic link too: the process is called after the link."""
    link = tmp_path / "a_link"
    link.symlink_to("/bin/true")
    with straced(daemon, target, "-e", "execve,getppid") as tracer:
        target.p.execve(str(link), ["true", "x" * 131_071])
        assert target.p.read_proc("self/comm") == b"a_link\n"
        with pytest.raises(OSError, match="Argument list too long"):
            target.p.execve(str(link), ["true", "x" * 131_072])
        target.post(_exit_with_3)
        (call, refused, end) = lines(tracer)
    assert re.fullmatch(rf'execve\("{re.escape(str(link)[:63])}", 0x[0-9a-f]+, 0x[0-9a-f]+\) = 0', call)
    assert refused.endswith("= -1 E2BIG (Argument list too long)")
    assert end == "+++ exited with 3 +++"


def test_a_table_at_ctrl_c(daemon: Daemon, target: Client, tmp_path: Path) -> None:
    file = tmp_path / "calls"
    with daemon.program("kerneld", "strace", "-c", "-o", str(file), "-p", str(target.pid), "-e", "getpid") as tracer:
        while not has_begun(tracer):
            assert tracer.poll() is None
            os.sched_yield()
        for _ in range(5):
            target.p.getpid()
        tracer.send_signal(signal.SIGINT)
        out, err = tracer.communicate(timeout=SECONDS)
    assert (tracer.returncode, out) == (0, "")
    assert err == f"strace: Process {target.pid} detached\n"
    table = file.read_text().splitlines()
    assert table[2].split()[3:] == ["5", "getpid"]
    assert table[-1].split()[3:] == ["5", "total"]


def has_begun(tracer: subprocess.Popen[str]) -> bool:
    """Whether it has the ring of a trace mapped."""
    return "kerneld-trace" in Path(f"/proc/{tracer.pid}/maps").read_text()


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ([], 2),
        (["-e", "nonsense", "1"], 2),
        (["4194305"], 5),
        (["-f", "4194305"], 5),
        (["--socket", "/nowhere/kerneld.sock", "1"], 3),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_status(daemon: Daemon, options: list[str], status: int) -> None:
    with daemon.program("kerneld", "strace", *options) as tracer:
        out, err = tracer.communicate(timeout=SECONDS)
    assert (tracer.returncode, out, err.count("\n")) == (status, "", 1), err
