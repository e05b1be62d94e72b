"""libkerneld against a real daemon: its own check in C, and its two examples with each other."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from shared.uapi.shadowpt import Spte
from tests.support.daemons import environment, private_socket, running_daemon
from tests.support.patience import SECONDS

PAGE = 4096
ALLOCATED = int(Spte.VADDR_ALLOCATED)
ANONYMOUS = int(Spte.VADDR_ALLOCATED | Spte.VADDR_ANONYMOUS)
MAPPED = int(Spte.PTE_MAPPED)
Program = dict[str, Path]


def test_the_library_keeps_its_promises(library_programs: Program, daemon_socket: Path) -> None:
    done = subprocess.run(
        [library_programs["library_check"]],
        env=environment(daemon_socket),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


class Target:
    """The example target, a step at each Enter."""

    def __init__(self, program: Path, path: Path) -> None:
        self.process = subprocess.Popen(
            [program], env=environment(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.window = self.line().split()[3:]

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def step(self) -> None:
        """Let one step happen; returns when the next is announced."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.line()

    def __enter__(self) -> Target:
        assert self.line().startswith("next: ")
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.communicate()


def inspect(programs: Program, path: Path, target: Target) -> list[int]:
    """Return the flags of each page of the target's window, as the example inspector prints them."""
    command = [str(programs["kd_inspector"]), str(target.process.pid), *target.window]
    done = subprocess.run(command, env=environment(path), capture_output=True, text=True, timeout=SECONDS, check=True)
    return [int(line.split()[2]) for line in done.stdout.splitlines() if not line.startswith("contents")]


def test_the_examples_show_every_step(library_programs: Program, daemon_socket: Path) -> None:
    """The table after each step, page by page: 16 pages, the first eight anonymous, the file at 12."""
    with Target(library_programs["target"], daemon_socket) as target:
        flags = [0] * 16
        for first, last, value in (
            (0, 8, ANONYMOUS),  # mmap
            (0, 1, ANONYMOUS | MAPPED),  # the first write
            (1, 2, ANONYMOUS | MAPPED),  # the first read
            (4, 6, 0),  # munmap
            (0, 0, 0),  # mprotect, twice
            (0, 0, 0),
            (0, 0, 0),  # fork
            (0, 0, 0),  # a write after it
            (12, 13, ALLOCATED),  # a file
            (12, 13, ALLOCATED | MAPPED),  # read
        ):
            target.step()
            flags[first:last] = [value] * (last - first)
            assert inspect(library_programs, daemon_socket, target) == flags


def test_contents_are_the_targets(library_programs: Program, daemon_socket: Path) -> None:
    with Target(library_programs["target"], daemon_socket) as target:
        target.step()
        target.step()
        command = [str(library_programs["kd_inspector"]), str(target.process.pid), *target.window]
        output = subprocess.run(
            command, env=environment(daemon_socket), capture_output=True, text=True, timeout=SECONDS, check=True
        ).stdout
        assert output.splitlines()[-1].split(": ")[1].startswith(b"hello".hex(" "))


def test_a_daemon_that_dies_is_connreset_and_the_memory_is_private_again(
    library_programs: Program, tmp_path: Path
) -> None:
    path = private_socket(tmp_path)
    with running_daemon(path) as daemon, Target(library_programs["target"], path) as target:
        daemon.send_signal(signal.SIGKILL)
        daemon.wait(SECONDS)
        assert target.process.stdin is not None
        target.process.stdin.write("\n")
        target.process.stdin.flush()
        assert target.process.wait(SECONDS) == 1
    no_daemon = subprocess.run(
        [library_programs["target"]],
        env=environment(path),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert no_daemon.returncode == 3
    assert no_daemon.stderr.startswith("target: no kerneld: ")
    assert no_daemon.stderr.endswith(f"{os.strerror(111)}\n")
