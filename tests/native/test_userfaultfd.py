"""userfaultfd(2) inside and outside: each scene of c/userfault*.c says what Linux says, here and as it was recorded."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.client.process import Process
from tests.native.conftest import NativeDaemon
from tests.native.inside import End, Inside

SYS_USERFAULTFD = 323
SECTION = re.compile(r"^== (\w+) ([\w ]+)\n(.*?)status (-?\d+)\n", re.MULTILINE | re.DOTALL)
RECORDED = {
    (scene, kind): End(int(status), output, "")
    for scene, kinds, output, status in SECTION.findall((Path(__file__).parent / "userfault.txt").read_text())
    for kind in kinds.split()
}


WAITS = {"signals", "closes", "withdrawn", "features", "waiting", "execs"}
"""The scenes of c/userfault_waits.c; the others are in c/userfault.c."""


def command(programs: dict[str, Path], scene: str, kind: str) -> list[str]:
    """Return the words that play a scene with a kind of memory."""
    return [str(programs["userfault_waits" if scene in WAITS else "userfault"]), scene, kind]


def why_not_outside() -> str:
    """Return why this user's programs have no userfaultfd on the host; "" where they have."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(SYS_USERFAULTFD, 0)
    if fd < 0:
        return f"the host gives this user no userfaultfd for the kernel's faults: {os.strerror(ctypes.get_errno())}"
    os.close(fd)
    return ""


@pytest.fixture(autouse=True)
def _for_everybody(native_daemon: NativeDaemon) -> Iterator[None]:
    """The programs inside may be an ordinary user's."""
    name = "sys/vm/unprivileged_userfaultfd"
    with Process.attach(native_daemon.environment["KERNELD_SOCKET"]) as process:
        process.procwrite(name, b"1")
        yield
        process.procwrite(name, b"0")


@pytest.mark.parametrize(("scene", "kind"), RECORDED)
def test_each_scene_inside(scene: str, kind: str, inside: Inside, programs: dict[str, Path]) -> None:
    """Faults, calls, signals, forks, the end of a process, the last close: what the program sees is Linux's."""
    assert inside.run(command(programs, scene, kind)) == RECORDED[scene, kind]


@pytest.mark.skipif(why_not_outside() != "", reason=why_not_outside())
@pytest.mark.parametrize(("scene", "kind"), RECORDED)
def test_the_host_says_the_same(scene: str, kind: str, inside: Inside, programs: dict[str, Path]) -> None:
    """What was recorded is what this host says."""
    assert inside.outside(command(programs, scene, kind)) == RECORDED[scene, kind]
