"""The process that looks into real processes: asked, waited for by others, given up."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from kerneld.server import host_reader
from kerneld.server.host_reader import HostReader
from kerneld.shadowpt.asking import DirectReader, Pending
from kerneld.shadowpt.host_event import open_page_faults
from kerneld.shadowpt.host_look import Question, Want
from tests.server.fakes import open_fds
from tests.support.stuck_process import ADDRESS, StuckWorld, stuck_execve, stuck_process

PAGE = 4096
Reader = HostReader | DirectReader


@pytest.fixture
def epoll() -> Iterator[select.epoll]:
    with select.epoll() as epoll:
        yield epoll


@pytest.fixture
def reader(epoll: select.epoll) -> Iterator[HostReader]:
    reader = HostReader(epoll)
    yield reader
    reader.close()


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[StuckWorld]:
    with stuck_process(tmp_path) as world:
        world.get_stuck()
        yield world


def ask(reader: Reader, pid: int, want: Want = Want.MAPPED, start: int = 0, pages: int = 1) -> Pending:
    directory_fd = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
    try:
        return reader.ask(Question(pid, directory_fd, want, start, start + pages * PAGE))
    finally:
        os.close(directory_fd)


def until_over(reader: HostReader, epoll: select.epoll, pending: Pending) -> None:
    """Do what the loop does until an answer is there."""
    while not pending.is_over:
        if epoll.poll(reader.wait_seconds(None)):
            reader.receive()
        reader.tend()


def my_start() -> int:
    return int(Path("/proc/self/maps").read_text().split("-", 1)[0], 16)


@pytest.mark.parametrize("want", [Want.PRESENT, Want.MAPPED, Want.ENTRIES])
def test_it_sees_what_the_daemon_would(reader: HostReader, epoll: select.epoll, want: Want) -> None:
    pending = ask(reader, os.getpid(), want, my_start(), 64)
    assert not pending.is_over
    until_over(reader, epoll, pending)
    found = pending.result()
    assert found.mappings
    assert found == ask(DirectReader(), os.getpid(), want, my_start(), 64).result()


def test_it_reads_a_page(reader: HostReader, epoll: select.epoll) -> None:
    pending = ask(reader, os.getpid(), Want.CONTENTS, my_start())
    until_over(reader, epoll, pending)
    assert pending.result().data[:4] == b"\x7fELF"


def test_an_errno_is_the_hosts(reader: HostReader, epoll: select.epoll) -> None:
    pending = ask(reader, os.getpid(), Want.CONTENTS, 0)
    until_over(reader, epoll, pending)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        pending.result()


def test_many_are_answered_in_order(reader: HostReader, epoll: select.epoll) -> None:
    order: list[int] = []
    asked = [ask(reader, os.getpid(), start=my_start(), pages=number + 1) for number in range(20)]
    for number, pending in enumerate(asked):
        pending.on_over = lambda number=number: order.append(number)
    until_over(reader, epoll, asked[-1])
    assert order == list(range(20))
    assert [len(pending.result().data) for pending in asked] == [8 * (number + 1) for number in range(20)]


def test_who_does_not_answer_is_given_up_where_somebody_waits(
    reader: HostReader, epoll: select.epoll, stuck: StuckWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_reader, "ANSWER_SECONDS", 0.0)
    never = ask(reader, stuck.pid, start=ADDRESS)
    assert reader.wait_seconds(None) is None
    reader.tend()
    assert reader.is_busy
    monkeypatch.setattr(host_reader, "ANSWER_SECONDS", 60.0)
    behind = ask(reader, os.getpid(), start=my_start())
    assert reader.wait_seconds(None) == 0.0
    until_over(reader, epoll, behind)
    assert never.is_over
    with pytest.raises(TimeoutError):
        never.result()
    assert behind.result().mappings


def test_one_that_nobody_wants_any_more_makes_room(reader: HostReader, epoll: select.epoll, stuck: StuckWorld) -> None:
    never = ask(reader, stuck.pid, start=ADDRESS)
    behind, unwanted = ask(reader, os.getpid(), start=my_start()), ask(reader, os.getpid())
    reader.give_up(unwanted)
    reader.give_up(never)
    until_over(reader, epoll, behind)
    assert behind.result().mappings
    assert not reader.is_busy


def test_there_is_an_end_to_those_that_sleep(
    reader: HostReader, epoll: select.epoll, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_reader, "MAX_LOST", 0)
    with pytest.raises(BlockingIOError):
        ask(reader, os.getpid()).result()
    monkeypatch.undo()
    until_over(reader, epoll, ask(reader, os.getpid()))


def test_a_process_that_is_killed_is_replaced(reader: HostReader, epoll: select.epoll) -> None:
    until_over(reader, epoll, ask(reader, os.getpid()))
    os.kill(reader._pid, signal.SIGKILL)
    lost = ask(reader, os.getpid())
    until_over(reader, epoll, lost)
    with pytest.raises(OSError, match=r".*"):
        lost.result()
    again = ask(reader, os.getpid(), start=my_start())
    until_over(reader, epoll, again)
    assert again.result().mappings


def test_nothing_is_left(epoll: select.epoll, stuck: StuckWorld) -> None:
    before = open_fds()
    reader = HostReader(epoll)
    asked = [ask(reader, stuck.pid, start=ADDRESS), ask(reader, os.getpid())]
    pid = reader._pid
    reader.close()
    assert all(pending.is_over for pending in asked)
    assert open_fds() == before
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)
    assert not Path(f"/proc/{pid}").exists()


def can_hear_of_faults() -> bool:
    """Whether this host tells a process of page faults of its own user's."""
    try:
        os.close(open_page_faults(os.getpid()))
    except OSError:
        return False
    return True


hears_of_faults = pytest.mark.skipif(not can_hear_of_faults(), reason="this host tells nobody of page faults")


@hears_of_faults
def test_an_event_comes_with_the_answer(reader: HostReader, epoll: select.epoll) -> None:
    until_over(reader, epoll, ask(reader, os.getpid()))
    before = open_fds()
    pending, unread = (ask(reader, os.getpid(), Want.FAULTS, os.getpid()) for _ in range(2))
    until_over(reader, epoll, unread)
    event = pending.result().event
    assert event is not None
    fd = event.take()
    assert os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[perf_event]"
    assert event.take() == -1
    os.close(fd)
    del event, pending, unread
    assert open_fds() == before


@hears_of_faults
def test_an_event_that_nobody_wants_any_more_is_closed(reader: HostReader, epoll: select.epoll) -> None:
    until_over(reader, epoll, ask(reader, os.getpid()))
    before = open_fds()
    reader.give_up(ask(reader, os.getpid(), Want.FAULTS, os.getpid()))
    until_over(reader, epoll, ask(reader, os.getpid()))
    assert open_fds() == before


@hears_of_faults
def test_one_in_an_execve_that_does_not_end_has_no_event(
    reader: HostReader, epoll: select.epoll, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """perf_event_open waits for it, for ever: kernel/events/core.c, exec_update_lock."""
    monkeypatch.setattr(host_reader, "ANSWER_SECONDS", 0.0)
    with stuck_execve(tmp_path) as pid:
        never = ask(reader, pid, Want.FAULTS, pid)
        behind = ask(reader, os.getpid(), start=my_start())
        monkeypatch.setattr(host_reader, "ANSWER_SECONDS", 60.0)
        until_over(reader, epoll, behind)
        with pytest.raises(TimeoutError):
            never.result()
