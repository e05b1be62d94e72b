"""Pages that a program inside takes without asking: whoever looks sees each at once, as it would be outside."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from shared.client import Process
from tests.native.conftest import NativeDaemon
from tests.native.host_maps import exceeding_pages
from tests.native.inside import Inside
from tests.native.processes import free_kb
from tests.support.client import Nursery

PAGE = 4096
PAGES = 128
STEPS = (1, 2, 3, 30, 1, 50, 41, 1, 1, 60, 66)
_PRESENT, _EXCLUSIVE, _FILE = 1 << 63, 1 << 56, 1 << 61


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pages"
    path.write_bytes(b"".join(bytes([number]) * PAGE for number in range(PAGES)))
    return path


class Touches:
    """The program touches.c inside."""

    def __init__(self, inside: Inside, program: Path, file: Path) -> None:
        self.process = inside.start([str(program), str(file)])
        assert self.process.stdout is not None
        pid, memory, mapped = self.process.stdout.readline().split()
        self.pid, self.starts = int(pid), (int(memory, 16), int(mapped, 16))

    def touch(self, count: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> str:
        return self.process.communicate()[0]


def own_pages(inspector: Process, program: Touches) -> int:
    """Return how many pages are the program's own: anonymous, and present."""
    count = 0
    for start in program.starts:
        data = inspector.procread(f"{program.pid}/pagemap", start // PAGE * 8, PAGES * 8)
        words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]
        count += sum(word & (_PRESENT | _FILE) == _PRESENT for word in words)
    return count


def faults(inspector: Process, pid: int) -> int:
    stat = inspector.read_proc(f"{pid}/stat").decode()
    return int(stat[stat.rindex(")") + 2 :].split()[7])


def test_each_page_is_seen_as_soon_as_it_is_written(
    inside: Inside, programs: dict[str, Path], inspector: Process, file: Path
) -> None:
    program = Touches(inside, programs["touches"], file)
    program.touch(0)
    before, done = faults(inspector, program.pid), 0
    for count in STEPS:
        program.touch(count)
        done += count
        assert own_pages(inspector, program) == done
        assert faults(inspector, program.pid) == before + done
        assert exceeding_pages(program.pid, inspector) == []
    assert done == 2 * PAGES
    # Its file size limit is 0: nothing that the stub does may meet that.
    assert program.end() == f"right: {2 * PAGES}\n"
    assert program.process.returncode == 0


def test_nobody_looks_and_all_is_there(
    inside: Inside, programs: dict[str, Path], inspector: Process, file: Path
) -> None:
    program = Touches(inside, programs["touches"], file)
    before = faults(inspector, program.pid)
    program.touch(2 * PAGES)
    assert own_pages(inspector, program) == 2 * PAGES
    assert 2 * PAGES <= faults(inspector, program.pid) - before < 2 * PAGES + 8
    assert program.end() == f"right: {2 * PAGES}\n"


def test_a_program_that_is_killed_leaves_no_frame(
    inside: Inside, programs: dict[str, Path], inspector: Process, file: Path
) -> None:
    inside.run([str(programs["touches"]), str(file)])  # Whose file stays in the page cache.
    before = free_kb(inspector)
    program = Touches(inside, programs["touches"], file)
    program.touch(2)
    os.kill(program.pid, signal.SIGKILL)
    program.process.wait()
    assert free_kb(inspector) == before


class CheckedDaemon(NativeDaemon):
    """It checks all invariants after each request, and what the host maps before each."""


def test_the_invariants_hold_meanwhile(
    tmp_path_factory: pytest.TempPathFactory, programs: dict[str, Path], file: Path
) -> None:
    nursery = Nursery()
    daemon = CheckedDaemon(tmp_path_factory.mktemp("c"), nursery, check_invariants=True)
    inside = Inside(daemon.environment)
    program = Touches(inside, programs["touches"], file)
    for count in STEPS:
        program.touch(count)
    assert program.end() == f"right: {2 * PAGES}\n"
    inside.close()
    daemon.close()
    nursery.close()
