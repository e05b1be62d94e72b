"""Settings that a program inside writes: they are kerneld's, by whatever way the descriptor has come to the writer."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.native.conftest import NativeDaemon
from tests.native.inside import Inside
from tests.support.client import Nursery
from tests.support.rights import can_become_others, needs_the_hosts_rights

PYTHON = Path("/usr/bin/python3")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root writes to /proc/sys")
needs_another_user_if_root = pytest.mark.skipif(
    os.geteuid() == 0 and not can_become_others(), reason="this user namespace has no other user"
)
needs_python = pytest.mark.skipif(not PYTHON.exists(), reason="this host has no /usr/bin/python3")


@pytest.fixture(autouse=True)
def _settings_of_the_host() -> Iterator[None]:
    """No program may change what is the host's."""
    files = [Path("/proc/sys/vm", name) for name in ("max_map_count", "swappiness", "overcommit_ratio")]
    before = [file.read_text() for file in files]
    yield
    assert [file.read_text() for file in files] == before


# Each way leads to another descriptor: its own, one of a shell that its child inherits, one of subprocess and one of
# posix_spawn (vfork), one that a socket brings, one that is read and written, one opened by its name in /proc/self/fd.
WAYS = """
import os, socket, subprocess
path = "/proc/sys/vm/swappiness"
def now(): return open(path).read().strip()
seen = [now()]
with open(path, "w") as file:
    file.write("11")
seen.append(now())
subprocess.run(["sh", "-c", f"exec 5>{path}; sh -c 'echo 12 >&5'"], check=True)
seen.append(now())
fd = os.open(path, os.O_WRONLY)
subprocess.run(["echo", "13"], stdout=fd, check=True)
seen.append(now())
pid = os.posix_spawn("/bin/echo", ["echo", "14"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 1, path, os.O_WRONLY, 0)])
assert os.waitpid(pid, 0)[1] == 0
seen.append(now())
here, there = socket.socketpair()
socket.send_fds(here, [b"x"], [os.open(path, os.O_RDWR)])
if os.fork() == 0:
    (sent,) = socket.recv_fds(there, 1, 1)[1]
    os.writev(sent, [b"1", b"5", b"\\n"])
    os._exit(0)
os.wait()
seen.append(now())
both = os.open(path, os.O_RDWR)
os.pwrite(both, b"16", 0)
seen.append(os.read(both, 9).decode().strip())
os.write(both, b"17")
seen.append(now())
os.lseek(both, 0, 0)
os.write(both, b"18")
seen.append(os.pread(both, 9, 0).decode().strip())
open(f"/proc/self/fd/{both}", "w").write("19")
seen.append(now())
print(*seen)
for make in (
    lambda: os.write(os.open(path, os.O_RDONLY), b"1"), lambda: os.read(fd, 1), lambda: os.pwrite(fd, b"x", 0),
    lambda: os.pwrite(fd, b"201", 0), lambda: open("/proc/sys/vm/drop_caches"), lambda: os.ftruncate(fd, 0),
    lambda: os.write(os.open("/proc/sys/vm/drop_caches", os.O_WRONLY), b"3"), lambda: os.pwrite(fd, b"", 0),
    lambda: open("/proc/meminfo", "w"), lambda: os.pwrite(fd, b" ", 0), lambda: os.pwrite(fd, b"60 ", 0),
):
    try:
        print(make())
    except OSError as error:
        print(error.strerror)
"""


@needs_root
@needs_python
def test_a_setting_by_every_way(inside: Inside) -> None:
    end = inside.run([str(PYTHON), "-c", WAYS])
    assert end.errors == ""
    assert end.output.splitlines() == [
        "60 11 12 13 14 15 16 16 18 19",
        "Bad file descriptor",
        "Bad file descriptor",
        "Invalid argument",
        "Invalid argument",
        "Permission denied",
        "None",
        "1",
        "0",
        "Permission denied",
        "Invalid argument",
        "3",
    ]


# kernel.shmmni is of an IPC namespace: outside the program gets one of its own.
NUMBERS = """
import os
path = "/proc/sys/kernel/shmmni"
for text in b"5", b"0x10\\n", b"5 6\\n", b"x", b"-1", b"32769", b"7\\0", b"":
    open(path, "w").write("4096")
    fd = os.open(path, os.O_RDWR)
    try:
        print(text, os.write(fd, text), os.read(fd, 1), open(path).read())
    except OSError as error:
        print(text, error.strerror, open(path).read())
open(path, "w").write("4096")
"""


@pytest.fixture
def own_ipc() -> list[str]:
    """The words before a command that give it an IPC namespace, whose settings are not the host's."""
    words = ["unshare", "--ipc"]
    if shutil.which(words[0]) is None or subprocess.run([*words, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this host gives no IPC namespace")
    return words


@needs_root
@needs_python
def test_numbers_as_outside(inside: Inside, own_ipc: list[str]) -> None:
    program = [str(PYTHON), "-c", NUMBERS]
    outside = inside.outside([*own_ipc, *program])
    assert (outside.status, outside.errors) == (0, "")
    assert inside.run(program) == outside


LIMITS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def put(name, value):
    open("/proc/sys/kernel/" + name, "w").write(str(value))
def get(size):
    found = libc.shmget(0, ctypes.c_size_t(size), 0o600)
    return found if found >= 0 else -ctypes.get_errno()
def read(name):
    return open("/proc/sys/kernel/" + name).read().strip()
before = [read(name) for name in ("shmmax", "shmall", "shmmni")]
put("shmmax", 8192)
print(get(8193), get(8192) >= 0)
put("shmall", 3)
print(get(8192), get(4096) >= 0)
put("shmall", before[1])
put("shmmni", 2)
print(get(4096))
put("shmmni", before[2])
put("shmmax", before[0])
print(read("shm_next_id"))
put("shm_next_id", 0x8005)
print(read("shm_next_id"), hex(get(4096)), read("shm_next_id"))
put("shm_next_id", 0x10005)
print(hex(get(4096)))
os.system("ipcrm --all=shm; ipcs -m | grep -c 0x")
"""


@pytest.fixture
def inside_a_new_machine(tmp_path: Path) -> Iterator[Inside]:
    """Runs programs in a kerneld in which nobody has made shared memory: ids go by what was made before."""
    nursery = Nursery()
    daemon = NativeDaemon(tmp_path, nursery)
    inside = Inside(daemon.environment)
    yield inside
    inside.close()
    daemon.close()
    nursery.close()


@needs_root
@needs_the_hosts_rights
@needs_python
def test_limits_of_shared_memory_as_outside(inside_a_new_machine: Inside, own_ipc: list[str]) -> None:
    if not Path("/proc/sys/kernel/shm_next_id").exists():
        pytest.skip("this host is built without CONFIG_CHECKPOINT_RESTORE")
    program = [str(PYTHON), "-c", LIMITS]
    assert inside_a_new_machine.run(program) == inside_a_new_machine.outside([*own_ipc, *program])


@needs_another_user_if_root
def test_who_is_not_root_writes_nothing(inside: Inside) -> None:
    words = ["sh", "-c", "echo 1 > /proc/sys/vm/swappiness; echo never > /sys/kernel/mm/transparent_hugepage/enabled"]
    if os.geteuid() == 0:
        words = ["setpriv", "--reuid", "65534", "--clear-groups", *words]
    end = inside.run(words)
    assert end.status != 0
    assert end.errors.count("Permission denied") == 2


PIECES = """
import ctypes, mmap, os, struct, subprocess, sys
m = mmap.mmap(-1, 4096); m[0] = 1
at = ctypes.addressof(ctypes.c_char.from_buffer(m))
fd = os.open("/proc/self/pagemap", os.O_RDONLY)
os.set_inheritable(fd, True)
word = os.pread(fd, 8, at // 4096 * 8)
parts = [bytearray(8), bytearray(8)]
os.preadv(fd, parts, at // 4096 * 8)
program = f"import os,sys; sys.stdout.buffer.write(os.pread({fd}, 8, {at // 4096 * 8}))"
later = subprocess.check_output([sys.executable, "-c", program], close_fds=False)
print(word[7] >> 7, parts[0] == word, later == word)
"""


@needs_python
def test_a_pagemap_stays_one_after_an_execve(inside: Inside) -> None:
    """It is that of the process which has opened it."""
    assert inside.agrees([str(PYTHON), "-c", PIECES]).output == "1 True True\n"
