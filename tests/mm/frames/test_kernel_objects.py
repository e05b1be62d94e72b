"""The account of mappings: all of a machine's together, and what a chain of forks takes of it."""

from __future__ import annotations

import contextlib
import errno

import numpy as np
import pytest

from kerneld.errors import SysError
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.calls.mremap import do_mremap
from kerneld.mm.intervals import Intervals
from kerneld.mm.reclaim.oom import oom_badness
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import do_munmap
from kerneld.mm.space.rmap import AnonVma
from kerneld.mm.space.rmap_walk import rmap_walk
from shared.uapi.mman import Mremap
from shared.uapi.page import PAGE_SIZE
from tests.support.machine import BASE, READ, RW, Machine, errno_of, load, mmap, page, pfn_of, store, vma_at

TO = (Mremap.MAYMOVE | Mremap.FIXED).value


def fill(machine: Machine, left: int) -> None:
    """Let only so many mappings more be possible."""
    objects = machine.frames.kernel_objects
    objects.max_vmas = objects.nr_vmas + left


def test_mappings_of_all_processes_are_counted(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 4, at=BASE)
    do_mprotect(mm, page(1), PAGE_SIZE, READ)
    child = machine.fork(mm)
    assert machine.frames.kernel_objects.nr_vmas == 6
    machine.exit(child)
    machine.exit(mm)
    assert machine.frames.kernel_objects.nr_vmas == 0


def test_no_room_is_enomem_and_changes_nothing(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 4, at=BASE)
    fill(machine, 0)
    assert errno_of(lambda: mmap(mm, 1, at=page(9))) == errno.ENOMEM
    assert errno_of(lambda: do_mprotect(mm, page(1), PAGE_SIZE, READ)) == errno.ENOMEM
    assert errno_of(lambda: do_mremap(mm, BASE, PAGE_SIZE, PAGE_SIZE, TO, page(9), privileged=True)) == errno.ENOMEM
    assert errno_of(lambda: machine.fork(mm)) == errno.ENOMEM
    assert mm.map_count == 1
    fill(machine, 8)
    mmap(mm, 1, at=page(9))


def test_a_fork_leaves_others_an_eighth(machine: Machine, mm: MmStruct) -> None:
    for number in range(7):
        mmap(mm, 1, at=page(2 * number))
    machine.frames.kernel_objects.max_vmas = 14
    assert errno_of(lambda: machine.fork(mm)) == errno.ENOMEM
    machine.frames.kernel_objects.max_vmas = 16
    machine.fork(mm)
    mmap(mm, 1, at=page(20))


USER, NEIGHBOUR, THIRD = 1000, 1001, 1002


def fill_up(mm: MmStruct) -> int:
    """Make mappings until there are no more; returns how many there are then."""
    number = mm.map_count
    with contextlib.suppress(SysError):
        while True:
            number += 1
            mmap(mm, 1, at=page(2 * number))
    return mm.map_count


def test_no_user_has_more_than_is_free_then(machine: Machine) -> None:
    mms = [machine.new_mm() for _ in range(4)]
    machine.frames.kernel_objects.max_vmas = 64
    for mm, uid in zip(mms, (USER, NEIGHBOUR, THIRD, USER), strict=True):
        mm.charge_to(uid, is_superuser=False)
    assert [fill_up(mm) for mm in mms] == [32, 16, 8, 0]
    machine.exit(mms[1])
    assert fill_up(mms[2]) == 16
    assert errno_of(lambda: mmap(mms[0], 1, at=page(999))) == errno.ENOMEM


def test_the_superuser_has_all(machine: Machine, mm: MmStruct) -> None:
    machine.frames.kernel_objects.max_vmas = 64
    assert fill_up(mm) == 64


def test_who_becomes_another_user_takes_its_mappings_along(machine: Machine, mm: MmStruct) -> None:
    objects = machine.frames.kernel_objects
    mmap(mm, 4, at=BASE)
    mm.charge_to(USER, is_superuser=False)
    user = objects.owner_of(USER, is_superuser=False)
    assert (objects.superuser.nr_vmas, user.nr_vmas, mm.is_superusers) == (0, 1, False)
    child = machine.fork(mm)
    assert user.nr_vmas == 2
    child.charge_to(NEIGHBOUR, is_superuser=False)
    assert (user.nr_vmas, child.owner.nr_vmas) == (1, 1)
    machine.exit(child)
    machine.exit(mm)
    assert user.nr_vmas == 0
    assert objects.owner_of(NEIGHBOUR, is_superuser=False).nr_vmas == 0


def test_each_generation_takes_as_much_as_the_first(machine: Machine, mm: MmStruct) -> None:
    """All of them live: a VMA has one anon_vma more a generation, and each of these names one VMA and one successor."""
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"x")
    line = [mm]
    for generation in range(12):
        line.append(machine.fork(line[-1]))
        assert load(line[-1], BASE) == b"x"
        assert len(vma_at(line[-1], BASE).anon_vma_chain) == generation + 2
    machine.check()
    chain = vma_at(line[-1], BASE).anon_vma_chain
    for anon_vma, one in zip(chain, line, strict=True):
        assert anon_vma.ending is vma_at(one, BASE)
    assert all(isinstance(anon_vma.following, AnonVma) for anon_vma in chain[:-1])
    assert [len(anon_vma.vmas) for anon_vma in chain] == list(range(13, 0, -1))
    # Those in the middle go: what comes after them is still found.
    for gone in line[1:-1]:
        machine.exit(gone)
    machine.check()
    assert set(chain[0].vmas) == {vma_at(line[-1], BASE), vma_at(mm, BASE)}


def test_the_mappings_of_one_page_are_found_among_those_of_all_relatives(
    machine: Machine, mm: MmStruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mapping cut into 100, in a parent and 40 children: no search for a page looks at 4,100 mappings."""
    mmap(mm, 100, at=BASE)
    for number in range(0, 100, 2):
        store(mm, page(number), b"x")
        do_mprotect(mm, page(number), PAGE_SIZE, READ)
    children = [machine.fork(mm) for _ in range(40)]
    machine.check()
    pfn = pfn_of(mm, page(50))
    # The children's mappings grow, are cut, and go.
    do_munmap(children[0], page(50), PAGE_SIZE)
    do_mprotect(children[1], page(40), 20 * PAGE_SIZE, READ)
    do_mprotect(children[2], page(50), PAGE_SIZE, RW)
    machine.exit(children.pop())
    machine.check()

    def looked_at_all(*_: object) -> None:
        raise AssertionError("all mappings were looked at")

    with monkeypatch.context() as patch:
        patch.setattr(AnonVma, "vmas", property(looked_at_all))
        patch.setattr(Intervals, "__iter__", looked_at_all)
        found = rmap_walk(machine.frames, np.array([pfn]))
    assert {each.mm for each in found} == {mm, *children[1:]}
    assert len(found) == len(children)


def test_very_many_mappings_count_when_somebody_must_die(machine: Machine, mm: MmStruct) -> None:
    few = oom_badness(mm)
    for number in range(1000):
        mmap(mm, 1, at=page(2 * number))
    assert oom_badness(mm) == few
    mmap(mm, 1, at=page(5000))
    assert oom_badness(mm) == few + 1001 * 512 // PAGE_SIZE
