"""A record of everything that a lecture on virtual memory shows: what the tests of the page, and its pictures, open.

Its steps have marks by name: the number of the event behind each. All addresses count from `page(0)`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from signal import SIGKILL

from shared.page.package import one_file
from shared.recording.head import make_head
from shared.recording.reader import Recording
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import USER_SHADOW_PT
from shared.uapi.syscalls import Nr
from tests.support.fake_shadowpt import HostMemory
from tests.support.programs import PRIVATE, READ, RW, SHARED_ANON, Program, page
from tests.support.recorded import Recorded, recorded
from tests.support.traced import TracedWorld

HOSTILE = "<script>x()<b>"
"""The name of one process: 15 bytes at most, as in Linux."""
HOSTILE_FILE = "<img src=x onerror=x()>"


@dataclass
class Lesson:
    """The record, and where each part of it ends."""

    recording: Recording
    html: bytes
    parent: int
    child: int
    moments: dict[str, int] = field(default_factory=dict)


class _Stage:
    def __init__(self, world: TracedWorld, record: Recorded) -> None:
        self.world = world
        self.record = record
        self.moments: dict[str, int] = {}

    def mark(self, name: str) -> None:
        self.moments[name] = self.record.recording().nr_events


@contextmanager
def _stage() -> Iterator[_Stage]:
    world = TracedWorld(16 << 20, swap_bytes=4 << 20)
    with recorded(world, key_events=200) as record:
        yield _Stage(world, record)
    world.close()


@contextmanager
def _family() -> Iterator[tuple[int, int, int]]:
    """A real process, its real child, because a fork is taken only by one, and a process with a hostile name."""
    named = f"printf '{HOSTILE}' > /proc/$$/comm; echo; read _"
    with (
        subprocess.Popen(
            ["sh", "-c", "printf target > /proc/$$/comm; sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True
        ) as shell,
        subprocess.Popen(["sh", "-c", named], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other,
    ):
        assert shell.stdout is not None
        assert other.stdout is not None
        assert other.stdin is not None
        child = int(shell.stdout.readline())
        other.stdout.readline()
        try:
            yield shell.pid, child, other.pid
        finally:
            os.kill(child, SIGKILL)
            other.stdin.close()


def make_lesson() -> Lesson:
    """Play the lecture on a machine of the test's own."""
    with _family() as (parent_pid, child_pid, other_pid), _stage() as stage:
        parent = stage.world.attach(pid=parent_pid)
        memory = HostMemory(12)
        fds = _open_shadow(stage, parent, memory)
        _demand_paging(stage, parent)
        child = _copy_on_write(stage, parent, child_pid)
        _the_rest(stage, parent, child)
        stage.world.attach(pid=other_pid)
        stage.record.read()
        head = make_head(pids=(), superuser=True) | {"viewer": stage.world.tracer.pid}
        recording, html = stage.record.recording(), one_file(head, stage.record.chunks)
        lesson = Lesson(recording, html, parent.pid, child.pid, stage.moments)
        for fd in fds:
            os.close(fd)
    return lesson


def _open_shadow(stage: _Stage, parent: Program, memory: HostMemory) -> list[int]:
    opener = stage.world.attach(0, pid=os.getpid())
    opener.process.comm = "inspector"
    packed = USER_SHADOW_PT.pack(page(0), page(16), memory.address)
    fds = list(opener.answer(Nr.SHADOWPT_OPEN, parent.pid, 0, 0, data=packed).fds)
    assert opener.call(Nr.SHADOWPT_START) == 0
    return fds


def _demand_paging(stage: _Stage, parent: Program) -> None:
    parent.mmap(8, at=page(0))
    stage.mark("mmap")
    parent.store(page(0), b"x")
    stage.mark("first write")
    parent.load(page(1))
    stage.mark("first read")
    parent.store(page(1), b"x")
    parent.store(page(2), b"x")
    stage.mark("demand paging")


def _copy_on_write(stage: _Stage, parent: Program, pid: int) -> Program:
    child = stage.world.attach(pid=pid, token=parent.call(Nr.CLONE))
    stage.mark("fork")
    child.store(page(0), b"y")
    stage.mark("copy")
    parent.store(page(0), b"z")
    stage.mark("reuse")
    parent.call(Nr.MLOCK, page(2), PAGE_SIZE)
    stage.mark("locked")
    return child


def _the_rest(stage: _Stage, parent: Program, child: Program) -> None:
    bottom = min(vma.start for vma in parent.mm.vmas if vma.start >= 0x7000_0000_0000)
    parent.store(bottom - 8, b"x")
    stage.mark("stack growth")
    parent.mmap(4, RW, SHARED_ANON, at=page(8))
    parent.touch(8, 2)
    file = os.memfd_create(HOSTILE_FILE)
    os.ftruncate(file, PAGE_SIZE)
    parent.mmap(1, READ, PRIVATE, at=page(14), fd=file)
    os.close(file)
    parent.load(page(14))
    parent.call(Nr.MPROTECT, page(12 - 2), 2 * PAGE_SIZE, READ)
    stage.mark("shared")
    assert parent.call(Nr.MADVISE, page(0), PAGE_SIZE, Madv.PAGEOUT) == 0
    stage.mark("swapped")
    with open("/bin/true", "rb") as program:
        child.call(Nr.EXECVE, 0, 0, 0, data=b"true\0\0", fds=[program.fileno()])
    stage.mark("exec")
    child.call(Nr.EXIT_GROUP, 0)
    parent.call(Nr.MUNMAP, page(4), 4 * PAGE_SIZE)
    stage.mark("munmap")
