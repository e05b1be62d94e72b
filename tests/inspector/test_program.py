"""The inspector as a real process; the test plays kerneld, word for word as the ABI has it, and owns the table."""

from __future__ import annotations

import array
import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared import wire
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import SHADOW_PTE, USER_SHADOW_PT
from shared.uapi.syscalls import Nr
from tests.support.patience import SECONDS

BASE = 0x7F00_0000_0000
PID = 4242
"""Longer than anything here takes."""


class Kernel:
    """The daemon's side of one inspector: takes one request at a time and answers it."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "kerneld.sock")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.path)
        self._listener.listen()
        self._listener.settimeout(SECONDS)
        self.connection = self._listener
        self.table = os.memfd_create("table")
        self.sequence = os.memfd_create("sequence")
        for fd in (self.table, self.sequence):
            os.ftruncate(fd, PAGE_SIZE)

    def close(self) -> None:
        self._listener.close()
        self.connection.close()
        os.close(self.table)
        os.close(self.sequence)

    def receive(self, nr: Nr) -> wire.Request:
        """Return the next request, which must be `nr`."""
        (request,) = wire.unpack_requests(self.connection.recv(wire.MAX_DATAGRAM))
        assert request.nr == nr
        return request

    def answer(self, ret: int, data: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.connection.sendmsg([wire.pack_reply(ret, data)], rights)

    def serve_open(self) -> None:
        """Attach the inspector and open and start its table."""
        self.connection, _address = self._listener.accept()
        self.connection.settimeout(SECONDS)
        self.receive(Nr.ATTACH)
        self.answer(1)
        request = self.receive(Nr.SHADOWPT_OPEN)
        start, end, _entries = USER_SHADOW_PT.unpack(request.data)
        assert (request.args[0], start, end) == (PID, BASE, BASE + 0x4000)
        self.answer(0, request.data, (self.table, self.sequence))
        self.receive(Nr.SHADOWPT_START)
        self.answer(0)

    def write(self, *cells: tuple[int, int]) -> None:
        """Put flags and pfn of the first pages into the table."""
        raw = b"".join(
            SHADOW_PTE.pack(BASE + index * PAGE_SIZE, pfn, flags) for index, (flags, pfn) in enumerate(cells)
        )
        os.pwrite(self.table, raw, 0)

    def serve_close(self) -> None:
        """Answer the close, and see the inspector leave without another request."""
        self.receive(Nr.SHADOWPT_CLOSE)
        self.answer(0)
        assert self.connection.recv(1) == b""


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    kernel = Kernel(tmp_path)
    yield kernel
    kernel.close()


class Running:
    """An inspector that watches four pages of PID at BASE."""

    def __init__(self, kernel: Kernel, *options: str) -> None:
        command = [sys.executable, "-m", "inspector", str(PID), hex(BASE), "+16K", "--socket", kernel.path, *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.stdout = self.process.stdout

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> tuple[int, str, str]:
        """Return the exit status and the rest of both streams."""
        out, err = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, out, err


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_closes_the_table(kernel: Kernel, signo: int) -> None:
    kernel.write((3, 0))
    with Running(kernel, "--interval", "50") as inspector:
        kernel.serve_open()
        assert f"pid {PID} " in inspector.stdout.readline()
        inspector.process.send_signal(signo)
        kernel.serve_close()
        status, out, err = inspector.end()
    assert (status, out.splitlines()[-1], err) == (0, "The table is closed.", "")


def test_the_table_is_seen_changing_without_a_call(kernel: Kernel) -> None:
    kernel.write((3, 0), (3, 0), (0, 0), (0, 0))
    with Running(kernel, "--json", "--interval", "0.01") as inspector:
        kernel.serve_open()
        assert [entry["flags"] for entry in json.loads(inspector.stdout.readline())["entries"]] == [3, 3, 0, 0]
        kernel.write((3, 0), (7, 99), (0, 0), (0, 0))
        while not (shown := json.loads(inspector.stdout.readline()))["changed"]:
            pass
        assert shown["changed"] == [1]
        assert shown["entries"][1] == {"vaddr": BASE + PAGE_SIZE, "pfn": 99, "flags": 7}
        inspector.process.send_signal(signal.SIGINT)
        kernel.serve_close()
        assert inspector.end()[0] == 0


def test_kerneld_going_away_is_noticed_between_prints(kernel: Kernel) -> None:
    kernel.write((3, 0))
    with Running(kernel, "--interval", "50") as inspector:
        kernel.serve_open()
        inspector.stdout.readline()
        kernel.connection.close()
        status, _out, err = inspector.end()
    assert (status, err) == (4, "inspector: kerneld went away, and the table with it\n")


def test_kerneld_dying_in_the_middle_of_a_change_does_not_hang_the_reader(kernel: Kernel) -> None:
    os.pwrite(kernel.sequence, struct.pack("<Q", 7), 0)
    with Running(kernel) as inspector:
        kernel.serve_open()
        kernel.connection.close()
        status, out, err = inspector.end()
    assert (status, out, err) == (4, "", "inspector: kerneld went away, and the table with it\n")


def test_a_reader_that_leaves_ends_it_quietly_and_the_table_is_closed(kernel: Kernel) -> None:
    kernel.write((3, 0))
    with Running(kernel, "--interval", "0.01") as inspector:
        kernel.serve_open()
        inspector.stdout.readline()
        inspector.stdout.close()
        kernel.serve_close()
        assert inspector.process.stderr is not None
        assert inspector.process.stderr.read() == ""
        assert inspector.process.wait(SECONDS) == 1


def test_a_full_disk_is_one_line_and_the_table_is_closed(kernel: Kernel) -> None:
    kernel.write((3, 0))
    command = [sys.executable, "-m", "inspector", str(PID), hex(BASE), "+16K", "--socket", kernel.path]
    with (
        open("/dev/full", "w", encoding="utf-8") as full,
        subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE, text=True) as process,
    ):
        kernel.serve_open()
        kernel.serve_close()
        _out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, err) == (1, "inspector: cannot write: No space left on device\n")


def test_a_second_signal_ends_it_when_kerneld_does_not_answer(kernel: Kernel) -> None:
    kernel.write((3, 0))
    with Running(kernel, "--interval", "50") as inspector:
        kernel.serve_open()
        inspector.stdout.readline()
        inspector.process.send_signal(signal.SIGINT)
        kernel.receive(Nr.SHADOWPT_CLOSE)
        # One that comes too soon is not another.
        while inspector.process.poll() is None:
            inspector.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                inspector.process.wait(0.05)
        status, _out, err = inspector.end()
    assert (status, err) == (-signal.SIGINT, "")
