"""The table in the caller's real memory: what `entries` may be, and what it is while open and after close.

Section of docs/abi.md: Shadow page table, the checks of `entries`, and close.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
from collections.abc import Callable

import pytest

from tests.e2e import scripts
from tests.e2e.watch import PAGE, START, Watch
from tests.support import raw
from tests.support.client import Client
from tests.support.watched_daemon import Daemon

PAGES = 400
"""Pages watched: a table of three pages."""
LENGTH = 3 * PAGE


def refuses(inspector: Client, target: Client, entries: int) -> bool:
    """Try to open a table at `entries`; whether that is EINVAL. One that opens is closed again."""
    data = struct.pack("<QQQ", START, START + PAGES * PAGE, entries)
    ret = inspector.p.syscall(raw.OPEN, target.pid, 0, 0, data=data)
    assert ret in (0, -errno.EINVAL)
    if ret == 0:
        inspector.p.syscall(raw.CLOSE)
    return bool(ret)


REFUSED: list[Callable[[Client], int]] = [
    lambda client: client.run(scripts.map_entries, LENGTH + PAGE) + 8,
    lambda client: client.run(scripts.map_entries, LENGTH + PAGE) + 1,
    lambda client: client.run(scripts.real_map, "too small"),
    lambda client: client.run(scripts.real_map, "first page written"),
    lambda client: client.run(scripts.real_map, "last page written"),
    lambda client: client.run(scripts.real_map, "first page read"),
    lambda client: client.run(scripts.real_map, "file"),
    lambda client: client.run(scripts.real_map, "private file"),
    lambda client: client.run(scripts.real_map, "two mappings"),
    lambda client: client.run(scripts.real_map, "hole"),
    lambda client: client.run(scripts.real_map, "unmapped"),
    lambda _client: 0,
    lambda _client: (1 << 64) - PAGE,
]


@pytest.mark.parametrize("case", range(len(REFUSED)))
def test_memory_that_will_not_do(inspector: Client, target: Client, case: int) -> None:
    assert refuses(inspector, target, REFUSED[case](inspector))
    # That was all that was wrong.
    assert not refuses(inspector, target, inspector.run(scripts.map_entries, LENGTH))


def test_memory_that_does(inspector: Client, target: Client) -> None:
    for kind in ("exact", "beside a written page", "merged of two", "read only", "none", "shared"):
        assert not refuses(inspector, target, inspector.run(scripts.real_map, kind)), kind


def test_a_view_made_before_open_shows_what_the_kernel_writes(inspector: Client, target: Client) -> None:
    # Watch makes a memoryview of the memory before it opens the table; here is a ctypes array too.
    watch = Watch(inspector, target)
    inspector.run(scripts.make_array, watch.entries, watch.pages)
    assert inspector.run(scripts.real_mapping, watch.entries) == "rw-p"
    watch.begin()
    target.p.mmap(START, 2 * PAGE, 3, 0x32)
    target.p.mem.touch(START, 1, 1)
    assert watch.letters() == "MA......"
    assert inspector.run(scripts.read_array)[0][2] == 7
    target.p.mem.touch(START + PAGE, 1, 1)
    assert watch.letters() == "MM......"
    assert [row[2] for row in inspector.run(scripts.read_array)] == [7, 7, 0, 0, 0, 0, 0, 0]
    inspector.p.shadowpt_close()


def test_a_table_that_is_not_started_holds_zeros(inspector: Client, target: Client) -> None:
    target.p.mmap(START, PAGE, 3, 0x32)
    watch = Watch(inspector, target).open()
    assert not any(inspector.run(scripts.read_view))
    target.p.mem.touch(START, 1, 1)
    assert not any(inspector.run(scripts.read_view))
    inspector.p.shadowpt_start()
    assert watch.letters() == "M......."
    inspector.p.shadowpt_close()


def test_the_rest_of_the_last_page_is_zero(inspector: Client, target: Client) -> None:
    Watch(inspector, target, pages=3).begin()
    view = inspector.run(scripts.read_view)
    assert any(view[: 3 * 24])
    assert not any(view[3 * 24 :])
    inspector.p.shadowpt_close()


@pytest.mark.parametrize("offset", [0, 100, PAGE - 1])
def test_a_write_to_the_table_is_a_real_sigsegv(inspector: Client, target: Client, offset: int) -> None:
    watch = Watch(inspector, target).begin()
    assert inspector.run(scripts.real_mapping, watch.entries).startswith("r--s")
    inspector.post(scripts.write_real, watch.entries + offset)
    assert inspector.wait() == -signal.SIGSEGV


def test_the_table_cannot_be_made_writable(inspector: Client, target: Client) -> None:
    watch = Watch(inspector, target).begin()
    assert inspector.run(scripts.protect_real, watch.entries, 3) == 13
    inspector.p.shadowpt_close()


@pytest.mark.parametrize(("prot", "perms"), [(3, "rw-p"), (1, "r--p"), (0, "---p"), (7, "rwxp")])
def test_after_close_it_is_fresh_memory_with_the_old_protection(
    inspector: Client, target: Client, prot: int, perms: str
) -> None:
    watch = Watch(inspector, target)
    watch.entries = inspector.run(scripts.map_entries, PAGE, prot)
    watch.begin()
    inspector.p.shadowpt_close()
    assert inspector.run(scripts.real_mapping, watch.entries) == perms
    if prot:
        assert inspector.run(scripts.read_real, watch.entries, PAGE) == b"\0" * PAGE
    if prot & 2:
        inspector.run(scripts.write_real, watch.entries, 77)
        assert inspector.run(scripts.read_real, watch.entries, 1) == b"\x4d"


def test_it_may_be_opened_again_at_the_same_place(inspector: Client, target: Client) -> None:
    watch = Watch(inspector, target)
    for _again in range(5):
        watch.begin()
        assert watch.letters() == "........"
        inspector.p.shadowpt_close()


def test_a_client_that_keeps_the_old_table_reads_zeros(daemon: Daemon, inspector: Client, target: Client) -> None:
    watch = Watch(inspector, target).begin()
    target.p.mmap(START, 8 * PAGE, 3, 0x32 | 0x8000)
    assert watch.letters() == "MMMMMMMM"
    # The raw request, without what the client library does after it: the kernel's table is still mapped.
    assert inspector.p.syscall(raw.CLOSE) == 0
    assert inspector.run(scripts.real_mapping, watch.entries).startswith("r--s")
    assert not any(inspector.run(scripts.read_view))
    other = daemon.client()
    later = Watch(other, target).begin()
    assert later.letters() == "MMMMMMMM"
    assert not any(inspector.run(scripts.read_view))
    other.p.shadowpt_close()


def test_closing_the_connection_puts_memory_back(inspector: Client, target: Client) -> None:
    watch = Watch(inspector, target).begin()
    inspector.p.close()
    assert inspector.run(scripts.real_mapping, watch.entries) == "rw-p"
    assert not any(inspector.run(scripts.read_view))


def test_the_descriptors_are_read_only(daemon: Daemon, target: Client) -> None:
    client = daemon.client()
    client.raw.attach(str(daemon.path))
    entries = client.run(scripts.map_entries, PAGE)
    reply = client.raw.call(raw.OPEN, target.pid, 0, 0, data=struct.pack("<QQQ", START, START + PAGE, entries))
    assert len(reply.fds) == 2
    for fd in reply.fds:
        assert client.run(scripts.write_ram, fd) == [9, 22, 13]
        assert os.readlink(f"/proc/{client.pid}/fd/{fd}").endswith("(deleted)")
    assert client.raw.call(raw.CLOSE).ret == 0
