"""Two gradings on one host do not get the same user: what one sweeps up is not the other's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kerneld.commands.grade.cell.isolation import Walls
from kerneld.commands.grade.cell.room import Room
from kerneld.commands.grade.grading import USERS, _own_user, can_build, find_walls
from kerneld.commands.grade.limits import Limits
from tests.support.compiler import ROOT
from tests.support.rights import needs_another_user


@needs_another_user
def test_a_user_is_taken_until_it_is_given_back() -> None:
    with _own_user(Walls(user=True)) as first, _own_user(Walls(user=True)) as second:
        assert first != second
        assert {first, second} <= set(USERS)
    with _own_user(Walls(user=True)) as third:
        assert third is not None
        assert third in USERS


@pytest.mark.parametrize("walls", [Walls(), Walls(processes=True, files=True, network=True)])
def test_without_that_wall_there_is_no_other_user(walls: Walls) -> None:
    with _own_user(walls) as uid:
        assert uid is None


@pytest.mark.parametrize("walls", [Walls(), pytest.param(Walls(user=True), marks=needs_another_user)])
def test_walls_are_tried_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walls: Walls) -> None:
    """Where a host has no mount namespace, a second trial must not find what the first has left."""
    monkeypatch.chdir(tmp_path)
    assert can_build(walls)
    assert can_build(walls)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("uid", [None, pytest.param(USERS[0], marks=needs_another_user)])
def test_whether_a_fork_bomb_can_be_stopped_is_tried(tmp_path: Path, uid: int | None) -> None:
    """Linux limits the processes of every user but the machine's superuser."""
    room = Room(tmp_path, uid, Walls(user=uid is not None), Limits(), time.monotonic() + 60, has_own_count=True)
    if uid is None and Path("/proc/self/uid_map").read_text().split() != ["0", "0", str(2**32 - 1)]:
        pytest.skip("whether this root is the machine's superuser outside of its namespace cannot be seen")
    assert room.is_counted() == (uid is not None)
    assert not replace(room, has_own_count=False).is_counted()


@pytest.mark.skipif(os.geteuid() == 0, reason="root has another user instead")
def test_an_ordinary_user_is_counted_in_a_namespace_of_its_own() -> None:
    walls = find_walls()
    assert walls.limit == (walls.files or walls.network)


def test_the_checkout_of_an_editable_installation_stays_visible() -> None:
    """An import hook finds it there, and no directory in sys.path has it."""
    code = (
        "import sys; from kerneld.commands.grade.cell import isolation; "
        "sys.path = [path for path in sys.path if path.startswith(sys.base_prefix)]; "
        "print(*isolation.python_directories(), sep='\\n')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert str(ROOT) in shown.stdout.splitlines()
