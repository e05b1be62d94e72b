"""A kernel with bugs: a handler that raises costs its task alone, a broken invariant leaves a dump."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import ROOT
from tests.support.daemons import start_kerneld
from tests.support.patience import SECONDS
from tests.support.raw import ATTACH, GETPID, GETPPID, VERSION, RawThread, pack

BUGGY = """
from kerneld.syscalls.table import HANDLERS
def raises(call):
    return 1 // 0
def leaks(call):
    call.kernel.frames.refcount[9] += 1
    return 0
HANDLERS[110], HANDLERS[186] = raises, leaks
from kerneld.cli import main
main()
"""
GETTID = 186


@pytest.fixture
def private(tmp_path: Path) -> Path:
    directory = tmp_path / "kerneld"
    directory.mkdir(mode=0o700)
    return directory


def start(directory: Path) -> subprocess.Popen[bytes]:
    """Start a kerneld whose getppid raises and whose gettid loses a frame."""
    path = directory / "kerneld.sock"
    command = [sys.executable, "-P", "-c", BUGGY]
    return start_kerneld(path, command=command, environ={**os.environ, "PYTHONPATH": str(ROOT)}, ram="16M")


def log_of(daemon: subprocess.Popen[bytes]) -> list[str]:
    _out, err = daemon.communicate(timeout=SECONDS)
    return err.decode().splitlines()


def test_a_handler_that_raises_ends_that_task_alone(private: Path) -> None:
    daemon = start(private)
    path = str(private / "kerneld.sock")
    other = RawThread()
    assert other.attach(path) == os.getpid()
    pid = os.fork()
    if pid == 0:
        raw = RawThread()
        raw.attach(path)
        (reply,) = raw.exchange(pack(GETPPID, 1, 2, 3))
        fatal = reply.signo == signal.SIGSEGV and reply.siginfo.fatal == 1
        os._exit(0 if fatal and raw.is_ended() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert other.call(GETPID).ret == os.getpid()
    other.close()
    daemon.send_signal(signal.SIGTERM)
    entries = [json.loads(line) for line in log_of(daemon)]
    (oops,) = [entry for entry in entries if entry["event"] == "oops"]
    assert daemon.returncode == 0
    assert (oops["call"], oops["pid"], oops["args"][:3]) == ("getppid", pid, ["0x1", "0x2", "0x3"])
    assert "ZeroDivisionError" in oops["exception"]
    assert oops["vmas"]


def test_a_broken_invariant_panics_with_a_dump(private: Path) -> None:
    daemon = start(private)
    raw = RawThread()
    raw.connect(str(private / "kerneld.sock"))
    raw.send(pack(ATTACH, VERSION) + pack(GETTID))
    assert raw.is_ended()
    raw.close()
    *_, last = log_of(daemon)
    dump = private / "kerneld.sock.panic.json"
    assert daemon.returncode == 1
    assert last.startswith("kerneld: kernel panic: ")
    assert last.endswith(f"(kerneld inspect-dump {dump})")
    assert [entry.name for entry in private.iterdir()] == [dump.name]
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    said = inspect(dump)
    assert said.returncode == 0
    lines = said.stdout.splitlines()
    assert lines[0].startswith("kernel panic at ")
    assert lines[1].startswith("why: KernelBug: ")
    assert lines[2].startswith("request: gettid(")
    assert f"by pid {os.getpid()}" in lines[3]
    assert any(line.startswith(f"process {os.getpid()}: ") for line in lines)
    assert "traceback:" in lines
    # And the next daemon starts as if nothing had been.
    again = start(private)
    again.send_signal(signal.SIGTERM)
    log_of(again)
    assert again.returncode == 0


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]", b'{"format": "other"}', b"\xff\xfe"])
def test_what_is_no_dump_is_one_line_and_1(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "dump"
    if content is not None:
        path.write_bytes(content)
    done = inspect(path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def inspect(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "kerneld", "inspect-dump", str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
