"""Descriptors become Files: identity, rights, life and death, on real files of the host."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import threading
from pathlib import Path

import pytest

from kerneld.errors import SysError
from kerneld.fs import file_table
from kerneld.fs import inode as inode_module
from kerneld.fs.mmap_ops import MmapOps
from kerneld.mm.calls.fork import dup_mmap
from kerneld.mm.space.writeback import do_msync
from kerneld.task.task import Cred
from shared.uapi.mman import Map, Ms, Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.errors import fails
from tests.support.file_machine import ROOT, RW, TEXT, USER, FileMachine, map_file, open_descriptors, unmap


def test_two_descriptors_of_one_open_file_are_one_file(machine: FileMachine, fd: int) -> None:
    file = machine.files.open_fd(os.dup(fd))
    assert machine.files.open_fd(os.dup(fd)) is file
    machine.files.put_unused(file)
    assert len(machine.files) == 1
    machine.files.put_unused(file)
    assert len(machine.files) == 0


def test_a_file_in_use_is_known_by_the_number_of_another_descriptor(
    machine: FileMachine, fd: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tid, same, other = threading.get_native_id(), os.dup(fd), os.open(path, os.O_RDWR)
    file = machine.files.open_fd(os.dup(fd))
    assert machine.files.hold_same(file, same, tid)
    machine.files.put_unused(file)
    assert not machine.files.hold_same(file, other, tid)
    os.close(other)
    assert not machine.files.hold_same(file, other, tid)
    with monkeypatch.context() as patch:
        patch.setattr(file_table, "find_same_description", lambda *_: None)
        assert not machine.files.hold_same(file, same, tid)
    machine.files.put_unused(file)
    assert len(machine.files) == 0
    assert not machine.files.hold_same(file, same, tid)
    os.close(same)


def test_two_opens_of_one_inode_share_the_cache_and_no_more(machine: FileMachine, fd: int, path: Path) -> None:
    file = machine.files.open_fd(os.dup(fd))
    other = machine.files.open_fd(os.open(path, os.O_RDWR))
    assert other is not file
    assert other.mapping is file.mapping
    machine.files.put_unused(file)
    machine.files.put_unused(other)


def test_without_kcmp_the_mode_of_opening_tells_files_apart(
    machine: FileMachine, fd: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inode_module, "find_same_description", lambda fd, other: None)
    files = [machine.files.open_fd(os.dup(fd))]
    files += [
        machine.files.open_fd(os.open(path, flags)) for flags in (os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_APPEND)
    ]
    assert files[1] is files[0]
    assert len(set(files)) == 3
    for file in files:
        machine.files.put_unused(file)


def test_mappings_of_one_description_merge_and_of_two_do_not(machine: FileMachine, fd: int, path: Path) -> None:
    mm = machine.new_mm()
    base = machine.map_fd(mm, fd)
    second = machine.map_fd(mm, fd, addr=base + PAGE_SIZE, flags=Map.PRIVATE | Map.FIXED, pgoff=1)
    assert mm.map_count == 1
    own = os.open(path, os.O_RDWR)
    machine.map_fd(mm, own, addr=second + PAGE_SIZE, flags=Map.PRIVATE | Map.FIXED, pgoff=2)
    os.close(own)
    assert mm.map_count == 2


@pytest.mark.parametrize(
    ("flags", "readable", "writable"),
    [(os.O_RDONLY, True, False), (os.O_WRONLY, False, True), (os.O_RDWR, True, True)],
)
def test_rights_are_those_of_the_opening(
    machine: FileMachine, path: Path, flags: int, readable: bool, writable: bool
) -> None:
    file = machine.files.open_fd(os.open(path, flags))
    assert (file.readable, file.writable) == (readable, writable)
    assert (file.dev, file.ino, file.path) == (path.stat().st_dev, path.stat().st_ino, str(path))
    assert file.mappable
    assert not file.seals
    machine.files.put_unused(file)


def test_what_is_no_descriptor_is_refused(machine: FileMachine, path: Path) -> None:
    before = open_descriptors()
    number = os.open(path, os.O_PATH)
    assert fails(errno.EBADF, machine.files.open_fd, number)
    assert fails(errno.EBADF, machine.files.open_fd, number)
    assert open_descriptors() == before


def test_what_cannot_be_mapped_is_told_after_the_other_checks(machine: FileMachine, tmp_path: Path) -> None:
    mm = machine.new_mm()
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    fds = [os.open(tmp_path, os.O_RDONLY), read_end, ours.fileno(), os.open("/dev/null", os.O_RDWR)]
    for number in fds:
        assert fails(errno.ENODEV, machine.map_fd, mm, number)
        assert fails(errno.EINVAL, machine.map_fd, mm, number, length=0)
        assert fails(errno.EACCES, machine.map_fd, mm, fds[0], prot=Prot.WRITE, flags=Map.SHARED)
    for number in (fds[0], read_end, write_end, fds[3]):
        os.close(number)
    ours.close()
    theirs.close()
    assert mm.map_count == 0


def test_a_mapping_that_fails_lets_the_file_go(machine: FileMachine, path: Path) -> None:
    reader = os.open(path, os.O_RDONLY)
    before = open_descriptors()
    assert fails(errno.EACCES, machine.map_fd, machine.new_mm(), reader, prot=RW, flags=Map.SHARED)
    assert open_descriptors() == before
    os.close(reader)


def test_pages_come_from_the_file_and_the_descriptor_may_be_closed_at_once(machine: FileMachine, path: Path) -> None:
    mm = machine.new_mm()
    number = os.open(path, os.O_RDONLY)
    addr = machine.map_fd(mm, number, 3 * PAGE_SIZE)
    os.close(number)
    path.unlink()
    assert machine.load(mm, addr + PAGE_SIZE + 5, 16) == TEXT[PAGE_SIZE + 5 : PAGE_SIZE + 21]
    tail = len(TEXT) - 2 * PAGE_SIZE
    assert machine.load(mm, addr + 2 * PAGE_SIZE, PAGE_SIZE) == TEXT[2 * PAGE_SIZE :] + bytes(PAGE_SIZE - tail)
    (vma,) = mm.vmas
    assert vma.file is not None
    assert machine.files.find_path(vma.file) == f"{path} (deleted)"


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_DIRECT])
def test_shared_pages_are_written_back_where_they_belong(machine: FileMachine, path: Path, flags: int) -> None:
    mm = machine.new_mm()
    try:
        number = os.open(path, flags)
    except OSError:
        pytest.skip("no O_DIRECT on this file system")
    addr = machine.map_fd(mm, number, 3 * PAGE_SIZE, prot=RW, flags=Map.SHARED)
    os.close(number)
    machine.store(mm, addr + 100, b"first")
    machine.store(mm, addr + 2 * PAGE_SIZE + 2040, b"over the end")
    do_msync(mm, addr, 3 * PAGE_SIZE, int(Ms.SYNC))
    expected = TEXT[:100] + b"first" + TEXT[105 : 2 * PAGE_SIZE + 2040] + b"over the end"
    assert path.read_bytes() == expected[: len(TEXT)]


def test_an_append_descriptor_that_cannot_be_reopened_still_writes_in_place_or_says_so(
    machine: FileMachine, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, flags: int) -> int:
        raise PermissionError(errno.EACCES, "refused")

    monkeypatch.setattr(inode_module, "reopen", refuse)
    mm = machine.new_mm()
    number = os.open(path, os.O_RDWR | os.O_APPEND)
    addr = machine.map_fd(mm, number, prot=RW, flags=Map.SHARED)
    os.close(number)
    machine.store(mm, addr, b"here")
    expected = b"here" + TEXT[4:]
    try:
        do_msync(mm, addr, PAGE_SIZE, int(Ms.SYNC))
    except SysError:  # Linux before 6.9 has no RWF_NOAPPEND: an error, and nothing is appended.
        expected = TEXT
    assert path.read_bytes() == expected


def test_dirty_pages_outlive_the_only_writable_description(machine: FileMachine, path: Path) -> None:
    mm = machine.new_mm()
    reader, writer = os.open(path, os.O_RDONLY), os.open(path, os.O_RDWR)
    low = machine.map_fd(mm, reader)
    high = machine.map_fd(mm, writer, prot=RW, flags=Map.SHARED)
    os.close(reader)
    os.close(writer)
    machine.store(mm, high, b"kept")
    unmap(mm, high)
    assert machine.load(mm, low, 4) == b"kept"
    unmap(mm, low)
    assert path.read_bytes() == b"kept" + TEXT[4:]


def test_a_writable_description_that_comes_later_is_written_through(machine: FileMachine, path: Path) -> None:
    mm = machine.new_mm()
    reader = os.open(path, os.O_RDONLY)
    addr = machine.map_fd(mm, reader, flags=Map.SHARED)
    os.close(reader)
    assert machine.load(mm, addr, 4) == TEXT[:4]
    writer = os.open(path, os.O_RDWR)
    other = machine.map_fd(mm, writer, prot=RW, flags=Map.SHARED)
    os.close(writer)
    machine.store(mm, other, b"late")
    assert machine.load(mm, addr, 4) == b"late"
    do_msync(mm, other, PAGE_SIZE, int(Ms.SYNC))
    assert path.read_bytes()[:4] == b"late"


def test_a_mapping_over_the_last_one_of_the_same_file_keeps_it(machine: FileMachine, fd: int) -> None:
    mm = machine.new_mm()
    addr = machine.map_fd(mm, fd)
    assert machine.map_fd(mm, fd, addr=addr, flags=Map.PRIVATE | Map.FIXED, pgoff=1) == addr
    assert machine.load(mm, addr, 8) == TEXT[PAGE_SIZE : PAGE_SIZE + 8]


def test_a_fork_keeps_the_file_until_both_have_gone(machine: FileMachine, fd: int) -> None:
    mm = machine.new_mm()
    addr = machine.map_fd(mm, fd)
    child = dup_mmap(mm)
    machine.mms.append(child)
    unmap(mm, addr)
    assert machine.load(child, addr, 8) == TEXT[:8]
    unmap(child, addr)
    assert len(machine.files) == 0


def test_descriptors_of_files_that_nothing_maps_any_more_are_not_collected(machine: FileMachine, path: Path) -> None:
    mm = machine.new_mm()
    kept = os.open(path, os.O_RDONLY)
    machine.map_fd(mm, kept)
    os.close(kept)
    before = len(open_descriptors())
    for _ in range(20):
        number = os.open(path, os.O_RDWR)
        unmap(mm, machine.map_fd(mm, number))
        os.close(number)
    assert len(open_descriptors()) <= before + 2


def test_a_file_that_shrinks_has_no_pages_beyond_its_end(machine: FileMachine, path: Path) -> None:
    mm = machine.new_mm()
    writer = os.open(path, os.O_RDWR)
    addr = machine.map_fd(mm, writer, 3 * PAGE_SIZE, prot=RW, flags=Map.SHARED)
    machine.store(mm, addr + 2 * PAGE_SIZE, b"lost")
    os.ftruncate(writer, PAGE_SIZE)
    (vma,) = mm.vmas
    assert vma.file is not None
    assert vma.file.mapping.last_index() == 1
    os.close(writer)
    do_msync(mm, addr, 3 * PAGE_SIZE, int(Ms.SYNC))
    assert path.stat().st_size == PAGE_SIZE


def test_a_memory_file_maps_and_its_seals_count(machine: FileMachine) -> None:
    mm = machine.new_mm()
    number = os.memfd_create("sealed", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(number, b"memory")
    addr = machine.map_fd(mm, number)
    assert machine.load(mm, addr, 6) == b"memory"
    (vma,) = mm.vmas
    assert vma.file is not None
    assert machine.files.find_path(vma.file) == "/memfd:sealed (deleted)"
    unmap(mm, addr)
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert fails(errno.EPERM, machine.map_fd, mm, number, prot=RW, flags=Map.SHARED)
    machine.map_fd(mm, number, prot=RW)
    os.close(number)


def test_a_file_on_a_noexec_mount_is_not_mapped_executable(
    machine: FileMachine, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mm = machine.new_mm()
    noexec = MmapOps(noexec=True)
    monkeypatch.setattr("kerneld.fs.file_table.find_mmap_ops", lambda fd, opened: noexec)
    assert fails(errno.EPERM, machine.map_fd, mm, fd, prot=Prot.READ | Prot.EXEC)
    machine.map_fd(mm, fd)
    (vma,) = mm.vmas
    assert not vma.vm_flags & 0x40


def test_a_file_made_up_by_the_host_is_never_read(machine: FileMachine) -> None:
    """Of these fstat says regular and size 0; a read of some of them (/proc/kmsg) would wait."""
    before = open_descriptors()
    file = machine.files.open_fd(os.open("/proc/self/stat", os.O_RDONLY))
    assert not file.mappable
    assert file.mapping.backing is None
    assert (len(machine.files), open_descriptors()) == (0, before)


def test_nothing_is_read_beyond_the_size(machine: FileMachine, fd: int) -> None:
    file = machine.files.open_fd(os.dup(fd))
    assert file.mapping.backing is not None
    os.ftruncate(fd, 0)
    assert file.mapping.backing.read_at(0, PAGE_SIZE) == b""
    machine.files.put_unused(file)


def test_no_file_takes_the_last_descriptors(machine: FileMachine, fd: int) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, soft - soft // 4)
    assert fails(errno.ENFILE, machine.files.open_fd, high)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(high)


def test_a_write_that_the_host_refuses_is_told_once(machine: FileMachine, path: Path) -> None:
    mm = machine.new_mm()
    number = os.open(path, os.O_RDWR)
    addr = machine.map_fd(mm, number, prot=RW, flags=Map.SHARED)
    os.close(number)
    machine.store(mm, addr, b"late")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        assert fails(errno.EFBIG, do_msync, mm, addr, PAGE_SIZE, int(Ms.SYNC))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    do_msync(mm, addr, PAGE_SIZE, int(Ms.SYNC))


def test_a_file_that_is_held_twice_in_one_call_is_put_twice(machine: FileMachine, fd: int) -> None:
    first, second = machine.files.open_fd(os.dup(fd)), machine.files.open_fd(os.dup(fd))
    machine.files.put_unused(first)
    mm = machine.new_mm()
    addr = map_file(mm, second)
    machine.files.put_unused(second)
    assert machine.load(mm, addr, 4) == TEXT[:4]


@pytest.mark.parametrize(
    ("mode", "mine", "cred", "may"),
    [
        (0o600, False, USER, False),
        (0o622, False, USER, True),
        (0o400, True, USER, True),
        (0o400, False, ROOT, True),
    ],
    ids=["another's", "everybody's", "one's own", "root"],
)
def test_who_may_write_is_the_files_matter_not_the_descriptors(
    machine: FileMachine, path: Path, mode: int, mine: bool, cred: Cred, may: bool
) -> None:
    """Source: Linux v6.8 mm/madvise.c:can_do_file_pageout()."""
    path.chmod(mode)
    file = machine.files.open_fd(os.open(path, os.O_RDONLY))
    caller = Cred(os.getuid(), os.getgid(), superuser=False) if mine else cred
    assert machine.files.may_write(file, caller) is may
    machine.files.put_unused(file)
