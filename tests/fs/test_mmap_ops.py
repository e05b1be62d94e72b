"""Files that cannot be mapped, of every kind that the host has: refused with its errno, before or after the unmap.

Each mapping is tried on the host as well, over real memory of this process: what is gone afterwards is gone here too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kerneld.errors import SysError
from kerneld.fs.host_mmap import try_to_map
from kerneld.fs.mmap_ops import find_mmap_ops
from kerneld.fs.open_file import describe_fd
from kerneld.mm.calls.mmap import do_mmap
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from tests.support.errors import fails
from tests.support.file_machine import ROOT, FileMachine

BASE = 0x10_0000_0000
READ, WRITE, EXEC = Prot.READ.value, Prot.WRITE.value, Prot.EXEC.value
PRIVATE, SHARED, FIXED = Map.PRIVATE.value, Map.SHARED.value, Map.FIXED.value
ANON = PRIVATE | Map.ANONYMOUS.value
SYNC = Map.SHARED_VALIDATE.value | Map.SYNC.value
MFD_HUGETLB, MFD_ALLOW_SEALING = 4, 2
BIG = (1 << 63) - PAGE_SIZE
WAYS = [
    (READ, PRIVATE, 0),
    (READ, SHARED, 0),
    (READ | WRITE, SHARED, 0),
    (READ | WRITE, PRIVATE, 0),
    (READ, PRIVATE | Map.GROWSDOWN.value, 0),
    (READ, SYNC, 0),
    (READ, PRIVATE, PAGE_SIZE),
    (READ, PRIVATE, BIG),
]
"""prot, flags, offset in bytes."""


def path(name: str, flags: int = os.O_RDONLY) -> Callable[[], int]:
    def open_path() -> int:
        try:
            return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            pytest.skip(f"{name}: {error.strerror}")

    return open_path


def huge_file() -> int:
    try:
        fd = os.memfd_create("huge", MFD_HUGETLB | MFD_ALLOW_SEALING)
    except OSError as error:
        pytest.skip(f"a memory file of huge pages: {error.strerror}")
    with open("/proc/meminfo") as meminfo:
        free = next((line for line in meminfo if line.startswith("HugePages_Free:")), "0").split()[-1]
    if int(free):
        pytest.skip(f"the host's pool has {free} huge pages, this machine's none")
    return fd


def pipe_end(which: int) -> Callable[[], int]:
    def make() -> int:
        ends = os.pipe()
        os.close(ends[1 - which])
        return ends[which]

    return make


def temporary_file(folder: str | None) -> int:
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(PAGE_SIZE))
        file.flush()
        return os.dup(file.fileno())


KINDS: dict[str, Callable[[], int]] = {
    "memory file": lambda: os.memfd_create("memory"),
    "memory file of huge pages": huge_file,
    "regular file": lambda: temporary_file(None),
    "/proc/meminfo": path("/proc/meminfo"),
    "/proc/net/dev": path("/proc/net/dev"),
    "/proc/self/maps": path("/proc/self/maps"),
    "/proc/self/mem": path("/proc/self/mem", os.O_RDWR),
    "/proc/self/comm": path("/proc/self/comm", os.O_RDWR),
    "sysctl": path("/proc/sys/vm/overcommit_memory"),
    "sysfs": path("/sys/kernel/mm/transparent_hugepage/enabled"),
    "sysfs, binary": path("/sys/kernel/notes"),
    "cgroup": path("/sys/fs/cgroup/cgroup.controllers"),
    "cgroup beside version 1": path("/sys/fs/cgroup/unified/cgroup.controllers"),
    "cgroup v1": path("/sys/fs/cgroup/cpu/cgroup.procs"),
    "tracefs": path("/sys/kernel/tracing/trace"),
    "debugfs": path("/sys/kernel/debug/sched/debug"),
    "securityfs": path("/sys/kernel/security/lsm"),
    "directory": path("/"),
    "directory of procfs": path("/proc"),
    "/dev/null": path("/dev/null", os.O_RDWR),
    "/dev/urandom": path("/dev/urandom"),
    "terminal": path("/dev/ptmx", os.O_RDWR),
    "pipe, its reading end": pipe_end(0),
    "pipe, its writing end": pipe_end(1),
    "socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
    "epoll": lambda: ctypes.CDLL(None).epoll_create1(0),
    "eventfd": lambda: os.eventfd(0),
    "inotify": lambda: ctypes.CDLL(None).inotify_init1(0),
    "timerfd": lambda: ctypes.CDLL(None).timerfd_create(0, 0),
    "path": path("/", os.O_PATH),
}


@pytest.fixture(params=KINDS)
def fd(request: pytest.FixtureRequest) -> Iterator[int]:
    made = KINDS[request.param]()
    yield made
    os.close(made)


def host_maps(fd: int, prot: int, flags: int, offset: int) -> tuple[int, bool]:
    """Return the errno of a real mapping over a page of ours, and whether that page is still there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype, libc.munmap.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_size_t)
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
    own = libc.mmap(None, 2 * PMD_SIZE, READ, ANON, -1, 0)
    at = (own + PMD_SIZE - 1) & -PMD_SIZE
    ctypes.set_errno(0)
    code = 0 if libc.mmap(at, PAGE_SIZE, prot, flags | FIXED, fd, offset) == at else ctypes.get_errno()
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    is_there = libc.mincore(at, PAGE_SIZE, ctypes.create_string_buffer(1)) == 0
    libc.munmap(own, 2 * PMD_SIZE)
    return code, is_there


def kerneld_maps(machine: FileMachine, fd: int, prot: int, flags: int, offset: int) -> tuple[int, bool]:
    mm: MmStruct = machine.new_mm()
    do_mmap(mm, BASE, PAGE_SIZE, READ, ANON | FIXED, None, 0, privileged=False)
    code = 0
    try:
        file = machine.files.open_fd(os.dup(fd))
        # As the call does with a file of huge pages: its length is a multiple of theirs.
        length = file.huge_page_bytes or PAGE_SIZE
        try:
            do_mmap(mm, BASE, length, prot, flags | FIXED, file, offset // PAGE_SIZE, privileged=False)
        finally:
            machine.files.put_unused(file)
    except SysError as error:
        code = error.errno
    return code, mm.vmas.lookup(BASE) is not None


def test_every_kind_is_refused_as_the_host_refuses_it(machine: FileMachine, fd: int) -> None:
    for prot, flags, offset in WAYS:
        on_host = host_maps(fd, prot, flags, offset)
        assert kerneld_maps(machine, fd, prot, flags, offset) == on_host, (prot, flags, offset)


@pytest.mark.parametrize("name", ["/proc/meminfo", "/proc/self/maps", "/sys/kernel/notes"])
def test_nothing_of_these_file_systems_is_executed_however_they_are_mounted(machine: FileMachine, name: str) -> None:
    made = path(name)()
    assert kerneld_maps(machine, made, READ | EXEC, PRIVATE, 0) == (errno.EPERM, True)
    assert host_maps(made, READ | EXEC, PRIVATE, 0) == (errno.EPERM, True)
    os.close(made)


def test_a_file_that_cannot_be_mapped_is_no_program(machine: FileMachine) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for kind in ("/proc/meminfo", "/proc/self/maps", "socket", "directory"):
        assert fails(errno.EACCES, machine.files.open_exec, KINDS[kind](), ROOT), kind
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_short_on_our_side_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host answers us with ENOMEM: that says nothing of the file."""
    made = KINDS["/proc/meminfo"]()
    answers = iter([errno.EINVAL, errno.ENOMEM])
    monkeypatch.setattr("kerneld.fs.mmap_ops.try_to_map", lambda fd, flags: next(answers))
    ops = find_mmap_ops(made, describe_fd(made))
    assert (ops.exists, ops.refuses) == (True, 0)
    os.close(made)


def test_to_ask_leaves_no_mapping() -> None:
    fd = KINDS["memory file"]()
    os.ftruncate(fd, PAGE_SIZE)
    before = Path("/proc/self/maps").read_text()
    assert try_to_map(fd, 0) == 0
    assert try_to_map(fd, Map.GROWSDOWN.value) == errno.EINVAL
    assert Path("/proc/self/maps").read_text().count("memfd:memory") == before.count("memfd:memory") == 0
    os.close(fd)
