"""A record in plain text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inspector.failure import InspectorStatus
from inspector.viewing import Moments, show_replay
from shared.failure import Failure, Status
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import page
from tests.support.recorded import recorded
from tests.support.traced import TracedWorld


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """A record: a process named <script> maps, stores, and ends. Its path and the pid."""
    world = TracedWorld()
    with recorded(world) as record:
        program = world.attach(pid=os.getpid())
        program.process.comm = "<script>\x1b[2J"
        world.tracing.note_process(program.process)
        program.mmap(8, at=page(0))
        program.touch(0, 4)
        program.call(Nr.MUNMAP, page(0), PAGE_SIZE)
        program.call(Nr.BRK, program.mm.brk + PAGE_SIZE)
        program.call(Nr.EXIT_GROUP, 0)
        data = record.file()
    world.close()
    path = tmp_path_factory.mktemp("replay") / "a.kdrecord"
    path.write_bytes(data)
    return str(path), os.getpid()


def shown(
    capsys: pytest.CaptureFixture[str], path: str, pid: int | None = None, start: str | None = None,
    end: str | None = None, **moments: object,
) -> str:  # fmt: skip
    capsys.readouterr()
    show_replay(path, pid, start, end, Moments(**moments))  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_what_is_in_a_record(made: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    path, pid = made
    said = shown(capsys, path)
    assert f"{pid:>9}" in said
    assert "<script>?[2J  (has exited)" in said


def test_a_process_at_a_moment(made: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    path, pid = made
    with pytest.raises(Failure, match="has exited by then") as failed:
        shown(capsys, path, pid)
    assert failed.value.status == Status.NO_PROCESS
    changes = shown(capsys, path, pid, hex(page(0)), "+32K")
    assert "(munmap)" in changes
    last = min(int(line.split()[0]) for line in changes.splitlines() if "(exit_group" in line) - 1
    said = shown(capsys, path, pid, at=last)
    assert f"{page(1):#014x}-{page(8):#014x} rw-p       7 pages       3 mapped" in said
    with pytest.raises(Failure, match="no mapping called") as failed:
        shown(capsys, path, pid, "[nothing]", at=last)
    assert failed.value.status == InspectorStatus.NO_MAPPING
    assert "no entry" in shown(capsys, path, pid, "[stack]", at=last)


def test_what_happened_to_a_range(made: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    path, pid = made
    lines = shown(capsys, path, pid, hex(page(0)), "+8K").splitlines()
    gone = [line for line in lines if "(munmap)" in line]
    assert len(gone) == 1
    assert f"- {page(0):#014x}" in gone[0]
    came = [line for line in lines if "  + " in line]
    assert [line.split()[3] for line in came] == [f"{page(0):#014x}", f"{page(1):#014x}"]
    frame = came[0].split("-> pfn ")[1].split()[0]
    history = shown(capsys, path, frame=int(frame, 16))
    assert "kmem:mm_page_alloc" in history
    assert "kmem:mm_page_free" in history


def test_two_moments_compared(made: tuple[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    path, pid = made
    lines = shown(capsys, path, pid, hex(page(0)), "+32K").splitlines()
    numbers = [int(line.split()[0]) for line in lines if "  + " in line]
    gone = next(int(line.split()[0]) for line in lines if "  - " in line)
    said = shown(capsys, path, pid, compare=(numbers[0], gone))
    assert f"+ {page(0):#014x}" in said
    said = shown(capsys, path, pid, compare=(gone, gone + 1))
    assert f"- {page(0):#014x}-{page(1):#014x}       1 page " in said


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"kdrecord\x01\0\0\0\xff\xff\xff\xff"])
def test_what_is_no_record_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    with pytest.raises(Failure):
        show_replay(str(path), None, None, None, Moments())
    with pytest.raises(Failure, match="No such file"):
        show_replay(str(tmp_path / "none"), None, None, None, Moments())
