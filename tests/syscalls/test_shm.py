"""System V shared memory by its calls: what becomes of a segment that was removed while it is attached."""

from __future__ import annotations

import errno

import pytest

from shared.uapi.page import PAGE_SIZE
from shared.uapi.shm import IPC_PRIVATE, IPC_RMID, IPC_STAT, SHM_REMAP
from shared.uapi.syscalls import Nr
from tests.support.programs import BASE, Program, page

PAGES = 2


@pytest.fixture
def segment(program: Program) -> int:
    """A segment that is attached at BASE."""
    number = program.call(Nr.SHMGET, IPC_PRIVATE, PAGES * PAGE_SIZE, 0o600)
    assert program.call(Nr.SHMAT, number, BASE, 0) == BASE
    program.store(page(1), b"x")
    return number


def remap(program: Program, first: int, pages: int, pgoff: int) -> int:
    return program.call(Nr.REMAP_FILE_PAGES, page(first), pages * PAGE_SIZE, 0, pgoff, 0)


def test_pages_in_another_order(program: Program, segment: int) -> None:
    assert remap(program, 0, 1, 1) == 0
    assert program.load(BASE) == b"x"
    assert program.call(Nr.SHMCTL, segment, IPC_RMID) == 0


def test_the_last_pages_of_a_removed_one_do_not_come_back(program: Program, segment: int) -> None:
    """The old mapping goes first, and with it the segment. Source: Linux v6.8 ipc/shm.c:shm_mmap()."""
    assert program.call(Nr.SHMCTL, segment, IPC_RMID) == 0
    assert remap(program, 0, 1, 1) == 0
    assert program.call(Nr.SHMCTL, segment, IPC_STAT) == 0
    assert program.call(Nr.MUNMAP, BASE, PAGE_SIZE) == 0
    assert remap(program, 1, 1, 0) == -errno.EINVAL
    assert program.mm.vmas.find_intersection(BASE, page(PAGES)) is None
    assert program.call(Nr.SHMCTL, segment, IPC_STAT) == -errno.EINVAL


def test_an_attach_in_place_of_the_last_one(program: Program, segment: int) -> None:
    """An attach counts before it is mapped. Source: Linux v6.8 ipc/shm.c:do_shmat()."""
    assert program.call(Nr.SHMCTL, segment, IPC_RMID) == 0
    assert program.call(Nr.SHMAT, segment, BASE, SHM_REMAP) == BASE
    assert program.load(page(1)) == b"x"


def test_a_fault_maps_one_page(program: Program, segment: int) -> None:
    """There is no fault-around. Source: Linux v6.8 ipc/shm.c:shm_vm_ops has no map_pages."""
    program.store(BASE, b"x")
    assert program.call(Nr.SHMDT, BASE) == 0
    assert program.call(Nr.SHMAT, segment, BASE, 0) == BASE
    before = program.mm.rss.resident_pages
    assert program.load(BASE) == b"x"
    assert program.mm.rss.resident_pages == before + 1
    assert program.load(page(1)) == b"x"
    assert program.mm.rss.resident_pages == before + PAGES
    assert program.call(Nr.SHMCTL, segment, IPC_RMID) == 0
