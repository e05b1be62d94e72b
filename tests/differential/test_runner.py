"""The host's side in odd places: as another user, with many descriptors open; and copies that would overlap."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kerneld.referee import host
from kerneld.referee.errors import HostError
from kerneld.referee.generate import generate
from kerneld.referee.host_process import FORK, HostProcess
from kerneld.referee.match import Match, open_match
from kerneld.referee.outcome import Mapping, Outcome, View
from kerneld.referee.overlap import length_without_overlap
from kerneld.referee.program import At, Op
from tests.support.rights import can_others_read, needs_another_user

NOBODY = 65534
SOURCE = Path(host.__file__).with_name("host.c")
PR_SET_DUMPABLE = 4
PAGE = 4096


def in_child(check: Callable[[], None]) -> int:
    """Run a check in a forked process; returns its exit status, 0 where the check held."""
    pid = os.fork()
    if pid == 0:
        try:
            check()
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def play_as_nobody() -> None:
    os.chdir("/")
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    # A process that has changed its user may not look at itself in /proc, let alone its children at it.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    with open_match() as match:
        assert "frames are not compared: only root sees them" in match.describe()
        for number in range(20):
            assert match.play(generate(f"nobody-{number}", 40)) is None
        program = (Op(0, "mmap", (At(-1), 2 * PAGE, 3, 0x22, 0), slot=0), Op(0, "store", (At(0), 8), data=b"\xf5"))
        *_, state = match.hosts.play(program)
        assert not state.views[0].frames


@needs_another_user
def test_another_user_sees_no_frames_and_compares_the_rest(match: Match) -> None:
    if not can_others_read(SOURCE):
        pytest.skip(f"another user compiles {SOURCE.name} for itself, and cannot read it in this directory")
    assert "frames are compared" in match.describe()
    assert in_child(play_as_nobody) == 0


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
    yield
    for fd in opened:
        os.close(fd)


@pytest.mark.usefixtures("match", "many_descriptors")
def test_descriptors_of_any_number() -> None:
    def check() -> None:
        with open_match() as match:
            assert match.play(generate("many", 20)) is None

    assert in_child(check) == 0


@pytest.mark.usefixtures("match")
@pytest.mark.parametrize(("code", "line"), [(errno.EAGAIN, "so many processes"), (errno.ENOMEM, "cannot fork: Cannot")])
def test_a_host_without_room_for_a_process(code: int, line: str) -> None:
    order = HostProcess.order

    def crowded(self: HostProcess, number: int, *args: Any, **options: Any) -> Outcome:
        return Outcome(-code) if number == FORK else order(self, number, *args, **options)

    def check() -> None:
        with open_match() as match, pytest.MonkeyPatch.context() as patch:
            patch.setattr(HostProcess, "order", crowded)
            with pytest.raises(HostError, match=line):
                match.play(generate("crowded", 20))

    assert in_child(check) == 0


def view_of(*mappings: tuple[int, int, int, str]) -> View:
    return View(tuple(Mapping(start, end, "rw-s", offset, name, ()) for start, end, offset, name in mappings), {}, {})


FILE = view_of((0x10000, 0x14000, 0, "file"), (0x20000, 0x24000, 0x1000, "file"), (0x30000, 0x34000, 0, ""))


@pytest.mark.parametrize(
    ("local", "remote", "length", "expected"),
    [
        ((0, 0x30000), (0, 0x31000), PAGE, PAGE),
        ((0, 0x30000), (0, 0x31000), PAGE + 1, PAGE),
        ((0, 0x31000), (0, 0x30000), PAGE + 1, PAGE),
        ((0, 0x30000), (0, 0x30000), 3 * PAGE, 3 * PAGE),
        ((0, 0x30010), (0, 0x30000), 100, 16),
        ((0, 0x30000), (1, 0x30010), 100, 100),
        ((0, 0x11000), (0, 0x20000), 2 * PAGE, 2 * PAGE),
        ((0, 0x11010), (0, 0x20000), 2 * PAGE, 16),
        ((0, 0x10000), (1, 0x20000), 2 * PAGE, PAGE),
        ((0, 0x50000), (0, 0x50010), 100, 16),
        ((0, 0x10000), (0, 0x10000), 0, 0),
    ],
)
def test_a_copy_ends_before_it_meets_itself(
    local: tuple[int, int], remote: tuple[int, int], length: int, expected: int
) -> None:
    assert length_without_overlap({0: FILE, 1: FILE}, local, remote, length) == expected
