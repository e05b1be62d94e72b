"""`kerneld walk`: the text of the kernel, and the addresses that it takes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.client import Process
from tests.support import daemons


def test_it_prints_what_the_process_reads_itself(path: Path) -> None:
    process = Process.attach(str(path))
    try:
        at = process.mmap(0, 8192, 3, 0x22)
        process.mem[at : at + 1] = b"x"
        own = process.read_proc(f"self/walk/{at:x}").decode()
        for word in (f"{at:x}", f"{at:#x}", f"{at:#X}"):
            assert daemons.kerneld(path, "walk", str(os.getpid()), word).stdout == own
        assert own.count("└") == 4
    finally:
        process.close()


@pytest.mark.parametrize("word", ["", "0x", "12g", "-1", "800000000000"])
def test_what_is_no_address_is_wrong_usage(path: Path, word: str) -> None:
    done = daemons.kerneld(path, "walk", str(os.getpid()), word)
    assert done.returncode == 2


def test_a_process_that_does_not_exist(path: Path) -> None:
    assert daemons.kerneld(path, "walk", "8388607", "1000").returncode == 5
