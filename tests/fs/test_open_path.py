"""Who may open a program and its interpreter, and what is none."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kerneld.fs import namei
from kerneld.fs.mmap_ops import MmapOps
from kerneld.fs.mounts import Mounts
from kerneld.fs.open_file import open_cached
from kerneld.mm.files.file import File
from kerneld.task.task import Cred
from tests.support.errors import fails
from tests.support.file_machine import ROOT, FileMachine

OWNER = Cred(os.getuid(), os.getgid(), superuser=False)
OTHER = Cred(os.getuid() + 7, os.getgid() + 7, superuser=False)
IN_GROUP = Cred(os.getuid() + 1, os.getgid(), superuser=False)


@pytest.fixture
def program() -> Iterator[Path]:
    """A program in a directory that everybody may search, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        made = Path(directory) / "program"
        made.write_bytes(b"\x7fELF")
        made.chmod(0o755)
        yield made


def open_path(machine: FileMachine, path: Path, cred: Cred) -> None:
    file = machine.files.open_path(str(path), cred)
    assert (file.path, file.readable, file.writable) == (str(path.resolve()), True, False)
    machine.files.put_unused(file)


def open_exec(machine: FileMachine, path: Path, cred: Cred) -> None:
    machine.files.put_unused(machine.files.open_exec(os.open(path, os.O_RDONLY), cred))


@pytest.mark.parametrize("cred", [ROOT, OWNER, IN_GROUP, OTHER])
def test_a_program_for_everybody(machine: FileMachine, program: Path, cred: Cred) -> None:
    open_path(machine, program, cred)
    open_exec(machine, program, cred)
    assert len(machine.files) == 0


@pytest.mark.parametrize(
    ("mode", "cred", "path_ok", "exec_ok"),
    [
        (0o500, OWNER, True, True),
        (0o500, IN_GROUP, False, False),
        (0o050, OWNER, False, False),
        (0o050, IN_GROUP, True, True),
        (0o050, OTHER, False, False),
        (0o005, IN_GROUP, False, False),
        (0o005, OTHER, True, True),
        (0o111, OTHER, False, True),
        (0o444, OTHER, False, False),
        (0o666, ROOT, False, False),
        (0o001, ROOT, True, True),
    ],
)
def test_mode_bits(machine: FileMachine, program: Path, mode: int, cred: Cred, path_ok: bool, exec_ok: bool) -> None:
    held = os.open(program, os.O_RDONLY)
    program.chmod(mode)
    calls: tuple[tuple[bool, Callable[..., File], str | int], ...] = (
        # The daemon opens the file with its own rights, whoever asks.
        (path_ok and os.access(program, os.R_OK), machine.files.open_path, str(program)),
        (exec_ok, machine.files.open_exec, os.dup(held)),
    )
    for allowed, call, argument in calls:
        if allowed:
            machine.files.put_unused(call(argument, cred))
        else:
            assert fails(errno.EACCES, call, argument, cred)
    os.close(held)


def test_a_directory_that_may_not_be_searched(machine: FileMachine, program: Path) -> None:
    inner = program.parent / "inner"
    inner.mkdir()
    moved = program.rename(inner / "program")
    link = program.parent / "link"
    link.symlink_to(moved)
    open_path(machine, link, OTHER)
    inner.chmod(0o700)
    assert fails(errno.EACCES, machine.files.open_path, str(moved), OTHER)
    assert fails(errno.EACCES, machine.files.open_path, str(link), OTHER)
    open_path(machine, link, OWNER)


def test_what_is_no_program_at_all(machine: FileMachine, program: Path) -> None:
    directory = program.parent
    os.mkfifo(directory / "fifo")
    (directory / "fifo").chmod(0o777)
    (directory / "loop").symlink_to("loop")
    for name, code in (
        ("fifo", errno.EACCES),
        ("", errno.EACCES),
        ("none", errno.ENOENT),
        ("program/below", errno.ENOTDIR),
        ("loop", errno.ELOOP),
        ("x" * 300, errno.ENAMETOOLONG),
        ("nul\0", errno.ENOENT),
    ):
        assert fails(code, machine.files.open_path, f"{directory}/{name}", ROOT)
    assert fails(errno.ENOENT, machine.files.open_path, "program", ROOT)
    assert fails(errno.EACCES, machine.files.open_exec, os.open(directory, os.O_RDONLY), ROOT)
    assert fails(errno.EACCES, machine.files.open_exec, os.open(program, os.O_WRONLY), ROOT)
    assert fails(errno.EBADF, machine.files.open_exec, os.open(program, os.O_PATH), ROOT)
    assert fails(errno.EBADF, machine.files.open_exec, 1 << 20, ROOT)


def test_a_noexec_mount(machine: FileMachine, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noexec = MmapOps(noexec=True)
    monkeypatch.setattr("kerneld.fs.file_table.find_mmap_ops", lambda fd, opened: noexec)
    assert fails(errno.EACCES, machine.files.open_path, str(program), ROOT)
    assert fails(errno.EACCES, machine.files.open_exec, os.open(program, os.O_RDONLY), ROOT)


def is_on_root_mount(path: str) -> bool:
    """Whether one file system has all directories of a path, as far as their device numbers say."""
    root = os.stat("/").st_dev
    return all(os.stat(part).st_dev == root for part in (Path(path), *Path(path).resolve().parents))


def test_a_path_that_the_host_has_in_memory_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_on_root_mount("/bin/sh") or open_cached("/", os.O_PATH) is None:
        pytest.skip("the host has no openat2 with RESOLVE_CACHED, or /bin/sh is on a mount of its own")
    mounts, walked = Mounts(), []

    def walk(path: str, mounts: Mounts) -> int:
        walked.append(path)
        return os.open(path, os.O_PATH)

    monkeypatch.setattr(namei, "_walk", walk)
    # Another program that renames a file may make the host give up, so one of many times is enough.
    for _ in range(100):
        found = namei.open_look("/bin/sh", mounts)
        assert os.fstat(found).st_ino == os.stat("/bin/sh").st_ino
        os.close(found)
    assert len(walked) < 100


@pytest.mark.parametrize("path", ["/proc/self/exe", "/proc/self/cwd/nothing", "/no/such/file"])
def test_a_path_to_another_mount_or_to_nothing_is_walked(path: str) -> None:
    assert open_cached(path, os.O_PATH) is None


def test_a_cached_path_on_a_file_system_that_may_not_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = Mounts()
    monkeypatch.setattr(mounts, "is_served", lambda fstype: True)
    assert fails(errno.EACCES, namei.open_look, "/bin/sh", mounts)
