"""PTE_WRITEABLE of fall 2023, worked out for real processes from what the host says of their pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.referee.rights import sees_frames
from shared.uapi.shadowpt import Layout, SpteF23
from tests.c.host_tables import PAGE, START, opened
from tests.c.steps import Stepper
from tests.support.compiler import ROOT, build

PW = int(SpteF23.PTE_WRITEABLE)
MAPPED = int(SpteF23.PTE_MAPPED)
STEPS = [
    ("written", 0, True),
    ("child gone", 0, False),
    ("written again", 0, True),
    ("file read", 1, False),
    ("file written", 1, True),
    ("file on disk", 1, False),
    ("shared read", 2, True),
    ("private file read", 3, False),
    ("private file written", 3, True),
    ("read-only mapping read", 4, False),
]


def is_memory(path: Path) -> bool:
    """Whether files there are memory: nobody wants to know of the first write to such."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    holding = {Path(point): kind for _device, point, kind, *_rest in mounts if path.is_relative_to(point)}
    return holding[max(holding, key=lambda point: len(point.parts))] in ("tmpfs", "ramfs")


@pytest.mark.skipif(not sees_frames(), reason="which pages are shared, /proc tells the host's root alone")
def test_each_step(tmp_path: Path, daemon_socket: Path) -> None:
    if is_memory(tmp_path):
        pytest.skip(f"{tmp_path} is in memory: a file on a disk is wanted")
    program = build(tmp_path / "steps", [ROOT / "tests" / "c" / "writeable_steps.c"])
    with Stepper([program, tmp_path / "file"]) as target:
        assert target.line() == "ready\n"
        with opened(daemon_socket, target.process.pid, START, START + 5 * PAGE, Layout.F23) as table:
            for name, page, is_writeable in STEPS:
                assert target.step() == f"{name}\n"
                flags = table.flags()
                assert flags[page] & MAPPED, name
                assert bool(flags[page] & PW) == is_writeable, name
