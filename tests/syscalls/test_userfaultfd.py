"""userfaultfd(2): which requests wait, what ends the wait, and who may ask for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from kerneld.mm.space import pace
from kerneld.task.capability import CAP_SYS_PTRACE
from shared.uapi.mman import Madv
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Access, Nr
from shared.uapi.userfaultfd import (
    API,
    COPY,
    RANGE,
    REGISTER,
    UFFD_API,
    UFFD_MSG_BYTES,
    UFFD_USER_MODE_ONLY,
    ZEROPAGE,
    RegisterMode,
    Uffdio,
)
from tests.support.pieces import Pieces
from tests.support.programs import ANON, READ, ROOT, RW, SHARED_ANON, Program, World, iovecs, page

PAGES = 4


class Watched:
    """A program whose first pages a userfaultfd of its own watches."""

    def __init__(self, program: Program, flags: int = 0, memory: int = ANON) -> None:
        self.program = program
        program.mmap(PAGES, RW, memory, at=page(0))
        program.mmap(PAGES, at=page(16))
        program.store(page(16), b"given" * 100)
        (self.fd,) = program.answer(Nr.USERFAULTFD, os.O_NONBLOCK | flags).fds
        assert self.ioctl(Uffdio.API, API.pack(UFFD_API, 0, 0)) == 0
        assert self.ioctl(Uffdio.REGISTER, REGISTER.pack(page(0), PAGES * PAGE_SIZE, RegisterMode.MISSING, 0)) == 0

    def ioctl(self, command: int, record: bytes) -> int:
        return self.program.call(Nr.IOCTL, self.fd, command, 0, data=record, fds=[self.fd])

    def copy(self, number: int, count: int = 1) -> int:
        return self.ioctl(Uffdio.COPY, COPY.pack(page(number), page(16), count * PAGE_SIZE, 0, 0))

    def messages(self) -> list[int]:
        """Return the pages of the messages that can be read now."""
        try:
            data = os.read(self.fd, 64 * UFFD_MSG_BYTES)
        except BlockingIOError:
            return []
        addresses = [int.from_bytes(data[at + 16 : at + 24], "little") for at in range(0, len(data), UFFD_MSG_BYTES)]
        return [(address - page(0)) // PAGE_SIZE for address in addresses]

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def pieces() -> Pieces:
    return Pieces()


@pytest.fixture
def watched(root: Program) -> Iterator[Watched]:
    watched = Watched(root)
    yield watched
    watched.close()


REQUESTS = {
    "load": (Nr.LOAD, (page(1), 4), b""),
    "store": (Nr.STORE, (page(1), 4), b"mine"),
    "touch": (Nr.TOUCH, (page(0), 2 * PAGE_SIZE, Access.READ), b""),
    "mlock": (Nr.MLOCK, (page(1), PAGE_SIZE), b""),
    "populate": (Nr.MADVISE, (page(1), PAGE_SIZE, Madv.POPULATE_READ), b""),
    "policy": (Nr.GET_MEMPOLICY, (1, 0, 0, page(1), 3), b""),
}


@pytest.mark.parametrize("memory", [ANON, SHARED_ANON])
@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_waits_for_its_page(root: Program, name: str, memory: int, pieces: Pieces) -> None:
    """It goes on when the page has come. Other threads of the process run meanwhile."""
    watched = Watched(root, memory=memory)
    nr, args, data = REQUESTS[name]
    if name == "touch":
        assert watched.copy(0) == 0
    waiter = Program(root.kernel, root.thread)
    faults = root.process.min_flt, root.process.maj_flt
    assert pieces.begin(waiter, nr, *args, data=data) is None
    assert watched.messages() == [1]
    assert watched.copy(1) == 0
    while (answer := pieces.go_on(waiter)) is None:
        pass
    assert answer.ret == {"load": 4, "store": 4, "touch": 2}.get(name, 0)
    if nr in (Nr.LOAD, Nr.STORE):
        # Memory that has an anon_vma, or a file, is faulted in with the lock of its VMA.
        major = memory == ANON
        assert (root.process.min_flt, root.process.maj_flt) == (faults[0] + (not major), faults[1] + major)
    assert root.load(page(1), 5) == (b"minen" if name == "store" else b"given")
    watched.close()


def test_only_the_first_wait_is_over(watched: Watched, root: Program, pieces: Pieces) -> None:
    """Pages of a long request are asked for one after the other; a wake without a page asks again."""
    nr, length = Nr.TOUCH, PAGES * PAGE_SIZE
    assert pieces.begin(root, nr, page(0), length, Access.WRITE) is None
    assert watched.messages() == [0]
    assert watched.ioctl(Uffdio.WAKE, RANGE.pack(page(0), PAGE_SIZE)) == 0
    assert pieces.go_on(root) is None
    assert watched.messages() == [0]
    assert watched.copy(0, 3) == 0
    assert pieces.go_on(root) is None
    assert watched.messages() == [3]
    assert watched.ioctl(Uffdio.ZEROPAGE, ZEROPAGE.pack(page(3), PAGE_SIZE, 0, 0)) == 0
    answer = pieces.go_on(root)
    assert answer is not None
    assert answer.ret == PAGES


def test_who_gives_up_is_forgotten(watched: Watched, root: Program, pieces: Pieces) -> None:
    """A message that nobody has read goes with the wait."""
    assert pieces.begin(root, Nr.LOAD, page(1), 1) is None
    pieces.give_up(root)
    assert watched.messages() == []
    assert pieces.begin(root, Nr.LOAD, page(2), 1) is None
    assert watched.messages() == [2]
    pieces.give_up(root)
    assert watched.copy(2) == 0


def test_the_last_close_lets_all_go_on(watched: Watched, root: Program, pieces: Pieces) -> None:
    """The memory is as any other then."""
    pipe = next(iter(root.kernel.userfaultfds._open.values())).pipe.fd
    assert pieces.begin(root, Nr.LOAD, page(1), 1) is None
    root.kernel.reader_gone(pipe)
    answer = pieces.go_on(root)
    assert answer is not None
    assert answer.data == b"\0"
    assert [vma.userfaultfd_ctx for vma in root.mm.vmas] == [None] * len(root.mm.vmas)
    assert watched.ioctl(Uffdio.WAKE, RANGE.pack(page(0), PAGE_SIZE)) == -errno.ENOTTY


class Many:
    """A program of many mappings, one in two read-only, and its userfaultfd; pieces are over at once."""

    COUNT = 12
    RANGE = RANGE.pack(page(32), COUNT * PAGE_SIZE)

    def __init__(self, watched: Watched, pieces: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
        self.program, self.fd, self.pieces = watched.program, watched.fd, pieces
        self.pipe = next(iter(self.program.kernel.userfaultfds._open.values())).pipe.fd
        for number in range(self.COUNT):
            self.program.mmap(1, RW if number % 2 else READ, at=page(32 + number))

    def begin(self, command: int, record: bytes, by: Program | None = None) -> None:
        self.passed = os.dup(self.fd)
        who = by or self.program
        assert self.pieces.begin(who, Nr.IOCTL, 0, command, 0, data=record, fds=[self.passed]) is None

    def register(self, by: Program | None = None) -> None:
        self.begin(Uffdio.REGISTER, self.RANGE + REGISTER.pack(0, 0, RegisterMode.MISSING, 0)[len(self.RANGE) :], by)

    def finish(self, by: Program | None = None) -> tuple[int, int]:
        """Return what the request returns, and how many pieces more it has taken."""
        count = 1
        while (answer := self.pieces.go_on(by or self.program)) is None:
            count += 1
        return answer.ret, count

    def is_held(self) -> bool:
        return self.program.mm in self.program.kernel.table.mmap_locks.holders

    @property
    def nr_watched(self) -> int:
        return sum(vma.userfaultfd_ctx is not None for vma in self.program.mm.vmas.overlapping(page(32), page(64)))


@pytest.fixture
def many(watched: Watched, pieces: Pieces, monkeypatch: pytest.MonkeyPatch) -> Many:
    return Many(watched, pieces, monkeypatch)


def test_many_mappings_are_registered_and_unregistered_in_pieces(many: Many) -> None:
    """The threads of the process wait meanwhile, as for mmap_lock."""
    many.register()
    assert many.is_held()
    ret, count = many.finish()
    assert (ret, many.nr_watched, many.is_held()) == (0, Many.COUNT, False)
    assert count >= Many.COUNT
    many.begin(Uffdio.UNREGISTER, Many.RANGE)
    assert many.is_held()
    ret, count = many.finish()
    assert (ret, many.nr_watched, many.is_held()) == (0, 0, False)
    assert count >= Many.COUNT


def test_many_mappings_are_released_in_pieces(many: Many) -> None:
    """Whoever held the address space before does what it does first."""
    kernel = many.program.kernel
    many.register()
    kernel.reader_gone(many.pipe)
    assert many.finish()[0] == 0
    pieces = 0
    while kernel.userfaultfds.releasing:
        kernel.release_userfaultfds()
        pieces += many.is_held()
    assert (many.nr_watched, many.is_held()) == (0, False)
    assert pieces >= Many.COUNT


def test_who_meets_a_mapping_that_is_not_released_yet_goes_on(many: Many) -> None:
    """Nobody could give the page any more. Source: Linux v6.8 fs/userfaultfd.c:handle_userfault(), `ctx->released`."""
    kernel, last = many.program.kernel, page(32 + many.COUNT - 1)
    many.register()
    many.finish()
    kernel.reader_gone(many.pipe)
    vma = many.program.mm.vmas.lookup(last)
    assert vma is not None
    assert vma.userfaultfd_ctx is not None
    answer = many.pieces.begin(many.program, Nr.LOAD, last, 1)
    assert answer is not None
    assert answer.data == b"\0"
    while kernel.userfaultfds.releasing:
        kernel.release_userfaultfds()
    assert many.nr_watched == 0


@pytest.mark.parametrize("how", ["registered", "released"])
def test_a_process_ends_while_many_mappings_are(many: Many, how: str) -> None:
    kernel = many.program.kernel
    many.register()
    if how == "released":
        many.finish()
        kernel.reader_gone(many.pipe)
    kernel.process_died(many.program.process)
    assert not many.pieces.busy
    if how == "registered":
        os.close(many.passed)  # The server closes it with the batch.
    while kernel.userfaultfds.releasing:
        kernel.release_userfaultfds()
    assert not kernel.table.mmap_locks.holders


def test_who_registers_waits_for_another_who_does(many: Many, world: World) -> None:
    """The other is another process, which has the descriptor too."""
    other = world.attach(ROOT)
    many.register(by=other)
    holders = world.kernel.table.mmap_locks.holders
    assert holders == {many.program.mm: other.thread}
    many.begin(Uffdio.UNREGISTER, many.RANGE)
    for _ in range(3):
        assert many.pieces.go_on(many.program) is None
        assert holders == {many.program.mm: other.thread}
    assert many.finish(by=other)[0] == 0
    assert many.nr_watched == many.COUNT
    assert many.finish()[0] == 0
    assert (many.nr_watched, holders) == (0, {})


@pytest.mark.parametrize("is_waiting", [False, True])
def test_a_process_ends_while_another_registers_its_mappings(many: Many, world: World, *, is_waiting: bool) -> None:
    other, third = world.attach(ROOT), world.attach(ROOT)
    if is_waiting:
        many.register(by=third)
    many.register(by=other)
    world.kernel.process_died(many.program.process)
    if is_waiting:
        assert many.finish(by=third)[0] == -errno.ENOMEM
    assert many.finish(by=other)[0] == -errno.ENOMEM
    assert not world.kernel.table.mmap_locks.holders


def test_memory_of_another_process(world: World, watched: Watched, root: Program, pieces: Pieces) -> None:
    """process_vm_readv waits in the middle, and copies all of it."""
    other = world.attach(ROOT)
    other.mmap(PAGES, at=page(0))
    assert watched.copy(0) == 0
    vectors = iovecs((page(0), 2 * PAGE_SIZE)) * 2
    assert pieces.begin(other, Nr.PROCESS_VM_READV, root.pid, 0, 1, 0, 1, 0, data=vectors) is None
    assert watched.messages() == [1]
    assert watched.copy(1) == 0
    while (answer := pieces.go_on(other)) is None:
        pass
    assert answer.ret == 2 * PAGE_SIZE
    assert other.load(page(1), 5) == b"given"


@pytest.mark.parametrize(("first", "ret"), [(1, -errno.ESRCH), (0, -errno.EAGAIN)])
def test_memory_of_a_process_that_ends_meanwhile(
    world: World, watched: Watched, pieces: Pieces, monkeypatch: pytest.MonkeyPatch, first: int, ret: int
) -> None:
    """Another process copies to it up to its own page 1, which it awaits. Nothing more comes to what is left then."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    dying, process, other = world.kernel.dying, watched.program.process, world.attach(ROOT)
    giver = Watched(other)
    assert giver.copy(0) == 0
    watched.program.mmap(1, READ, at=page(-1))
    record = COPY.pack(page(first), page(first), (2 - first) * PAGE_SIZE, 0, 0)
    answer = pieces.begin(other, Nr.IOCTL, 0, Uffdio.COPY, 0, data=record, fds=[os.dup(watched.fd)])
    while not giver.messages():
        answer = pieces.go_on(other)
    assert answer is None
    dying.slice_seconds = 0.0
    world.kernel.process_died(process)
    assert [mm.vmas.lookup(page(0)) is not None for mm in dying.mms] == [True]
    assert giver.copy(1) == 0
    while (answer := pieces.go_on(other)) is None:
        pass
    assert answer.ret == ret
    dying.slice_seconds = None
    dying.finish()
    giver.close()


@pytest.mark.parametrize("name", ["mlock", "populate", "policy"])
def test_the_kernels_own_accesses_fail_in_user_mode_only(root: Program, name: str, pieces: Pieces) -> None:
    """The processor's accesses wait as ever."""
    watched = Watched(root, UFFD_USER_MODE_ONLY)
    nr, args, data = REQUESTS[name]
    assert root.call(nr, *args, data=data) == -(errno.ENOMEM if name == "mlock" else errno.EFAULT)
    assert pieces.begin(root, Nr.LOAD, page(1), 1) is None
    pieces.give_up(root)
    watched.close()


def test_who_may(world: World) -> None:
    """Without CAP_SYS_PTRACE only for accesses in user mode, unless the setting allows it."""
    program = world.attach()
    assert not program.process.cred.capable(CAP_SYS_PTRACE)
    assert program.call(Nr.USERFAULTFD, 0) == -errno.EPERM
    answers = [program.answer(Nr.USERFAULTFD, UFFD_USER_MODE_ONLY)]
    world.kernel.sysctl.unprivileged_userfaultfd = 1
    answers.append(program.answer(Nr.USERFAULTFD, 0))
    assert program.call(Nr.USERFAULTFD, 1 << 30) == -errno.EINVAL
    for answer in answers:
        assert answer.ret == 0
        os.close(answer.fds[0])
