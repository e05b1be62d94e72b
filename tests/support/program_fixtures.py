"""A program of the kernel that a test has, and a file for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import USER, Program, World


@pytest.fixture
def program(world: World) -> Program:
    """A program of an ordinary user."""
    return world.attach(USER)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a real file of two pages of "x", open for reading and writing."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8192)
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)
