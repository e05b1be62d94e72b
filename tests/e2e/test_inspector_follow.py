"""`inspector --follow` and `--also` beside a real kerneld: the window moves, and two processes at one moment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.actor import Me
from tests.support.client import Client
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon

RW, FIXED = int(Prot.READ | Prot.WRITE), int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
START, WINDOW = 0x10_0000_0000, 16 * PAGE_SIZE
ALLOCATED, MAPPED = 3, 7


def execve(me: Me, path: str) -> None:
    """Have the process get another program's memory, as the target does."""
    me.p.execve(path, [path], [])


def leave(me: Me) -> None:
    me.p.exit(0)


def is_there(client: Client, pid: int) -> bool:
    """Whether kerneld has a process."""
    try:
        client.p.read_proc(f"{pid}/stat")
    except OSError:
        return False
    return True


class Prints:
    """The prints of an inspector, one JSON object each."""

    def __init__(self, inspector: subprocess.Popen[str]) -> None:
        self._inspector = inspector

    def next(self) -> dict[str, Any]:
        """Return the next print."""
        assert self._inspector.stdout is not None
        line = self._inspector.stdout.readline()
        assert line, self._inspector.communicate(timeout=SECONDS)
        found: dict[str, Any] = json.loads(line)
        return found

    def moved(self) -> dict[str, Any]:
        """Return the next print that a change has led to, with what prints of the interval have told before."""
        changed: set[int] = set()
        while "moved" not in (found := self.next()):
            changed.update(found["changed"])
        return {**found, "changed": sorted({*found["changed"], *changed})}

    def changed(self) -> dict[str, Any]:
        """Return the next print in which something has changed."""
        while not (found := self.next())["changed"]:
            pass
        return found

    def ended(self) -> dict[str, Any]:
        """Return the next print of a process that has ended."""
        while not (found := self.next())["exited"]:
            pass
        return found


@contextmanager
def following(daemon: Daemon, *words: str) -> Iterator[tuple[subprocess.Popen[str], Prints]]:
    with daemon.program("inspector", *words, "--json", "--interval", "0.05") as inspector:
        try:
            yield inspector, Prints(inspector)
        finally:
            inspector.kill()


def flags(shown: dict[str, Any]) -> list[int]:
    return [entry["flags"] for entry in shown["entries"]]


def stop(inspector: subprocess.Popen[str]) -> str:
    """End it by Ctrl+C and return what it says."""
    inspector.send_signal(signal.SIGINT)
    _out, err = inspector.communicate(timeout=SECONDS)
    assert inspector.returncode == 0
    return err


def test_the_window_moves_to_each_change(daemon: Daemon, target: Client) -> None:
    with following(daemon, "--follow", str(target.pid)) as (inspector, prints):
        stack = prints.next()
        assert stack["pid"] == target.pid
        assert 3 in flags(stack)

        target.p.mmap(START, 4 * PAGE_SIZE, RW, FIXED)
        window = prints.moved()
        assert (window["start"], window["end"], window["moved"]) == (START, START + WINDOW, "mmap")
        # The first print of a window marks what has changed there, too.
        assert window["changed"] == [0, 1, 2, 3]
        target.p.mem.store_u8(START + PAGE_SIZE, 1)
        stored = prints.changed()
        assert (stored["start"], stored["changed"], flags(stored)[1]) == (START, [1], MAPPED)

        target.p.brk(int(target.p.brk(0)) + 4 * PAGE_SIZE)
        heap = prints.moved()
        assert heap["moved"] == "brk"
        assert len(heap["changed"]) == 4

        below = stack["start"] + flags(stack).index(3) * PAGE_SIZE - PAGE_SIZE
        target.p.mem.store_u8(below, 1)
        grown = prints.moved()
        assert grown["moved"] == f"store/fault@{below:#x}"
        assert grown["entries"][(below - grown["start"]) // PAGE_SIZE]["flags"] == MAPPED

        # What goes is seen in the window where it was, however much goes.
        target.p.munmap(START, 4 * PAGE_SIZE)
        gone = prints.moved()
        assert (gone["start"], gone["changed"], flags(gone)) == (START, [0, 1, 2, 3], [0] * 16)
        err = stop(inspector)
    assert "The window moves to [heap] of process" in err
    assert "The window moves to [stack] of process" in err
    assert err.endswith("The table is closed.\n")


def test_a_range_says_where_it_begins(daemon: Daemon, target: Client) -> None:
    with following(daemon, "--follow", str(target.pid), hex(START), "+8K") as (inspector, prints):
        first = prints.next()
        assert (first["start"], first["end"]) == (START, START + 2 * PAGE_SIZE)
        target.p.mmap(START, PAGE_SIZE, RW, FIXED)
        # The window has the change: it stays.
        assert prints.changed()["end"] == START + 2 * PAGE_SIZE
        stop(inspector)


def test_a_child_is_followed_and_left(daemon: Daemon, target: Client) -> None:
    target.p.mmap(START, 2 * PAGE_SIZE, RW, FIXED)
    target.p.mem.store(START, b"x" * 2 * PAGE_SIZE)
    with following(daemon, "--follow", str(target.pid), hex(START), "+64K") as (inspector, prints):
        frames = [entry["pfn"] for entry in prints.next()["entries"][:2]]
        child = target.fork()
        forked = prints.moved()
        assert (forked["pid"], forked["start"], forked["moved"]) == (child.pid, START, f"fork by {target.pid}")
        assert [entry["pfn"] for entry in forked["entries"][:2]] == frames

        child.p.mem.store_u8(START, 1)
        copied = prints.changed()
        assert (copied["pid"], copied["changed"]) == (child.pid, [0])
        assert copied["entries"][0]["pfn"] not in (0, frames[0])

        # The parent's own change brings the window back, and is marked there.
        target.p.mem.store_u8(START + PAGE_SIZE, 1)
        back = prints.moved()
        assert (back["pid"], back["changed"]) == (target.pid, [1])

        child.p.mem.store_u8(START + PAGE_SIZE, 2)
        child.p.munmap(START, PAGE_SIZE)
        assert prints.moved()["pid"] == child.pid
        child.post(leave)
        ended = prints.ended()
        assert (ended["pid"], set(flags(ended))) == (child.pid, {0})
        after = prints.moved()
        assert (after["pid"], after["moved"]) == (target.pid, f"process {child.pid} has ended")
        err = stop(inspector)
    assert f"process {child.pid}, child of {target.pid} (fork by {target.pid})" in err


def test_execve_shows_what_goes_and_the_new_image(daemon: Daemon, target: Client) -> None:
    path = os.path.realpath(shutil.which("true") or "/bin/true")
    target.p.mmap(START, 2 * PAGE_SIZE, RW, FIXED)
    with following(daemon, "--follow", str(target.pid), hex(START), "+64K") as (inspector, prints):
        assert flags(prints.next())[:2] == [ALLOCATED, ALLOCATED]
        target.run(execve, path)
        gone, image = prints.moved(), prints.moved()
        assert (gone["start"], gone["changed"], set(flags(gone))) == (START, [0, 1], {0})
        assert gone["moved"] == image["moved"] == f"execve of {path}"
        # A file's pages are allocated and not anonymous. All of them have come.
        there = [at for at, value in enumerate(flags(image)) if value]
        assert there == image["changed"] != []
        assert flags(image)[there[0]] & ALLOCATED == 1
        err = stop(inspector)
    assert f"The window stays: process {target.pid} (execve of {path})." in err
    assert f"The window moves to {path} of process {target.pid}" in err


def test_the_end_of_all_that_is_followed_ends_it(daemon: Daemon, target: Client) -> None:
    child = target.fork()
    with following(daemon, "--follow", str(child.pid)) as (inspector, prints):
        prints.next()
        grandchild = child.fork()
        assert prints.moved()["pid"] == grandchild.pid
        child.post(leave)
        while is_there(target, child.pid):
            prints.next()
        # The first process has ended, its child goes on.
        grandchild.p.mmap(START, PAGE_SIZE, RW, FIXED)
        assert prints.moved()["pid"] == grandchild.pid
        grandchild.post(leave)
        out, err = inspector.communicate(timeout=SECONDS)
    assert json.loads(out.splitlines()[-1])["exited"]
    assert inspector.returncode == 0
    told = [line for line in err.splitlines() if not line.startswith("The window moves to")]
    assert told == [f"Process {child.pid} has ended.", f"Process {child.pid} has exited.", "The table is closed."]


def test_there_is_one_table_at_a_time(daemon: Daemon, target: Client) -> None:
    with following(daemon, "--follow", str(target.pid)) as (inspector, prints):
        prints.next()
        with daemon.program("inspector", "--follow", str(target.pid), "--once") as second:
            assert second.wait(SECONDS) == 7
        # Two processes side by side take no table.
        with daemon.program("inspector", str(target.pid), "[stack]", "--also", str(target.pid), "--once") as both:
            assert both.wait(SECONDS) == 0
        stop(inspector)
    with daemon.program("inspector", "--follow", str(target.pid), "--once") as third:
        assert third.wait(SECONDS) == 0


@pytest.mark.parametrize("words", [("--follow", "{}"), ("{}", hex(START), "+4K", "--also", "{}")])
def test_a_process_that_makes_no_events(daemon: Daemon, words: tuple[str, ...]) -> None:
    with daemon.program("inspector", *(word.format(os.getpid()) for word in words)) as inspector:
        out, err = inspector.communicate(timeout=SECONDS)
    assert (inspector.returncode, out) == (5, "")
    assert f"kerneld has no process {os.getpid()}" in err
    assert "only a process of kerneld's makes events" in err


def test_parent_and_child_side_by_side(daemon: Daemon, target: Client) -> None:
    target.p.mmap(START, 4 * PAGE_SIZE, RW, FIXED)
    target.p.mem.store(START, b"x" * 2 * PAGE_SIZE)
    child = target.fork()
    words = (str(target.pid), hex(START), "+16K", "--also", str(child.pid))
    with following(daemon, *words) as (inspector, prints):
        one, other = prints.next()["processes"]
        assert (one["pid"], other["pid"]) == (target.pid, child.pid)
        assert one["entries"] == other["entries"]
        assert [entry["flags"] for entry in one["entries"]] == [MAPPED, MAPPED, ALLOCATED, ALLOCATED]

        child.p.mem.store_u8(START, 1)
        while not (both := prints.next()["processes"])[1]["changed"]:
            pass
        assert (both[0]["changed"], both[1]["changed"]) == ([], [0])
        assert both[0]["entries"][0]["pfn"] != both[1]["entries"][0]["pfn"]
        assert both[0]["entries"][1] == both[1]["entries"][1]

        child.post(leave)
        while not (both := prints.next()["processes"])[1]["exited"]:
            pass
        assert {entry["flags"] for entry in both[1]["entries"]} == {0}
        assert not both[0]["exited"]
        assert stop(inspector) == ""


def test_side_by_side_is_what_the_two_tables_say(daemon: Daemon, target: Client) -> None:
    target.p.mmap(START, 4 * PAGE_SIZE, RW, FIXED)
    target.p.mem.store(START, b"x" * 3 * PAGE_SIZE)
    child = target.fork()
    child.p.munmap(START, PAGE_SIZE)
    child.p.mem.store_u8(START + PAGE_SIZE, 1)
    tables = []
    for pid in (target.pid, child.pid):
        with daemon.program("inspector", str(pid), hex(START), "+16K", "--once", "--json") as one:
            tables.append(json.loads(one.communicate(timeout=SECONDS)[0])["entries"])
    words = (str(target.pid), hex(START), "+16K", "--also", str(child.pid), "--once")
    with daemon.program("inspector", *words, "--json") as both:
        shown = json.loads(both.communicate(timeout=SECONDS)[0])["processes"]
    assert [side["entries"] for side in shown] == tables
    with daemon.program("inspector", *words) as text:
        lines = text.communicate(timeout=SECONDS)[0].splitlines()
    assert f"pids {target.pid} and {child.pid}" in lines[0]
    assert [line.split()[:3] for line in lines[2:]] == [
        ["0x001000000000", "1", "page"],
        ["0x001000001000", "1", "page"],
        ["0x001000002000", "1", "page"],
        ["0x001000003000", "1", "page"],
    ]
    # No frame beside one; two frames; the same frame.
    assert [relation for line in lines[2:] for relation in line.split() if relation in "=/"] == ["/", "="]
