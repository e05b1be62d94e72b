"""What User-Mode Linux gets for the benchmark, and that small.c knows each call of the rows."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from bench.__main__ import ROWS
from bench.machine import Answering, compiled
from bench.small_calls import CASES
from bench.user_mode_linux import IMAGE, SWAP_BYTES, copy_image, make_swap


def test_a_swap_file_has_linuxs_header(tmp_path: Path) -> None:
    path = tmp_path / "swap"
    make_swap(path)
    header = path.read_bytes()[:4096]
    assert path.stat().st_size == SWAP_BYTES
    assert header.endswith(b"SWAPSPACE2")
    assert struct.unpack_from("<III", header, 1024) == (1, SWAP_BYTES // 4096 - 1, 0)
    assert path.stat().st_blocks * 512 < SWAP_BYTES


def test_an_image_comes_with_its_interpreter(tmp_path: Path) -> None:
    copy_image(tmp_path)
    with open(IMAGE, "rb") as file:
        segments = ELFFile(file).iter_segments()
        names = [segment.get_interp_name() for segment in segments if isinstance(segment, InterpSegment)]
    for path in [IMAGE, *names]:
        assert (tmp_path / path.lstrip("/")).read_bytes() == Path(path).read_bytes()


@pytest.mark.slow
def test_the_host_makes_each_call() -> None:
    """Only the page from swap may have no figure: most hosts have no swap."""
    with tempfile.TemporaryDirectory() as directory:
        host = Answering([compiled("small", directory, "-static")])
        try:
            took = {case.command: host.measure(case.command, 2) for case in CASES}
        finally:
            host.close()
    assert all(nanoseconds > 0 for command, nanoseconds in took.items() if command != "swap")
    assert {case.number for case in CASES} <= set(ROWS)
