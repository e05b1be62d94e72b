"""Changes of files that are acted upon in pieces: whose turn it is, and who has to wait."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from kerneld.fs.changes import Changes
from kerneld.fs.file_table import FileTable
from kerneld.fs.inotify import Inotify
from kerneld.mm.check.invariants import check_machine
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.vm_fault import VM_FAULT_SIGBUS
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import exit_mmap
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.fake_inode import FakeInode
from tests.support.file_machine import FileMachine

BASE = 0x10_0000_0000
READ, RW = Prot.READ.value, (Prot.READ | Prot.WRITE).value
SHARED, FIXED = Map.SHARED.value, Map.FIXED.value


def noted(*inodes: FakeInode, slice_seconds: float | None = 0.0) -> Changes:
    changes = Changes()
    changes.slice_seconds = slice_seconds
    for inode in inodes:
        changes.note(cast(Any, inode))
    return changes


class TestTurns:
    def test_one_piece_of_one_file_a_turn_round_robin(self) -> None:
        done: list[str] = []
        changes = noted(FakeInode("long", 4, done), FakeInode("short", 1, done), FakeInode("same", 0, done))
        for _turn in range(3):
            changes.go_on()
        assert done == ["long", "short", "long"]
        while changes.queue:
            changes.go_on()
        assert done == ["long", "short", "long", "long", "long"]

    def test_without_a_slice_all_is_done_at_once(self) -> None:
        done: list[str] = []
        changes = noted(FakeInode("a", 3, done), FakeInode("b", 2, done), slice_seconds=None)
        changes.go_on()
        assert (len(done), changes.queue) == (5, {})

    def test_who_maps_the_file_waits_until_it_is_done(self) -> None:
        one, both, nobody = (cast(MmStruct, object()) for _ in range(3))
        done: list[str] = []
        first, second = FakeInode("first", 1, done, (one, both, both)), FakeInode("second", 2, done, (both,))
        changes = noted(first, second)
        waits = []
        while changes.queue:
            changes.go_on()
            waits.append((changes.holds(one), changes.holds(both), changes.holds(nobody)))
        assert waits[0] == (True, True, False)
        assert waits[-2:] == [(False, True, False), (False, False, False)]
        assert not changes.holds(None)

    def test_what_changes_again_has_another_turn_when_others_have_had_theirs(self) -> None:
        mm = cast(MmStruct, object())
        done: list[str] = []
        inode = FakeInode("again", 1, done, (mm,))
        changes = noted(inode)
        changes.go_on()
        changes.note(cast(Any, inode))
        changes.go_on()
        assert (list(changes.queue.values()), changes.holds(mm)) == ([None], False)
        changes.go_on()
        assert (done, changes.holds(mm)) == (["again", "again"], True)
        changes.go_on()
        assert (changes.queue, changes.holds(mm)) == ({}, False)

    def test_what_is_closed_meanwhile_holds_nobody(self) -> None:
        mm = cast(MmStruct, object())
        inode = FakeInode("gone", 9, [], (mm,))
        changes = noted(inode)
        changes.go_on()
        assert changes.holds(mm)
        changes.forget(cast(Any, inode))
        assert (changes.queue, changes.holds(mm), inode.is_closed) == ({}, False, True)
        changes.forget(cast(Any, inode))


class TestAFileThatIsCut:
    """With a piece a turn: nothing is lost or found between any two."""

    @pytest.fixture
    def inotify(self) -> Iterator[Inotify]:
        inotify = Inotify()
        yield inotify
        inotify.close()

    @pytest.fixture
    def watched(self, machine: FileMachine, inotify: Inotify, monkeypatch: pytest.MonkeyPatch) -> FileMachine:
        monkeypatch.setattr("kerneld.mm.space.pace._PIECE_SECONDS", 0.0)
        machine.files.close()
        machine.files = FileTable(machine.frames, inotify)
        machine.files.changes.slice_seconds = 0.0
        return machine

    def mapped(self, watched: FileMachine, fd: int, count: int) -> MmStruct:
        mm = watched.new_mm()
        for number in range(count):
            addr = BASE + 4 * number * PAGE_SIZE
            watched.map_fd(mm, fd, 2 * PAGE_SIZE, addr=addr, prot=RW, flags=SHARED | FIXED)
            watched.store(mm, addr + PAGE_SIZE, b"x")
            watched.store(mm, addr, b"x")
        return mm

    def finish(self, watched: FileMachine) -> int:
        turns = 0
        while watched.files.changes.queue:
            watched.files.take_changes()
            check_machine(watched.frames, watched.mms)
            turns += 1
        return turns

    def test_in_as_many_turns_as_it_takes(self, watched: FileMachine) -> None:
        fd = os.memfd_create("cut")
        os.ftruncate(fd, 2 * PAGE_SIZE)
        mm = self.mapped(watched, fd, 5)
        (mapping,) = {vma.file.mapping for vma in mm.vmas if vma.file is not None}
        os.ftruncate(fd, PAGE_SIZE)
        watched.files.take_changes()
        # Longer again, before all is unmapped: not as far as we know.
        os.ftruncate(fd, 2 * PAGE_SIZE)
        assert mapping.size_bytes() == PAGE_SIZE
        assert watched.files.changes.holds(mm)
        assert 1 < mm.rss.resident_pages < 10
        assert self.finish(watched) >= 5
        assert (mm.rss.resident_pages, mapping.size_bytes()) == (5, 2 * PAGE_SIZE)
        assert not watched.files.changes.holds(mm)
        os.close(fd)

    def test_by_a_call_of_kerneld_in_as_many_pieces_too(self, watched: FileMachine) -> None:
        fd = os.memfd_create("cut")
        os.ftruncate(fd, 2 * PAGE_SIZE)
        mm = self.mapped(watched, fd, 5)
        left = [mm.rss.resident_pages]
        for _ in watched.files.host_truncate(fd, PAGE_SIZE):
            assert watched.files.changes.holds(mm)
            check_machine(watched.frames, watched.mms)
            left.append(mm.rss.resident_pages)
        assert (left[0], left[-1]) == (10, 5)
        assert max(before - after for before, after in itertools.pairwise(left)) == 1
        assert not watched.files.changes.holds(mm)
        os.close(fd)

    def test_who_comes_while_it_waits_for_its_turn_finds_it_as_short(self, watched: FileMachine) -> None:
        """Two files: the second is not begun with, and is longer again, when somebody maps it anew."""
        fds = [os.memfd_create(name) for name in ("first", "second")]
        for fd in fds:
            os.ftruncate(fd, 2 * PAGE_SIZE)
            self.mapped(watched, fd, 2)
        for fd in fds:
            os.ftruncate(fd, 0)
        watched.files.take_changes()
        newcomers = [watched.new_mm() for _ in fds]
        for mm, fd in zip(newcomers, fds, strict=True):
            os.ftruncate(fd, 2 * PAGE_SIZE)
            watched.map_fd(mm, fd, 2 * PAGE_SIZE, addr=BASE, flags=SHARED | FIXED)
            assert not watched.files.changes.holds(mm)
            vma = mm.vmas.lookup(BASE)
            assert vma is not None
            assert handle_mm_fault(mm, vma, BASE, False) == VM_FAULT_SIGBUS
        self.finish(watched)
        for mm in newcomers:
            assert watched.load(mm, BASE, 1) == b"\0"
        for fd in fds:
            os.close(fd)

    def test_whose_mappings_end_meanwhile(self, watched: FileMachine) -> None:
        fd = os.memfd_create("cut")
        os.ftruncate(fd, 2 * PAGE_SIZE)
        dying, other = self.mapped(watched, fd, 3), self.mapped(watched, fd, 3)
        os.ftruncate(fd, 0)
        watched.files.take_changes()
        watched.mms.remove(dying)
        exit_mmap(dying)
        assert watched.files.changes.holds(other)
        self.finish(watched)
        assert other.rss.resident_pages == 0
        os.ftruncate(fd, PAGE_SIZE)
        os.ftruncate(fd, 0)
        watched.files.take_changes()
        watched.mms.remove(other)
        exit_mmap(other)
        assert watched.files.changes.queue == {}
        os.close(fd)
