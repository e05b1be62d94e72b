"""Segments of System V shared memory: who may use them, and how long they live."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from kerneld.errors import SysError
from kerneld.mm.calls.remap_file_pages import held
from kerneld.mm.space.mm import MmStruct
from kerneld.task.capability import ALL_CAPS, CAP_IPC_LOCK, CAP_IPC_OWNER, CAP_SYS_ADMIN
from kerneld.task.shm import Caller, ShmSegments, check_owner, check_rights, set_locked
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shm import IPC_CREAT, IPC_PRIVATE, SHM_DEST, SHM_HUGETLB, SHM_LOCKED
from tests.support.machine import Machine, checked, errno_of
from tests.support.steps import steps_of

OWNER, MATE, OTHER = Caller(10, 20, 1, 0), Caller(11, 20, 2, 0), Caller(12, 22, 3, 0)
KEY = 0x1234


@pytest.fixture
def mm() -> Iterator[MmStruct]:
    for machine in checked(Machine()):
        yield machine.new_mm()


@pytest.fixture
def segments(mm: MmStruct) -> Iterator[ShmSegments]:
    segments = ShmSegments(mm.frames)
    yield segments
    for segment in segments:
        segments.remove(segment)


def test_indexes_are_used_in_turn(segments: ShmSegments, mm: MmStruct) -> None:
    """Linux v6.8 ipc/util.c:ipc_idr_alloc(): 64 in turn, then from the first on, with the next sequence number."""

    def make() -> int:
        return segments.shmget(OWNER, mm, IPC_PRIVATE, PAGE_SIZE, 0o600)

    first = make()
    for index in range(1, 64):
        number = make()
        assert number == first + index
        segments.remove(segments.get(number))
    assert make() == first + (1 << 15) + 1


def test_an_id_may_be_asked_for(segments: ShmSegments, mm: MmStruct) -> None:
    ids: list[int] = []
    for wanted in (0x8007, 0x8007, 7, 0x7FFF, 0x7FFF):
        segments.next_id = wanted
        ids.append(segments.shmget(OWNER, mm, IPC_PRIVATE, PAGE_SIZE, 0o600) if len(ids) < 4 else 0)
        segments.next_id = -1 if len(ids) < 5 else segments.next_id
    assert ids == [0x8007, 0x8008, 9, 0x7FFF, 0]
    assert errno_of(lambda: segments.shmget(OWNER, mm, IPC_PRIVATE, PAGE_SIZE, 0o600)) == errno.ENOSPC
    assert segments.next_id == -1


def test_limits(segments: ShmSegments, mm: MmStruct) -> None:
    def make(pages: int) -> int:
        return segments.shmget(OWNER, mm, IPC_PRIVATE, pages * PAGE_SIZE, 0o600)

    segments.ctlmax = 2 * PAGE_SIZE
    assert errno_of(lambda: make(3)) == errno.EINVAL
    make(2)
    segments.ctlall = 3
    assert errno_of(lambda: make(2)) == errno.ENOSPC
    make(1)
    segments.ctlall, segments.ctlmni = 9, 2
    assert errno_of(lambda: make(1)) == errno.ENOSPC


def test_rights_are_of_the_owner_the_group_and_others(segments: ShmSegments, mm: MmStruct) -> None:
    segment = segments.get(segments.shmget(OWNER, mm, KEY, PAGE_SIZE, IPC_CREAT | 0o640))
    check_rights(segment, OWNER, 0o666)
    check_rights(segment, MATE, 0o444)
    assert errno_of(lambda: check_rights(segment, MATE, 0o222)) == errno.EACCES
    assert errno_of(lambda: check_rights(segment, OTHER, 0o444)) == errno.EACCES
    check_rights(segment, OTHER._replace(caps=1 << CAP_IPC_OWNER), 0o666)
    assert errno_of(lambda: segments.shmget(OTHER, mm, KEY, 0, 0o400)) == errno.EACCES
    assert segments.shmget(OTHER, mm, KEY, 0, 0) == segment.id


def test_only_the_owner_changes_it(segments: ShmSegments, mm: MmStruct) -> None:
    segment = segments.get(segments.shmget(OWNER, mm, IPC_PRIVATE, PAGE_SIZE, 0o777))
    check_owner(segment, OWNER)
    assert errno_of(lambda: check_owner(segment, MATE)) == errno.EPERM
    check_owner(segment, OTHER._replace(caps=1 << CAP_SYS_ADMIN))
    assert errno_of(lambda: set_locked(segment, MATE, locked=True, may_lock=True)) == errno.EPERM
    assert errno_of(lambda: set_locked(segment, OWNER, locked=True, may_lock=False)) == errno.EPERM
    set_locked(segment, OWNER, locked=True, may_lock=True)
    assert segment.mode & SHM_LOCKED
    set_locked(segment, OTHER._replace(caps=ALL_CAPS), locked=False, may_lock=False)
    assert not segment.mode & SHM_LOCKED


def test_an_index_that_is_used_again_has_another_id(segments: ShmSegments, mm: MmStruct) -> None:
    first = segments.shmget(OWNER, mm, KEY, PAGE_SIZE, IPC_CREAT)
    segments.remove(segments.get(first))
    assert errno_of(lambda: segments.get(first)) == errno.EINVAL
    for _ in range(63):
        segments.remove(segments.get(segments.shmget(OWNER, mm, KEY, PAGE_SIZE, IPC_CREAT)))
    second = segments.shmget(OWNER, mm, KEY, PAGE_SIZE, IPC_CREAT)
    assert second != first
    assert errno_of(lambda: segments.get(first)) == errno.EIDRM
    assert segments.at(first).id == second


def test_a_removed_one_gives_its_memory_back(segments: ShmSegments, mm: MmStruct) -> None:
    promised = mm.frames.committed_as
    segment = segments.get(segments.shmget(OWNER, mm, KEY, 3 * PAGE_SIZE, IPC_CREAT))
    assert mm.frames.committed_as == promised + 3
    segments.remove(segment)
    assert segment.mode & SHM_DEST
    assert mm.frames.committed_as == promised
    assert not list(segments)


@pytest.mark.parametrize("size", [0, (1 << 64) - 1])
def test_bad_sizes(segments: ShmSegments, mm: MmStruct, size: int) -> None:
    assert errno_of(lambda: segments.shmget(OWNER, mm, IPC_PRIVATE, size, 0o600)) == errno.EINVAL


def test_huge_pages_need_a_right_and_find_an_empty_pool(segments: ShmSegments, mm: MmStruct) -> None:
    for caller, error in ((OWNER, errno.EPERM), (OWNER._replace(caps=1 << CAP_IPC_LOCK), errno.ENOMEM)):
        with pytest.raises(SysError) as raised:
            segments.shmget(caller, mm, IPC_PRIVATE, PAGE_SIZE, SHM_HUGETLB | 0o600)
        assert raised.value.errno == error


def test_a_new_segment_takes_as_long_beside_many(segments: ShmSegments, mm: MmStruct) -> None:
    """As many steps of the interpreter: Linux keeps the sum of all pages, and finds keys by their hash."""

    def make() -> None:
        segments.shmget(OWNER, mm, IPC_PRIVATE, PAGE_SIZE, 0o600)
        segments.shmget(OWNER, mm, KEY, PAGE_SIZE, IPC_CREAT)

    make()
    few = steps_of(make)
    for key in range(500):
        segments.shmget(OWNER, mm, KEY + key, PAGE_SIZE, IPC_CREAT)
    assert steps_of(make) <= few + 5


def test_a_held_segment_that_is_removed_stays_until_it_is_let_go(segments: ShmSegments, mm: MmStruct) -> None:
    """An attach goes on in pieces; meanwhile another process removes the segment. Linux: do_shmat(), shm_nattch."""
    segment = segments.get(segments.shmget(OWNER, mm, KEY, PAGE_SIZE, IPC_CREAT))
    promised = mm.frames.committed_as
    with held(segment.mapping):
        segments.remove(segment)
        assert list(segments) == [segment]
        assert mm.frames.committed_as == promised
        assert errno_of(lambda: segments.shmget(OWNER, mm, KEY, 0, 0)) == errno.ENOENT
    assert not list(segments)
    assert mm.frames.committed_as == promised - 1
