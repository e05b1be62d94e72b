"""A real process of the host as a target: who may look, and what is said where the host offers less."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kerneld.shadowpt import host, pagemap
from kerneld.shadowpt.host import HostTarget, find_host_target
from kerneld.shadowpt.layout import F23, F24
from shared.uapi.page import PAGE_SIZE
from tests.support.descriptors import open_descriptors
from tests.support.rights import NOBODY, can_become_others

PR_SET_DUMPABLE = 4


@contextmanager
def child(uid: int, *, dumpable: bool) -> Iterator[int]:
    """A process of user and group `uid` that waits until it is killed; yields once it is what it should be."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        if uid != os.getuid():
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)
        os.write(writer, b"x")
        signal.pause()
        os._exit(1)
    os.read(reader, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def is_found(pid: int, uid: int, gid: int) -> bool:
    target = find_host_target(pid, uid, gid)
    if target is not None:
        target.close()
    return target is not None


def test_a_user_may_look_at_a_dumpable_process_of_ones_own_and_root_at_all() -> None:
    uid, gid = (NOBODY, NOBODY) if can_become_others() else (os.getuid(), os.getgid())
    if not uid:
        pytest.skip("root alone is here, and there is no other user to become")
    before = open_descriptors()
    with child(uid, dumpable=True) as pid:
        assert is_found(pid, uid, gid)
        assert not is_found(pid, uid + 1, gid)
        assert not is_found(pid, uid, gid + 1)
        assert is_found(pid, 0, 0)
    with child(uid, dumpable=False) as pid:
        assert not is_found(pid, uid, gid)
        # Root may, through a daemon that may.
        assert is_found(pid, 0, 0) is can_become_others()
    if can_become_others():
        assert not is_found(os.getpid(), uid, gid)
    assert open_descriptors() == before


@contextmanager
def memory(nr_pages: int) -> Iterator[tuple[int, mmap.mmap, HostTarget]]:
    """Fresh memory of this process, in pages of 4 KiB, and this process as a target."""
    target = find_host_target(os.getpid(), os.getuid(), os.getgid())
    assert target is not None
    mapped = mmap.mmap(-1, nr_pages * PAGE_SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_NOHUGEPAGE)
    try:
        yield ctypes.addressof(ctypes.c_char.from_buffer(mapped)), mapped, target
    finally:
        mapped.close()
        target.close()


@pytest.fixture(params=["scan", "pagemap alone", "no frame numbers", "neither"])
def hosts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Hosts that offer less, one by one; tells whether frame numbers may be seen."""
    if request.param in ("pagemap alone", "neither"):
        monkeypatch.setattr(pagemap, "_has_scan", lambda: False)
    if request.param in ("no frame numbers", "neither"):
        monkeypatch.setattr(host, "can_see_pfns", lambda: False)
        return False
    return pagemap.can_see_pfns()


def test_flags_are_right_whatever_the_host_offers(hosts: bool) -> None:
    with memory(64) as (start, mapped, target):
        touched = {0, 1, 5, 40, 63}
        for page in touched:
            mapped[page * PAGE_SIZE] = 1
        flags, pfns = target.describe(start, start + 64 * PAGE_SIZE, F24)
        assert flags.tolist() == [7 if page in touched else 3 for page in range(64)]
        assert target.hides_pfns is not hosts
        if hosts:
            assert {page for page in range(64) if pfns[page]} == touched
        flags, _pfns = target.describe(start, start + 64 * PAGE_SIZE, F23)
        assert flags.tolist() == [31 if page in touched else 7 for page in range(64)]
        # Nothing there, and beyond.
        assert target.describe(0, 2 * PAGE_SIZE, F24)[0].tolist() == [0, 0]


@pytest.mark.usefixtures("hosts")
def test_a_file_and_shared_memory_are_not_anonymous() -> None:
    with memory(1) as (_start, _mapped, target), mmap.mmap(-1, 2 * PAGE_SIZE) as shared:
        shared[0] = 1
        start = ctypes.addressof(ctypes.c_char.from_buffer(shared))
        assert target.describe(start, start + 2 * PAGE_SIZE, F24)[0].tolist() == [5, 1]
        assert target.describe(start, start + 2 * PAGE_SIZE, F23)[0].tolist() == [1 | 4 | 8 | 16, 1 | 4]


def test_a_process_that_has_gone_has_nothing() -> None:
    with child(os.getuid(), dumpable=True) as pid:
        target = find_host_target(pid, os.getuid(), os.getgid())
        assert target is not None
        assert target.is_alive()
    assert not target.is_alive()
    flags, pfns = target.describe(0x1000, 0x3000, F24)
    assert (flags.tolist(), pfns.tolist()) == ([0, 0], [0, 0])
    with pytest.raises(OSError, match=r"No such process|No such file"):
        target.read_page(0x1000)
    target.close()


def test_a_page_is_read_at_its_address() -> None:
    with memory(2) as (start, mapped, target):
        mapped[PAGE_SIZE : PAGE_SIZE + 5] = b"there"
        assert target.read_page(start + PAGE_SIZE)[:5] == b"there"
