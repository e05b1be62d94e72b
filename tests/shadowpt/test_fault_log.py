"""Fall 2025's first part: each page fault of the target stores its address in the opener's memory."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator

import pytest

from kerneld.shadowpt.fault_table import FaultTable
from shared.trace.events import SHADOWPT_CLOSE, SHADOWPT_OPEN
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE, USER_SHADOW_PT, Layout
from shared.uapi.syscalls import Access, Nr
from tests.support.fake_shadowpt import HostMemory
from tests.support.programs import NOBODY_FROM, ROOT, USER, Program, World, page
from tests.support.steps import steps_of
from tests.support.traced import TracedWorld

SIZE = 2 * PAGE_SIZE


class Scene:
    """A target, an opener which is this real process, and memory for the table."""

    def __init__(self) -> None:
        self.world = World()
        self.target = self.world.attach(USER)
        self.opener = self.world.attach(ROOT, pid=os.getpid())
        self.memory = HostMemory(4)
        self.fds: tuple[int, ...] = ()

    def open(
        self, size: int = SIZE, dest: int | None = None, pid: int | None = None, who: Program | None = None
    ) -> int:
        packed = USER_SHADOW_PT.pack(0, size, self.memory.address if dest is None else dest)
        args = (self.target.pid if pid is None else pid, 0, Layout.F25_PART1, 0)
        answer = (who or self.opener).answer(Nr.SHADOWPT_OPEN, *args, data=packed)
        if answer.fds:
            assert answer.data == packed
            self.drop()
            self.fds = answer.fds
        return answer.ret

    def words(self) -> dict[int, int]:
        """Return what the table holds, by index, where it is not 0."""
        with mmap.mmap(self.fds[0], 0, mmap.MAP_SHARED, mmap.PROT_READ) as table:
            return {at: word for at, word in enumerate(memoryview(bytes(table)).cast("Q")) if word}

    def drop(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = ()


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    yield scene
    scene.world.close()
    scene.drop()
    scene.memory.close()


def index(vaddr: int, size: int = SIZE) -> int:
    return vaddr % size // 8


def stored(*faults: int, size: int = SIZE) -> dict[int, int]:
    return {index(vaddr, size): vaddr for vaddr in faults}


def test_each_fault_stores_its_address(scene: Scene) -> None:
    scene.target.mmap(8, at=page(0))
    scene.target.store(page(0) + 24, b"before")
    assert scene.open() == 0
    assert scene.words() == {}
    scene.target.store(page(0) + 32, b"no fault any more")
    scene.target.load(page(1) + 801)
    scene.target.store(page(2) + 1608, b"x")
    assert scene.words() == stored(page(1) + 801, page(2) + 1608)
    # The zero page was read: the write of it faults again. A fault at the same place takes it.
    scene.target.store(page(1) + 800, b"x")
    scene.target.load(page(3) + 800)
    assert scene.words() == stored(page(1) + 801, page(2) + 1608, page(3) + 800)
    assert scene.words()[index(page(1) + 800)] == page(3) + 800


def test_a_fault_that_ends_in_a_signal_stores_its_address_too(scene: Scene) -> None:
    scene.target.mmap(1, at=page(0), prot=1)
    assert scene.open() == 0
    for vaddr in (0, 8, page(0) + 16, page(7) + 40, 1 << 46, TASK_SIZE + 56, (1 << 64) - 4096 + 48):
        scene.target.call(Nr.RT_SIGACTION, 11, 2)
        assert scene.target.answer(Nr.STORE, vaddr, 1, data=b"x").signo == 11
        assert scene.words().get(index(vaddr), 0) == vaddr
    assert scene.words()[index(8)] == 8


def test_a_fault_that_ends_the_target_stores_its_address(scene: Scene) -> None:
    assert scene.open() == 0
    assert scene.target.answer(Nr.LOAD, page(5) + 64, 1).signo == 11
    assert scene.target.process.ended
    assert scene.words() == stored(page(5) + 64)
    assert scene.opener.call(Nr.SHADOWPT_CLOSE) == 0


@pytest.mark.parametrize("pages", [2, 600])
def test_each_page_of_a_touch_is_a_fault(scene: Scene, pages: int) -> None:
    """Elsewhere a range is faulted in at once."""
    scene.target.mmap(pages, at=page(0))
    size = 4 * PAGE_SIZE
    assert scene.open(size) == 0
    before = scene.target.process.min_flt
    scene.target.touch(0, pages, Access.WRITE)
    assert scene.target.process.min_flt == before + pages
    assert scene.words() == stored(*(page(number) for number in range(pages)), size=size)


def test_others_faults_and_what_is_no_fault_are_not_there(scene: Scene) -> None:
    other = scene.world.attach(USER)
    other.mmap(2, at=page(0))
    scene.target.mmap(4, at=page(0))
    assert scene.open() == 0
    other.store(page(0) + 8, b"x")
    scene.target.call(Nr.MLOCK, page(0), 2 * PAGE_SIZE)
    assert scene.words() == {}


@pytest.mark.parametrize("size", [0, 1, PAGE_SIZE + 8, MAX_SPT_RANGE + PAGE_SIZE, (1 << 64) - PAGE_SIZE])
def test_a_size_that_cannot_be(scene: Scene, size: int) -> None:
    assert scene.open(size) == -errno.EINVAL


def test_errors(scene: Scene) -> None:
    assert scene.open(who=scene.target) == -errno.EPERM
    assert scene.open(dest=scene.memory.address + 8) == -errno.EINVAL
    assert scene.open(dest=1 << 46) == -errno.EINVAL
    assert scene.open(pid=NOBODY_FROM - 1) == -errno.EINVAL
    scene.memory.touch(1)
    assert scene.open() == -errno.EINVAL
    assert scene.opener.call(Nr.SHADOWPT_CLOSE) == -errno.EINVAL
    assert scene.open(PAGE_SIZE) == 0
    assert scene.open(PAGE_SIZE, dest=1) == -errno.EBUSY
    assert scene.target.call(Nr.SHADOWPT_CLOSE) == -errno.EPERM
    assert scene.opener.call(Nr.SHADOWPT_CLOSE) == 0
    assert scene.opener.call(Nr.SHADOWPT_CLOSE) == -errno.EINVAL


def test_one_table_of_either_kind_is_open_at_a_time(scene: Scene) -> None:
    packed = USER_SHADOW_PT.pack(page(0), page(8), scene.memory.address)

    def open_entries() -> int:
        answer = scene.opener.answer(Nr.SHADOWPT_OPEN, scene.target.pid, 0, 0, 0, data=packed)
        for fd in answer.fds:
            os.close(fd)
        return answer.ret

    assert scene.open() == 0
    status = scene.opener.answer(Nr.PROCREAD, 0, 4096, data=b"kerneld/status").data.decode()
    assert f"ShadowTable:\ttracking\nShadowOpener:\t{os.getpid()}\nShadowTarget:\t{scene.target.pid}\n" in status
    assert open_entries() == -errno.EBUSY
    assert scene.opener.call(Nr.SHADOWPT_CLOSE) == 0
    assert open_entries() == 0
    assert scene.open() == -errno.EBUSY


def test_close_empties_it_and_ends_it(scene: Scene) -> None:
    scene.target.mmap(2, at=page(0))
    assert scene.open() == 0
    scene.target.store(page(0), b"x")
    assert scene.words()
    assert scene.opener.call(Nr.SHADOWPT_CLOSE) == 0
    assert scene.words() == {}
    scene.target.store(page(1), b"x")
    assert scene.words() == {}


def test_it_is_traced_as_the_other_table_is() -> None:
    world = TracedWorld()
    target, opener, memory = world.attach(USER), world.attach(ROOT, pid=os.getpid()), HostMemory(4)
    with world.trace("shadowpt:*") as trace:
        packed = USER_SHADOW_PT.pack(0, SIZE, memory.address)
        for fd in opener.answer(Nr.SHADOWPT_OPEN, target.pid, 0, Layout.F25_PART1, 0, data=packed).fds:
            os.close(fd)
        target.mmap(1, at=page(0))
        target.store(page(0), b"x")
        opener.call(Nr.SHADOWPT_CLOSE)
        session = {"opener": opener.pid, "target": target.pid, "start": 0, "end": SIZE}
        assert [(record.event, record.fields) for record in trace.records()] == [
            (SHADOWPT_OPEN, session | {"ret": 0, "why": ""}),
            (SHADOWPT_CLOSE, session),
        ]
    world.close()
    memory.close()


def test_the_end_of_the_opener_closes_it(scene: Scene) -> None:
    assert scene.open() == 0
    scene.opener.call(Nr.EXIT_GROUP, 0)
    scene.world.kernel.take_ended()
    scene.target.answer(Nr.LOAD, 0, 1)
    assert scene.words() == {}
    other = scene.world.attach(ROOT)
    assert other.call(Nr.SHADOWPT_CLOSE) == -errno.EINVAL


def test_the_largest_table_is_emptied_at_once() -> None:
    """Others wait meanwhile: as many steps of the interpreter as for a page."""
    steps = []
    for size in (PAGE_SIZE, MAX_SPT_RANGE):
        table = FaultTable(size)
        for vaddr in range(8, TASK_SIZE, TASK_SIZE // 100):
            table.record(vaddr & -8)
        steps.append(steps_of(table.empty))
        table_fd, _ = fds = table.client_fds()
        assert os.pread(table_fd, size, 0) == bytes(size)
        table.close()
        for fd in fds:
            os.close(fd)
    assert steps[0] == steps[1] < 20
