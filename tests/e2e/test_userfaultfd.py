"""userfaultfd(2) between the threads of a client: who waits, who gives, and what ends a wait."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.client.process import Process
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.userfaultfd import API, COPY, REGISTER, UFFD_API, UFFD_MSG_BYTES, RegisterMode, Uffdio
from tests.support import raw
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon

RW = Prot.READ | Prot.WRITE


class Watched:
    """This process as a client, with a page that its userfaultfd watches, and a page to give."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.process = Process.attach(self.path)
        flags = Map.PRIVATE | Map.ANONYMOUS
        self.page = self.process.mmap(0, PAGE_SIZE, RW, flags)
        self.given = self.process.mmap(0, PAGE_SIZE, RW, flags | Map.NORESERVE)
        self.process.mem.store(self.given, b"given")
        self.fd = self.process.userfaultfd(os.O_NONBLOCK)
        assert self.process.ioctl(self.fd, Uffdio.API, API.pack(UFFD_API, 0, 0))[0] == 0
        mode = RegisterMode.MISSING
        assert self.process.ioctl(self.fd, Uffdio.REGISTER, REGISTER.pack(self.page, PAGE_SIZE, mode, 0))[0] == 0
        self._ready = select.poll()
        self._ready.register(self.fd, select.POLLIN)
        self.loaded = b""

    def is_asked(self, timeout_seconds: float = 0) -> bool:
        """Return whether a message is there, or comes in time."""
        return bool(self._ready.poll(timeout_seconds * 1000))

    def start_load(self) -> threading.Thread:
        """Load from the watched page in another thread, which has asked for it on return."""

        def load() -> None:
            with Process.attach(self.path, threading.get_native_id()) as waiter:
                self.loaded = waiter.mem.load(self.page, 5)

        thread = threading.Thread(target=load)
        thread.start()
        assert self.is_asked(SECONDS)
        return thread


@pytest.fixture
def watched(daemon: Daemon) -> Iterator[Watched]:
    watched = Watched(daemon.path)
    yield watched
    watched.process.close()


def test_a_load_waits_until_another_thread_gives_the_page(watched: Watched) -> None:
    thread = watched.start_load()
    assert len(os.read(watched.fd, 2 * UFFD_MSG_BYTES)) == UFFD_MSG_BYTES
    ret, record = watched.process.ioctl(
        watched.fd, Uffdio.COPY, COPY.pack(watched.page, watched.given, PAGE_SIZE, 0, 0)
    )
    assert (ret, COPY.unpack(record)[-1]) == (0, PAGE_SIZE)
    thread.join()
    assert watched.loaded == b"given"
    os.close(watched.fd)


def test_the_last_close_ends_the_wait(watched: Watched) -> None:
    thread = watched.start_load()
    os.close(watched.fd)
    thread.join()
    assert watched.loaded == bytes(5)


def test_the_end_of_a_connection_ends_its_wait(watched: Watched) -> None:
    """Nobody reads a message of it any more."""
    may_go = threading.Event()

    def wait_and_go() -> None:
        waiter = raw.RawThread()
        waiter.attach(watched.path, threading.get_native_id())
        waiter.send(raw.pack(raw.LOAD, watched.page, 1))
        may_go.wait(SECONDS)
        waiter.close()

    assert not watched.is_asked()
    thread = threading.Thread(target=wait_and_go)
    thread.start()
    assert watched.is_asked(SECONDS)
    may_go.set()
    thread.join()
    for _ in range(2):
        watched.process.getpid()
    assert not watched.is_asked()
    os.close(watched.fd)
