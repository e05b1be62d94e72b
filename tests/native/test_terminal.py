"""A shell inside at a terminal: job control is the host's, as outside; and what others outside see of a program."""

from __future__ import annotations

import os
import pty
import select
import shutil
from pathlib import Path

import pytest

from tests.native.conftest import NativeDaemon
from tests.native.inside import Inside
from tests.support.patience import SECONDS


class Terminal:
    """The other side of a program's terminal."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.pid, self._fd = pty.fork()
        if not self.pid:
            os.execve(argv[0], argv, environment)
        self._read = b""

    def type(self, text: str) -> None:
        """Type as a person does."""
        os.write(self._fd, text.encode())

    def expect(self, text: str) -> None:
        """Wait until the screen shows a text, behind what was expected before."""
        while text.encode() not in self._read:
            assert select.select([self._fd], [], [], SECONDS)[0], self._read
            self._read += os.read(self._fd, 65536)
        self._read = self._read.partition(text.encode())[2]

    def close(self) -> int:
        """Return the exit status of the program, which is about to end."""
        status = os.waitpid(self.pid, 0)[1]
        os.close(self._fd)
        return os.waitstatus_to_exitcode(status)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_shell_has_job_control(native_daemon: NativeDaemon) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("this host has no bash")
    inside = Inside(native_daemon.environment)
    environment = {**native_daemon.environment, "PS1": "ready> ", "TERM": "dumb"}
    terminal = Terminal(inside.command([bash, "--norc", "--noprofile", "-i"]), environment)
    terminal.expect("ready> ")
    terminal.type("echo $((6 * 7))\n")
    terminal.expect("\n42\r\n")
    # The terminal echoes a line only once the shell has given it back to its command: the command says so.
    terminal.type("echo here; cat\n")
    terminal.expect("\nhere\r\n")
    terminal.type("line\n")
    terminal.expect("line\r\nline\r\n")
    terminal.type("\x1a")
    terminal.expect("Stopped")
    terminal.type("fg\n")
    terminal.expect("fg\r\ncat\r\n")
    terminal.type("again\n")
    terminal.expect("again\r\nagain\r\n")
    terminal.type("\x03")
    terminal.expect("ready> ")
    terminal.type("exit 5\n")
    assert terminal.close() == 5


def test_its_arguments_are_seen_outside(inside: Inside, programs: dict[str, Path]) -> None:
    process = inside.start([str(programs["waits"]), "one", "two words"])
    assert process.stdout is not None
    assert process.stdout.readline()
    assert Path(f"/proc/{process.pid}/cmdline").read_bytes() == f"{programs['waits']}\0one\0two words\0".encode()
    assert Path(f"/proc/{process.pid}/comm").read_text() == "waits\n"
    process.communicate("")


def test_a_debugger_looks_into_it(inside: Inside, programs: dict[str, Path]) -> None:
    gdb = shutil.which("gdb")
    if gdb is None:
        pytest.skip("this host has no gdb")
    process = inside.start([str(programs["waits"])])
    assert process.stdout is not None
    vaddr = int(process.stdout.readline(), 16)
    said = inside.outside([gdb, "-batch", "-nx", "-p", str(process.pid), "-ex", f"x/4xb {vaddr + 2 * 4096}"]).output
    assert f"{vaddr + 2 * 4096:#x}:\t0x03\t0x01\t0x01\t0x01" in said
    process.communicate("")
    assert process.returncode == 0
