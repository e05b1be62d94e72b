"""`kerneld proc`: any part of a file, as it comes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.client import Process
from shared.failure import Status
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from tests.support import daemons
from tests.support.daemons import private_socket, running_daemon
from tests.support.patience import SECONDS

AT = 0x10_0000_0000
WORDS_AT = AT // PAGE_SIZE * 8
PAGES = 3


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a daemon that runs, and that this process is attached to: three pages at AT."""
    path = private_socket(tmp_path_factory.mktemp("run"))
    with running_daemon(path), Process.attach(str(path)) as process:
        process.mmap(AT, PAGES * PAGE_SIZE, 3, 0x100022)
        process.mem.touch(AT, PAGES * PAGE_SIZE, 1)  # type: ignore[arg-type]
        yield path


def _proc(path: Path, *words: str) -> bytes:
    done = subprocess.run(
        [*daemons.KERNELD, "proc", *words],
        env=daemons.environment(path),
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.mark.parametrize("file", ["pagemap", "smaps"])
@pytest.mark.parametrize("command", [["proc"], ["maps"]])
def test_a_file_comes_as_it_is_read(path: Path, file: str, command: list[str]) -> None:
    """A pagemap of 256 GiB never ends: its first bytes are there at once, and a reader that leaves ends it."""
    words = [*command, f"{os.getpid()}/{file}"] if command == ["proc"] else [*command, str(os.getpid())]
    with subprocess.Popen(
        [*daemons.KERNELD, *words], env=daemons.environment(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        first = os.read(done.stdout.fileno(), 100)
        done.stdout.close()
        assert (done.wait(SECONDS), done.stderr.read()) in [(Status.OK, b""), (Status.FAILED, b"")]
    assert first == bytes(100) if file == "pagemap" and command == ["proc"] else len(first) == 100


def test_a_part_of_a_file_may_begin_and_end_anywhere(path: Path) -> None:
    whole = _proc(path, f"{os.getpid()}/pagemap", "--offset", hex(WORDS_AT - 8), "--length", "40")
    words = [int.from_bytes(whole[at : at + 8], "little") for at in range(0, len(whole), 8)]
    assert [word >> 63 for word in words] == [0, 1, 1, 1, 0]
    for skip in (0, 1, 8):
        for length in (0, 7, 9):
            offset = str(WORDS_AT + skip)
            part = _proc(path, f"{os.getpid()}/pagemap", "--offset", offset, "--length", str(length))
            assert part == whole[8 + skip :][:length]


def test_a_part_of_text(path: Path) -> None:
    maps = _proc(path, f"{os.getpid()}/maps")
    assert _proc(path, f"{os.getpid()}/maps", "--offset", "5", "--length", "10") == maps[5:15]
    assert _proc(path, f"{os.getpid()}/maps", "--offset", "1G") == b""


def test_a_part_of_more_than_one_read(path: Path) -> None:
    offset, length = WORDS_AT - 131_072 - 3, 262_144 + 5
    part = _proc(path, f"{os.getpid()}/pagemap", "--offset", str(offset), "--length", str(length))
    assert len(part) == length
    assert part.count(0) < length - PAGES


def test_the_end_of_a_pagemap_is_the_end_of_user_space(path: Path) -> None:
    end = -(-TASK_SIZE // PAGE_SIZE) * 8
    assert len(_proc(path, f"{os.getpid()}/pagemap", "--offset", str(end - 12), "--length", "1M")) == 12
    assert _proc(path, f"{os.getpid()}/pagemap", "--offset", str(end), "--length", "1M") == b""
