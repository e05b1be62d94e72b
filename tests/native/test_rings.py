"""The rings of programs inside: each thread has one, and no process has another's."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.native.inside import Inside

FORKS = "import os, sys\nr, w = os.pipe()\npid = os.fork()\nif pid:\n  print(pid, flush=True)\nsys.stdin.read()\n"
THREADS = (
    "import sys, threading\nthreads = [threading.Thread(target=sys.stdin.read) for _ in range(3)]\n"
    "for thread in threads: thread.start()\nprint(len(threads), flush=True)\n"
)


def rings(pid: int) -> list[str]:
    """The inodes of the rings that a process has mapped."""
    return re.findall(r" 00:\w+ (\d+) +/memfd:kerneld-ring", Path(f"/proc/{pid}/maps").read_text())


@pytest.fixture
def python() -> str:
    """The interpreter itself, not a link of an environment to it."""
    return str(Path(sys.executable).resolve())


def test_a_forked_child_has_a_ring_of_its_own_and_not_its_parents(inside: Inside, python: str) -> None:
    process = inside.start([python, "-I", "-c", FORKS])
    assert process.stdout is not None
    child = int(process.stdout.readline())
    # The child asks for its ring before it goes on; the parent does not wait for that.
    while not rings(child):
        assert process.poll() is None
    assert len(rings(process.pid)) == len(rings(child)) == 1
    assert rings(process.pid) != rings(child)
    assert process.communicate()[1] == ""


def test_each_thread_has_a_ring(inside: Inside, python: str) -> None:
    process = inside.start([python, "-I", "-c", THREADS])
    assert process.stdout is not None
    assert process.stdout.readline() == "3\n"
    assert len(set(rings(process.pid))) == 4
    process.communicate()
    assert process.returncode == 0


def test_a_program_that_was_executed_has_one_ring(inside: Inside, python: str) -> None:
    process = inside.start(["/bin/sh", "-c", f"exec {python} -I -c 'print(1, flush=True); input()'"])
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    assert len(rings(process.pid)) == 1
    process.communicate("\n")


def test_a_program_that_exits_while_its_threads_ask_kerneld_has_its_own_status(
    inside: Inside, programs: dict[str, Path]
) -> None:
    """kerneld ends the threads' connections first: a thread that sees that waits for the host to end it."""
    for _ in range(5):
        assert inside.agrees([str(programs["exits"])]).status == 7
