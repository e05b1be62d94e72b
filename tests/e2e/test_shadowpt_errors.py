"""Every errno of the shadow table's calls, and which of two wins.

Section of docs/abi.md: Shadow page table, the order of the checks of shadowpt_open.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest

from tests.e2e import scripts
from tests.e2e.raw_session import attach
from tests.e2e.watch import PAGE, START, Watch, table_bytes
from tests.support import raw
from tests.support.client import Client
from tests.support.watched_daemon import Daemon

MAX_RANGE = 0x80_0000
USER_END = 0x7FFF_FFFF_F000
NOBODY = 1 << 22


def open_errno(client: Client, pid: int, start: int, end: int, entries: int, layout: int = 0) -> int:
    """Try to open by a raw call; return 0 or the errno."""
    data = struct.pack("<QQQ", start, end, entries)
    return -int(client.raw.call(raw.OPEN, pid, 0, layout, data=data).ret)


@pytest.fixture
def caller(daemon: Daemon) -> Client:
    return attach(daemon)


@pytest.fixture
def entries(caller: Client) -> int:
    return caller.run(scripts.map_entries, table_bytes(2048))


@pytest.fixture
def busy(daemon: Daemon, target: Client) -> Iterator[Client]:
    """Somebody else who has a table open."""
    other = daemon.client()
    Watch(other, target).begin()
    yield other
    other.p.shadowpt_close()


def drop(client: Client) -> None:
    assert client.raw.call(raw.SETUID, 1000).ret == 0


BAD_RANGES = [
    (START, START),
    (START + PAGE, START),
    (START + 1, START + PAGE),
    (START, START + PAGE + 1),
    (USER_END, USER_END + PAGE),
    (USER_END - PAGE, USER_END + 4 * PAGE),
    (0, 0),
    ((1 << 64) - PAGE, 0),
]


@pytest.mark.parametrize(("start", "end"), BAD_RANGES)
def test_a_range_that_is_none(caller: Client, target: Client, entries: int, start: int, end: int) -> None:
    assert open_errno(caller, target.pid, start, end, entries) == errno.EINVAL


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, PAGE),
        (USER_END - PAGE, USER_END),
        (0, USER_END),
        # What is cut is no longer beyond the end.
        (0, USER_END + PAGE),
        (START, (1 << 64) - PAGE),
    ],
)
def test_the_first_page_the_last_and_all(caller: Client, target: Client, entries: int, start: int, end: int) -> None:
    assert open_errno(caller, target.pid, start, end, entries) == 0
    assert caller.raw.call(raw.CLOSE).ret == 0


def test_no_such_target(daemon: Daemon, caller: Client, target: Client, entries: int) -> None:
    unattached = daemon.client()
    thread = target.run(scripts.start_thread)
    assert target.raw.attach(str(daemon.path), thread) == target.pid
    for pid in (0, NOBODY, unattached.pid, os.getpid(), thread, thread | 1 << 32, (1 << 64) - 1):
        assert open_errno(caller, pid, START, START + PAGE, entries) == errno.EINVAL
    target.run(scripts.end_thread)


def test_a_target_is_a_pid_t(caller: Client, target: Client, entries: int) -> None:
    """What stands in the upper half of the word is no matter, as in Linux's calls."""
    assert open_errno(caller, target.pid | 1 << 32, START, START + PAGE, entries) == 0
    assert caller.raw.call(raw.CLOSE).ret == 0


def test_a_target_that_has_ended(daemon: Daemon, caller: Client, target: Client, entries: int) -> None:
    target.kill()
    assert open_errno(caller, target.pid, START, START + PAGE, entries) == errno.EINVAL


def test_an_unknown_layout(caller: Client, target: Client, entries: int) -> None:
    assert open_errno(caller, target.pid, START, START + PAGE, entries, layout=1 << 31) == errno.EINVAL
    assert open_errno(caller, target.pid, START, START + PAGE, entries) == 0
    assert caller.raw.call(raw.CLOSE).ret == 0


@pytest.mark.parametrize(("start", "end"), [(START, START + PAGE), *BAD_RANGES[:2]])
@pytest.mark.parametrize("pid_is_good", [True, False])
@pytest.mark.parametrize("layout", [0, 1])
def test_permission_comes_first(
    caller: Client, busy: Client, start: int, end: int, pid_is_good: bool, layout: int
) -> None:
    drop(caller)
    pid = busy.pid if pid_is_good else NOBODY
    assert open_errno(caller, pid, start, end, 1, layout) == errno.EPERM


@pytest.mark.parametrize(("start", "end"), BAD_RANGES)
def test_a_bad_range_comes_before_busy(
    caller: Client, busy: Client, target: Client, entries: int, start: int, end: int
) -> None:
    assert open_errno(caller, target.pid, start, end, entries) == errno.EINVAL


@pytest.mark.usefixtures("busy")
def test_no_target_comes_before_busy(caller: Client, entries: int) -> None:
    assert open_errno(caller, NOBODY, START, START + PAGE, entries) == errno.EINVAL


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("bad_entries", [0, 1, PAGE])
def test_busy_comes_before_bad_entries(caller: Client, target: Client, bad_entries: int) -> None:
    assert open_errno(caller, target.pid, START, START + PAGE, bad_entries) == errno.EBUSY


def test_busy_for_the_opener_itself(busy: Client, target: Client) -> None:
    with pytest.raises(OSError, match=r"\[Errno 16\]"):
        Watch(busy, target, START + 64 * PAGE).open()


def test_a_long_range_is_cut_at_its_end(caller: Client, target: Client) -> None:
    # The memory is just enough for what is left after the cut: the cut comes before the check of entries.
    entries = caller.run(scripts.map_entries, table_bytes(2048))
    data = struct.pack("<QQQ", START, START + MAX_RANGE + PAGE, entries)
    reply = caller.raw.call(raw.OPEN, target.pid, 0, 0, data=data)
    assert reply.ret == 0
    assert struct.unpack("<QQQ", reply.data) == (START, START + MAX_RANGE, entries)
    assert len(reply.fds) == 2
    assert caller.raw.call(raw.CLOSE).ret == 0
    data = struct.pack("<QQQ", START, START + MAX_RANGE, entries)
    reply = caller.raw.call(raw.OPEN, target.pid, 0, 0, data=data)
    assert (reply.ret, reply.data) == (0, data)
    assert caller.raw.call(raw.CLOSE).ret == 0


@pytest.mark.parametrize("nr", [raw.CLOSE, raw.START, raw.STOP])
@pytest.mark.parametrize("is_superuser", [True, False])
def test_no_table_is_open(caller: Client, nr: int, is_superuser: bool) -> None:
    if not is_superuser:
        drop(caller)
    assert caller.raw.call(nr).ret == -errno.EINVAL


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("nr", [raw.CLOSE, raw.START, raw.STOP])
@pytest.mark.parametrize("is_superuser", [True, False])
def test_the_table_is_anothers(caller: Client, nr: int, is_superuser: bool) -> None:
    if not is_superuser:
        drop(caller)
    assert caller.raw.call(nr).ret == -errno.EPERM


def test_a_forked_child_is_not_the_opener(inspector: Client, target: Client) -> None:
    Watch(inspector, target).begin()
    child = inspector.fork()
    for call in (child.p.shadowpt_close, child.p.shadowpt_start, child.p.shadowpt_stop):
        with pytest.raises(PermissionError):
            call()
    inspector.p.shadowpt_close()


def test_any_thread_of_the_opener_may(daemon: Daemon, inspector: Client, target: Client) -> None:
    Watch(inspector, target).begin()
    assert inspector.raw.attach(str(daemon.path), inspector.run(scripts.start_thread)) == inspector.pid
    for nr in (raw.STOP, raw.START, raw.CLOSE):
        assert inspector.raw.call(nr).ret == 0
    # What the raw close has left mapped is still the kernel's: not for another table, until it is made private again.
    Watch(inspector, target).open()
    inspector.p.shadowpt_close()
    inspector.run(scripts.end_thread)


def test_page_contents_and_its_errors(daemon: Daemon, caller: Client, inspector: Client, target: Client) -> None:
    assert caller.raw.call(raw.PAGE_CONTENTS, 1, 0).ret == -errno.EINVAL
    watch = Watch(inspector, target)
    target.p.mmap(START, 9 * PAGE, 3, 0x32)
    target.p.mem.store(START, b"first page")
    target.p.mem.store(START + 8 * PAGE, b"outside")
    outside = target.run(scripts.own_pages, START + 8 * PAGE, 1)[0][1]
    pfn = target.run(scripts.own_pages, START, 1)[0][1]
    watch.open()
    # Tracking or not, any superuser.
    for _started in range(2):
        reply = caller.raw.call(raw.PAGE_CONTENTS, pfn, 0)
        assert (reply.ret, reply.data) == (0, b"first page".ljust(PAGE, b"\0"))
        for bad in (0, outside, 1 << 40, (1 << 64) - 1):
            assert caller.raw.call(raw.PAGE_CONTENTS, bad, 0).ret == -errno.EINVAL
        inspector.p.shadowpt_start()
    target.p.munmap(START, PAGE)
    assert caller.raw.call(raw.PAGE_CONTENTS, pfn, 0).ret == -errno.EINVAL
    drop(caller)
    assert caller.raw.call(raw.PAGE_CONTENTS, pfn, 0).ret == -errno.EPERM
    inspector.p.shadowpt_close()
    assert caller.raw.call(raw.PAGE_CONTENTS, pfn, 0).ret == -errno.EPERM


def test_a_call_that_fails_changes_nothing(caller: Client, target: Client, inspector: Client) -> None:
    watch = Watch(inspector, target).begin()
    before = watch.rows()
    assert open_errno(caller, target.pid, START, START + PAGE, 0) == errno.EBUSY
    assert caller.raw.call(raw.CLOSE).ret == -errno.EPERM
    assert watch.rows() == before
    target.p.mmap(START, PAGE, 3, 0x32)
    assert watch.letters() == "A......."
    inspector.p.shadowpt_close()
