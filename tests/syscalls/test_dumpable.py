"""Who may not be looked into by others of the same user: processes that have changed theirs, until their next execve.

Source: Linux v6.8 kernel/cred.c:commit_creds(), kernel/ptrace.c:__ptrace_may_access(), fs/exec.c:begin_new_exec() and
would_dump(), fs/proc/base.c:task_dump_owner().
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kerneld.task.task import Cred
from shared.uapi.mman import Madv, Pr
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.elf_programs import STATIC
from tests.support.programs import BASE, ROOT, USER, Program, World, iovecs

PRIVATE = ("maps", "smaps", "smaps_rollup", "pagemap")
PUBLIC = ("status", "stat", "statm", "comm", "cmdline")
TRANSFERS = (Nr.PROCESS_VM_READV, Nr.PROCESS_VM_WRITEV)


def transfer(nr: Nr, caller: Program, pid: int) -> int:
    return caller.call(nr, pid, BASE, 1, BASE, 1, 0, data=iovecs((BASE, 4), (BASE, 4)))


def read(reader: Program, name: str, pid: int | str = "self") -> int:
    return reader.call(Nr.PROCREAD, 0, PAGE_SIZE, data=f"{pid}/{name}".encode())


def stack_of(reader: Program, pid: int) -> int:
    """Return the start of the stack that /proc/PID/stat shows."""
    stat = reader.answer(Nr.PROCREAD, 0, PAGE_SIZE, data=f"{pid}/stat".encode()).data
    return int(stat.rpartition(b")")[2].split()[25])


@pytest.fixture
def dropped(world: World) -> list[Program]:
    """Two that were the superuser, and are one ordinary user now, in one group still."""
    programs = [world.attach(ROOT), world.attach(ROOT)]
    for program in programs:
        program.mmap(1, at=BASE)
        assert program.call(Nr.SETUID, USER) == 0
    return programs


def test_nobody_but_the_superuser_reaches_into_its_memory(dropped: list[Program], root: Program) -> None:
    one, other = dropped
    root.mmap(1, at=BASE)
    for nr in TRANSFERS:
        assert transfer(nr, one, other.pid) == -errno.EPERM
        assert transfer(nr, one, one.pid) == 4
        assert transfer(nr, root, other.pid) == 4
    advice = iovecs((BASE, PAGE_SIZE))
    assert one.call(Nr.PROCESS_MADVISE, other.pid, BASE, 1, Madv.COLD, 0, data=advice) == -errno.EACCES


def test_a_process_says_itself_whether_it_may_be_looked_into(dropped: list[Program]) -> None:
    """Source: Linux v6.8 kernel/sys.c: PR_SET_DUMPABLE."""
    one, other = dropped
    assert other.call(Nr.PRCTL, Pr.GET_DUMPABLE, 7) == 0
    assert other.call(Nr.PRCTL, Pr.SET_DUMPABLE, 2) == -errno.EINVAL
    assert other.call(Nr.PRCTL, Pr.SET_DUMPABLE, 1, 7) == 0
    assert other.call(Nr.PRCTL, Pr.GET_DUMPABLE) == 1
    assert transfer(Nr.PROCESS_VM_READV, one, other.pid) == 4
    assert read(one, "maps", other.pid) > 0
    assert other.call(Nr.PRCTL, Pr.SET_DUMPABLE, 0) == 0
    assert transfer(Nr.PROCESS_VM_READV, one, other.pid) == -errno.EPERM


def test_nor_looks_into_it(dropped: list[Program], root: Program) -> None:
    one, other = dropped
    for name in PUBLIC:
        assert read(one, name, other.pid) >= 0
    for name in PRIVATE:
        assert read(one, name, other.pid) == -errno.EACCES
        assert read(root, name, other.pid) > 0
    assert [stack_of(reader, other.pid) != 0 for reader in (one, other, root)] == [False, True, True]


def test_its_own_pagemap_is_the_superusers(dropped: list[Program]) -> None:
    """All that only the owner may open: of what is not dumpable root is the owner."""
    assert [name for name in (*PUBLIC, *PRIVATE) if read(dropped[0], name) < 0] == ["pagemap"]
    assert read(dropped[0], "pagemap") == -errno.EACCES


@pytest.mark.parametrize(("uid", "to"), [(ROOT, ROOT), (USER, USER)])
def test_who_stays_who_it_is_stays_dumpable(world: World, uid: int, to: int) -> None:
    one, other = world.attach(uid), world.attach(uid)
    for program in (one, other):
        program.mmap(1, at=BASE)
        assert program.call(Nr.SETUID, to) == 0
    assert transfer(TRANSFERS[0], one, other.pid) == 4
    assert read(one, "pagemap") > 0


def test_a_child_is_as_its_parent(world: World, dropped: list[Program], real_child: int) -> None:
    parent = world.attach(ROOT, pid=os.getpid())
    assert parent.call(Nr.SETUID, USER) == 0
    child = world.attach(USER, pid=real_child, token=parent.call(Nr.CLONE))
    assert read(dropped[0], "maps", child.pid) == -errno.EACCES


def execve(program: Program, path: Path) -> int:
    with path.open("rb") as file:
        return program.call(Nr.EXECVE, 1, 1, 1, data=b"x\0\0", fds=[file.fileno()])


@pytest.mark.parametrize(("mode", "code"), [(0o755, 0), (0o711, -errno.EACCES)])
def test_execve_makes_it_dumpable_unless_the_program_is_not_to_be_read(
    world: World, dropped: list[Program], tmp_path: Path, mode: int, code: int
) -> None:
    path = tmp_path / "program"
    path.write_bytes(STATIC.build())
    path.chmod(mode)
    one, other = dropped
    stranger = os.getuid() + 4321
    for program in (one, other):
        program.process.cred = Cred(stranger, stranger, superuser=False)
    assert execve(other, path) == 0
    assert min(read(one, "maps", other.pid), 0) == code


def test_reattached(world: World, real_child: int) -> None:
    """Who closes every connection and attaches again is who it was."""
    program = world.attach(ROOT, pid=real_child)
    assert program.call(Nr.SETUID, USER) == 0
    assert program.call(Nr.EXIT_GROUP) == 0
    world.kernel.take_ended()
    again = world.attach(ROOT, pid=real_child)
    assert read(again, "pagemap") == -errno.EACCES
