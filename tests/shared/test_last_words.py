"""What a Python client says when it dies of a fault, and what it is called."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.client import KerneldGone, Process
from tests.support.daemons import environment, private_socket, running_daemon
from tests.support.patience import SECONDS

PROGRAM = """
from shared.client import Process

def look(p, at):
    return p.mem.{access}

p = Process.attach()
ro = p.mmap(0, 4096, 1, 0x22)
look(p, {at})
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = private_socket(tmp_path_factory.mktemp("run"))
    with running_daemon(path):
        yield path


@pytest.mark.parametrize(
    ("access", "at", "words"),
    [
        ("load_u8(at)", "0x18", r"at 0x18 \(MAPERR\)"),
        ("store_u64(at, 1)", "ro + 8", r"at 0x[0-9a-f]+8 \(ACCERR\)"),
        ("touch(at, 4096)", "0x1000", r"at 0x1000 \(MAPERR\)"),
        ("load(at, 200000)", "0", r"at 0x0 \(MAPERR\)"),
    ],
)
def test_a_fault_that_ends_a_program_says_where(tmp_path: Path, path: Path, access: str, at: str, words: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(access=access, at=at))
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**environment(path), "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == -signal.SIGSEGV
    line = rf"kerneld: process \d+: SIGSEGV {words} in {re.escape(str(program))}:5, look\n"
    assert re.fullmatch(line, done.stderr), done.stderr


def test_a_process_says_what_it_is(path: Path) -> None:
    with Process.attach(str(path)) as process:
        assert repr(process) == f"<Process {os.getpid()} attached to {path}>"
    assert repr(process) == f"<Process {os.getpid()} no longer attached to {path}>"


def test_a_process_that_kerneld_has_let_go_says_so(tmp_path: Path) -> None:
    path = private_socket(tmp_path)
    with running_daemon(path) as daemon:
        process = Process.attach(str(path))
        daemon.kill()
        daemon.wait(SECONDS)
    with pytest.raises(KerneldGone):
        process.getpid()
    assert "no longer attached" in repr(process)
    process.close()
