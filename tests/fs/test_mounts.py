"""Descriptors that nobody waits for, told from those that may make the daemon wait."""

from __future__ import annotations

import errno
import os
import pty
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.errors import SysError
from kerneld.fs import mounts as mounts_module
from kerneld.fs.mounts import SERVED, Mounts
from kerneld.fs.namei import open_look
from kerneld.fs.open_file import StatFs, find_device, find_mount_id
from kerneld.server.connection import close_fds
from tests.support.errors import fails
from tests.support.fuse import stuck_file_system


@pytest.fixture
def mounts() -> Iterator[Mounts]:
    made = Mounts()
    made.look()
    yield made
    made.close()


def waits(mounts: Mounts, fd: int) -> bool:
    try:
        return mounts.may_wait(fd, os.getpid())
    finally:
        os.close(fd)


def test_who_is_harmless(mounts: Mounts, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    read_fd, write_fd = os.pipe()
    os.close(write_fd)
    for fd in (
        os.open(tmp_path / "file", os.O_RDONLY),
        os.open(tmp_path / "file", os.O_PATH),
        os.open(tmp_path / "fifo", os.O_RDWR),
        os.open(tmp_path, os.O_RDONLY),
        os.open("/dev/null", os.O_RDWR),
        os.open("/proc/self/stat", os.O_RDONLY),
        os.memfd_create("memory"),
        os.eventfd(0),
        os.pidfd_open(os.getpid()),
        read_fd,
    ):
        link = os.readlink(f"/proc/self/fd/{fd}")
        assert not waits(mounts, fd), link


def test_who_may_linger(mounts: Mounts) -> None:
    master, slave = pty.openpty()
    pair = [end.detach() for end in socket.socketpair()]
    for fd in (master, slave, socket.socket(socket.AF_INET).detach(), *pair):
        link = os.readlink(f"/proc/self/fd/{fd}")
        assert waits(mounts, fd), link


@pytest.mark.parametrize("fstype", ["nfs4", "fuse.sshfs", "9p"])
def test_a_file_system_that_others_serve(
    mounts: Mounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str
) -> None:
    """None of these but FUSE can be mounted by a test: what the host says of the mount is put in its place."""
    monkeypatch.setattr(mounts, "find_fstype", lambda fd: fstype)
    (tmp_path / "file").write_bytes(b"x")
    assert fstype.partition(".")[0] in SERVED
    assert waits(mounts, os.open(tmp_path / "file", os.O_RDONLY))
    allowing = Mounts(allow_network=True)
    monkeypatch.setattr(allowing, "find_fstype", lambda fd: fstype)
    assert not waits(allowing, os.open(tmp_path / "file", os.O_RDONLY))
    allowing.close()
    assert fails(errno.EACCES, open_look, str(tmp_path / "file"), mounts)


def test_a_mount_that_is_not_seen_may_be_anything(
    mounts: Mounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts_module, "_find_mount", lambda fd: 1 << 30)
    monkeypatch.setattr(mounts_module, "find_device", lambda fd: "0:1048575")
    (tmp_path / "file").write_bytes(b"x")
    assert waits(mounts, os.open(tmp_path / "file", os.O_RDONLY))
    assert not waits(mounts, os.memfd_create("memory"))


@pytest.mark.parametrize("fstype", ["tmpfs", "ext4", "overlay", "fuse", "fuse.sshfs", "nfs4"])
def test_a_mount_of_another_namespace_is_in_the_list_of_its_process(
    mounts: Mounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fstype: str
) -> None:
    """With a file system of its own: its type counts. overlay may be over FUSE there."""
    line = f"1073741824 22 0:1048575 / /mnt rw,relatime shared:1 - {fstype} x rw\n"
    monkeypatch.setattr(mounts_module, "_find_mount", lambda fd: 1 << 30)
    monkeypatch.setattr(mounts_module, "_read_mountinfo", lambda pid: line if pid == os.getpid() else "")
    (tmp_path / "file").write_bytes(b"x")
    assert waits(mounts, os.open(tmp_path / "file", os.O_RDONLY)) is (fstype not in ("tmpfs", "ext4"))


def test_a_mount_of_another_namespace_may_be_of_a_file_system_of_ours(
    mounts: Mounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a chroot there the list is empty: the host tells the device."""
    monkeypatch.setattr(mounts_module, "_find_mount", lambda fd: 1 << 30)
    monkeypatch.setattr(mounts_module, "_read_mountinfo", lambda *_: "")
    fd = os.open("/proc/self/stat", os.O_RDONLY)
    assert mounts._fstypes_by_device[find_device(fd)] == "proc"
    assert not waits(mounts, fd)
    with stuck_file_system(tmp_path) as stuck:
        monkeypatch.undo()
        mounts.look()
        monkeypatch.setattr(mounts_module, "_find_mount", lambda fd: 1 << 30)
        fd = os.open(stuck.file, os.O_RDONLY)
        assert mounts._find_fstype_elsewhere(fd, 0) == "fuse"
        assert mounts.may_wait(fd, 0)
        stuck.end()
        close_fds([fd])


def test_the_host_tells_the_number_of_a_mount_in_two_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick one tells it for some files; then it is the one that is in fdinfo and mountinfo."""
    (tmp_path / "file").write_bytes(b"x")
    read_fd, write_fd = os.pipe()
    fds = [os.open(path, os.O_PATH) for path in (tmp_path / "file", "/", "/proc/self/stat", os.devnull)]
    fds += [os.memfd_create("memory"), read_fd, write_fd]
    numbers = [find_mount_id(fd) for fd in fds]
    monkeypatch.setattr(mounts_module, "find_mount_id", lambda fd: -1)
    read = [mounts_module._find_mount(fd) for fd in fds]
    close_fds(fds)
    assert all(number in (-1, other) for number, other in zip(numbers, read, strict=True))
    assert find_mount_id(fds[0]) == -1


def test_the_list_is_read_when_it_has_changed(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open("/proc/self/stat", os.O_RDONLY)
    monkeypatch.setattr(mounts_module, "_read_mountinfo", lambda *_: "")
    mounts.have_changed = lambda: False
    mounts.look()
    assert mounts.find_fstype(fd) == "proc"
    mounts.have_changed = lambda: True
    mounts.look()
    assert mounts.find_fstype(fd) is None
    os.close(fd)


def test_a_list_that_cannot_be_read_is_read_again(mounts: Mounts, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = mounts_module._read_mountinfo

    def fail() -> str:
        raise OSError(errno.EMFILE, "none left")

    monkeypatch.setattr(mounts_module, "_read_mountinfo", fail)
    mounts.look()
    mounts.have_changed = lambda: False
    fd = os.open("/proc/self/stat", os.O_RDONLY)
    assert mounts.find_fstype(fd) is None
    monkeypatch.setattr(mounts_module, "_read_mountinfo", reader)
    mounts.look()
    assert mounts.find_fstype(fd) == "proc"
    os.close(fd)


@pytest.mark.parametrize(("magic", "harmless"), [(0xEF53, True), (0x6969, False), (0x6573_5546, False)])
def test_in_a_chroot_the_mount_of_our_own_root_is_seen(
    monkeypatch: pytest.MonkeyPatch, magic: int, harmless: bool
) -> None:
    """A directory that is no mount's own root: the host shows no mount at all there."""
    monkeypatch.setattr(mounts_module, "_read_mountinfo", lambda *_: "")
    monkeypatch.setattr(mounts_module, "fstatfs", lambda fd: StatFs(magic, 4096, 0))
    made = Mounts()
    made.look()
    for path in ("/", "/etc/passwd"):
        fd = os.open(path, os.O_RDONLY)
        if mounts_module._find_mount(fd) == next(iter(made._own_root)):
            assert made.may_wait(fd, os.getpid()) is not harmless
        os.close(fd)
    other = os.open("/proc/self/stat", os.O_RDONLY)
    assert made.may_wait(other, os.getpid())
    os.close(other)
    made.close()


def test_a_file_system_that_does_not_answer_is_known_without_asking_it(mounts: Mounts, tmp_path: Path) -> None:
    """Whatever would ask it anything would not come back."""
    with stuck_file_system(tmp_path) as stuck:
        mounts.look()
        fd = os.open(stuck.file, os.O_RDONLY)
        assert mounts.find_fstype(fd) == "fuse"
        assert mounts.may_wait(fd, os.getpid())
        with pytest.raises(SysError) as refused:
            open_look(str(stuck.file), mounts)
        assert refused.value.errno == errno.EACCES
        stuck.end()
        close_fds([fd])


def test_a_look_goes_where_open_goes(mounts: Mounts, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x")
    (tmp_path / "up").symlink_to("a/b/../b/./file")
    (tmp_path / "far").symlink_to(tmp_path / "a")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("a/b/file", "up", "far/b/file", "a//b/../../up"):
        look = open_look(f"{tmp_path}/{name}", mounts)
        assert os.path.samestat(os.fstat(look), os.stat(tmp_path / "a/b/file")), name
        os.close(look)
    before = len(os.listdir("/proc/self/fd"))
    assert fails(errno.ELOOP, open_look, f"{tmp_path}/loop", mounts)
    for name, code in (("none", errno.ENOENT), ("up/x", errno.ENOTDIR)):
        with pytest.raises(OSError, match=r".") as refused:
            open_look(f"{tmp_path}/{name}", mounts)
        assert refused.value.errno == code
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_any_descriptor_nothing_is_taken_for_harmless(
    mounts: Mounts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole host is out of them: what is kept for looking goes to somebody else, and is not ours to close again."""
    (tmp_path / "file").write_bytes(b"x")
    file, memory = os.open(tmp_path / "file", os.O_RDONLY), os.memfd_create("memory")
    kept = mounts._spare

    def refuse(*_args: object, **_kwargs: object) -> int:
        raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        patch.setattr(Path, "read_text", refuse)
        patch.setattr(mounts_module, "find_mount_id", lambda fd: -1)
        mounts.look()
        assert mounts.may_wait(file, os.getpid())
        assert mounts.may_wait(memory, os.getpid())
        others = os.dup2(file, kept)
        mounts.look()
        assert mounts.may_wait(file, os.getpid())
        os.fstat(others)
    mounts.look()
    assert not mounts.may_wait(file, os.getpid())
    assert not mounts.may_wait(memory, os.getpid())
    close_fds([file, memory, others])


def test_a_path_of_very_many_names_is_given_up(mounts: Mounts, tmp_path: Path) -> None:
    """Each name is looked at by itself, and links can make a path forty times as long as one may be."""
    (tmp_path / "d").mkdir()
    target = "d/../" * 800
    for number in range(39):
        (tmp_path / f"{number}").symlink_to(target + ("." if not number else f"{number - 1}"))
    assert fails(errno.ELOOP, open_look, f"{tmp_path}/38", mounts)
    close_fds([open_look(f"{tmp_path}/{'d/../' * 500}0", mounts)])
