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
    """The program touches.c or reads.c inside."""

    def __init__(self, inside: Inside, *words: object) -> None:
        self.process = inside.start([str(word) for word in words])
        assert self.process.stdout is not None
        pid, *starts = self.process.stdout.readline().split()
        self.pid, self.starts = int(pid), [int(start, 16) for start in starts]

    def touch(self, count: int) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> str:
        return self.process.communicate()[0]


def pagemap(inspector: Process, program: Touches, start: int) -> list[int]:
    data = inspector.procread(f"{program.pid}/pagemap", start // PAGE * 8, PAGES * 8)
    return [int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)]


def own_pages(inspector: Process, program: Touches) -> int:
    """Return how many pages are the program's own: anonymous, and present."""
    return sum(
        word & (_PRESENT | _FILE) == _PRESENT for start in program.starts for word in pagemap(inspector, program, start)
    )


def around(start: int, page: int) -> range:
    """Return the pages that a read fault maps, of a mapping of PAGES pages.

    Source: Linux v6.8 mm/memory.c:do_fault_around().
    """
    offset = (start // PAGE + page) % 512
    first = max(offset - offset % 16, offset - page)
    return range(first - offset + page, min(first + 16, 512, offset + PAGES - page) - offset + page)


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


@pytest.mark.parametrize("step", [1, 37])
@pytest.mark.parametrize("looks", [True, False])
def test_a_read_maps_the_pages_around_it(
    inside: Inside, programs: dict[str, Path], inspector: Process, file: Path, step: int, looks: bool
) -> None:
    """Whether somebody looks after each step or at the end, and the program takes all by itself."""
    reads = programs["reads"]
    first = Touches(inside, reads, step, file)
    first.touch(PAGES)  # The file is in the page cache now.
    assert first.end() == f"right: {PAGES}\n"
    program = Touches(inside, reads, step, file)
    (start,) = program.starts
    program.touch(0)
    before, expected, missed = faults(inspector, program.pid), set[int](), 0
    for page in (number * step % PAGES for number in range(PAGES)):
        if looks:
            program.touch(1)
        if page not in expected:
            missed += 1
            expected.update(around(start, page))
        if looks:
            there = {at for at, word in enumerate(pagemap(inspector, program, start)) if word & _PRESENT}
            assert there == expected
            assert faults(inspector, program.pid) == before + missed
    if not looks:
        program.touch(PAGES)
        assert faults(inspector, program.pid) == before + missed
    assert exceeding_pages(program.pid, inspector) == []
    assert program.end() == f"right: {PAGES}\n"
