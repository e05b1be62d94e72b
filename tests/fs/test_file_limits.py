"""Whose account a file is on, and who is told EMFILE."""

from __future__ import annotations

import errno
import os

import pytest

from kerneld.fs.file_limits import FileRules
from kerneld.fs.file_table import FileTable
from kerneld.mm.files.file import File
from kerneld.task.task import Cred, Process
from tests.support.errors import fails
from tests.support.file_machine import ROOT, USER, FileMachine, map_file, unmap

NEIGHBOUR = Cred(1001, 1001, superuser=False)


@pytest.fixture
def files(machine: FileMachine) -> FileTable:
    """Three files for a process, five for a user."""
    machine.files.close()
    machine.files = FileTable(machine.frames, rules=FileRules(3, 5))
    return machine.files


def process(machine: FileMachine, pid: int, cred: Cred) -> Process:
    return Process(pid, cred, machine.new_mm(), "test", 0.0)


def open_new(files: FileTable, owner: Process) -> File:
    fd = os.memfd_create("one of many")
    os.ftruncate(fd, 4096)
    return files.open_fd(fd, owner)


def map_new(machine: FileMachine, owner: Process) -> int:
    file = open_new(machine.files, owner)
    addr = map_file(owner.live_mm, file)
    machine.files.put_unused(file)
    return addr


def test_a_process_has_so_many(machine: FileMachine, files: FileTable) -> None:
    greedy, other = process(machine, 1, ROOT), process(machine, 2, ROOT)
    first, *_ = [map_new(machine, greedy) for _ in range(3)]
    before = len(os.listdir("/proc/self/fd"))
    assert fails(errno.EMFILE, map_new, machine, greedy)
    assert len(os.listdir("/proc/self/fd")) == before
    map_new(machine, other)
    unmap(greedy.live_mm, first)
    map_new(machine, greedy)
    assert fails(errno.EMFILE, map_new, machine, greedy)


def test_processes_of_a_user_add_up(machine: FileMachine, files: FileTable) -> None:
    one, two, other = process(machine, 1, USER), process(machine, 2, USER), process(machine, 3, NEIGHBOUR)
    for owner in (one, one, one, two, two):
        map_new(machine, owner)
    assert fails(errno.EMFILE, map_new, machine, two)
    for _ in range(3):
        map_new(machine, other)


def test_the_superusers_do_not(machine: FileMachine, files: FileTable) -> None:
    for pid in (1, 2, 3):
        owner = process(machine, pid, ROOT)
        assert len({map_new(machine, owner) for _ in range(3)}) == 3


def test_one_open_file_is_paid_for_once(machine: FileMachine, files: FileTable) -> None:
    owner = process(machine, 1, USER)
    fd = os.memfd_create("one")
    os.ftruncate(fd, 4096)
    for _ in range(10):
        file = files.open_fd(os.dup(fd), owner)
        map_file(owner.live_mm, file)
        files.put_unused(file)
    os.close(fd)
    assert len(files.accounts) == 1


def test_who_had_changed_its_user_is_paid_back_as_it_paid(machine: FileMachine, files: FileTable) -> None:
    owner = process(machine, 1, ROOT)
    addr = map_new(machine, owner)
    owner.cred = USER
    unmap(owner.live_mm, addr)
    assert len(files.accounts) == 0


def test_the_daemons_own_limit_is_shared_in_eight(machine: FileMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (16, 16))
    files = FileTable(machine.frames)
    monkeypatch.undo()
    owner = process(machine, 1, ROOT)
    held = [open_new(files, owner) for _ in range(2)]
    assert fails(errno.EMFILE, open_new, files, owner)
    for file in held:
        files.put_unused(file)
    files.close()
