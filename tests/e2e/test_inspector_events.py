"""`inspector --events` beside a real kerneld and a real target: each change of an entry, old, new and why."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.client import Client
from tests.support.patience import SECONDS
from tests.support.watched_daemon import Daemon

RW, FIXED = int(Prot.READ | Prot.WRITE), int(Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
START = 0x10_0000_0000
ALLOCATED, MAPPED = 3, 7


@contextmanager
def inspected(daemon: Daemon, target: Client, *options: str) -> Iterator[subprocess.Popen[str]]:
    """Yield an inspector of eight pages that has printed its table."""
    words = ["inspector", str(target.pid), hex(START), "+32K", "--events", *options]
    with daemon.program(*words) as inspector:
        try:
            assert inspector.stdout is not None
            assert f"{target.pid}" in inspector.stdout.readline()
            yield inspector
        finally:
            inspector.kill()


def changes(inspector: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    """Return the changes until the end, and what is said on stderr."""
    out, err = inspector.communicate(timeout=SECONDS)
    return [json.loads(line) for line in out.splitlines()], err


def short(change: dict[str, Any]) -> tuple[int, int, int, str]:
    return (change["vaddr"] - START) // PAGE_SIZE, change["old"]["flags"], change["new"]["flags"], change["cause"]


def test_every_change_has_its_cause(daemon: Daemon, target: Client) -> None:
    with inspected(daemon, target, "--json") as inspector:
        target.p.mmap(START, 2 * PAGE_SIZE, RW, FIXED)
        target.p.mem.store_u8(START + 5, 1)
        target.p.munmap(START, PAGE_SIZE)
        target.post(_exit)
        told, err = changes(inspector)
    at = f"{START + 5:#x}"
    assert [short(change) for change in told] == [
        (0, 0, ALLOCATED, "mmap"),
        (1, 0, ALLOCATED, "mmap"),
        (0, ALLOCATED, MAPPED, f"store/fault@{at}"),
        (0, MAPPED, 0, "munmap"),
        (1, ALLOCATED, 0, told[-1]["cause"]),
    ]
    assert "exit" in told[-1]["cause"]
    assert told[3]["old"]["pfn"] == told[2]["new"]["pfn"] > 1
    assert {change["by"] for change in told} == {target.pid}
    assert err.splitlines() == [
        f"Process {target.pid} has exited.",
        "5 changes of entries, 0 events lost. The table is closed.",
    ]
    assert inspector.returncode == 0


def _exit(me: object) -> None:
    me.p.exit(0)  # type: ignore[attr-defined]


def test_ctrl_c_closes_the_table(daemon: Daemon, target: Client) -> None:
    target.p.mmap(START, 8 * PAGE_SIZE, RW, FIXED)
    with inspected(daemon, target) as inspector:
        assert inspector.stdout is not None
        inspector.stdout.readline()
        target.p.munmap(START + PAGE_SIZE, 2 * PAGE_SIZE)
        line = inspector.stdout.readline()
        assert "- 0x001000001000-0x001000003000  2 pages  pfn -  allocated anonymous -> -  (munmap)" in line
        inspector.send_signal(signal.SIGINT)
        out, err = inspector.communicate(timeout=SECONDS)
    assert (inspector.returncode, err) == (0, "")
    assert out == "2 changes of entries, 0 events lost. The table is closed.\n"
    # The next one finds nothing open.
    with inspected(daemon, target, "--all") as again:
        again.send_signal(signal.SIGTERM)
        again.communicate(timeout=SECONDS)
    assert again.returncode == 0


def test_changes_replayed_are_the_table(daemon: Daemon, target: Client) -> None:
    """A table that follows the events alone is the one that a second look shows."""
    with inspected(daemon, target, "--json") as inspector:
        target.p.mmap(START, 8 * PAGE_SIZE, RW, FIXED)
        target.p.mem.store(START, b"x" * 6 * PAGE_SIZE)
        target.p.mem.load(START + 6 * PAGE_SIZE, 1)
        target.p.mprotect(START, PAGE_SIZE, 0)
        target.p.madvise(START + PAGE_SIZE, PAGE_SIZE, 4)
        with target.fork():
            target.p.mem.store_u8(START + 2 * PAGE_SIZE, 1)
        target.p.mremap(START + 3 * PAGE_SIZE, PAGE_SIZE, PAGE_SIZE, 3, START + 7 * PAGE_SIZE)
        target.p.munmap(START + 5 * PAGE_SIZE, PAGE_SIZE)
        inspector.send_signal(signal.SIGINT)
        told, _err = changes(inspector)
    replayed = {START + number * PAGE_SIZE: {"pfn": 0, "flags": 0} for number in range(8)}
    for change in told:
        assert replayed[change["vaddr"]] == change["old"]
        replayed[change["vaddr"]] = change["new"]
    with daemon.program("inspector", str(target.pid), hex(START), "+32K", "--once", "--json") as second:
        out, _err = second.communicate(timeout=SECONDS)
    shown = {entry["vaddr"]: {"pfn": entry["pfn"], "flags": entry["flags"]} for entry in json.loads(out)["entries"]}
    assert replayed == shown


def test_busy_says_who_has_the_table(daemon: Daemon, target: Client) -> None:
    with daemon.program("inspector", str(target.pid), hex(START), "+32K") as first:
        assert first.stdout is not None
        first.stdout.readline()
        with daemon.program("inspector", str(target.pid), hex(START), "+4K", "--once") as second:
            out, err = second.communicate(timeout=SECONDS)
        assert (second.returncode, out) == (7, "")
        assert err == (
            f"inspector: busy: process {first.pid} (inspector) has a table open, of process {target.pid}; "
            "there is one at a time\n"
        )
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=SECONDS)


def test_a_real_process_of_the_host(daemon: Daemon) -> None:
    """Of a program that is none of kerneld's: the look that found the change is its cause."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as cat:
        first = Path(f"/proc/{cat.pid}/maps").read_text()
        start = int(first.split("-")[0], 16)
        with daemon.program("inspector", str(cat.pid), hex(start), "+4K", "--events", "--json") as inspector:
            assert inspector.stdout is not None
            assert json.loads(inspector.stdout.readline())["pid"] == cat.pid
            assert cat.stdin is not None
            cat.stdin.close()
            cat.wait(SECONDS)
            told, err = changes(inspector)
    assert err.splitlines()[-2] == f"Process {cat.pid} has exited."
    assert told[-1]["new"]["flags"] == 0
    assert told[-1]["cause"] == "refresh"
