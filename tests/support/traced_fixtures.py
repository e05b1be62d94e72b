"""A kernel that is traced, for each test; nothing of it is left after."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.descriptors import leaves_no_descriptor
from tests.support.programs import USER, Program
from tests.support.traced import TracedWorld


@pytest.fixture
def world() -> Iterator[TracedWorld]:
    with leaves_no_descriptor():
        made = TracedWorld()
        yield made
        made.close()


@pytest.fixture
def program(world: TracedWorld) -> Program:
    """A program of an ordinary user."""
    return world.attach(USER)


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a real file of two pages, open for reading and writing."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8192)
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)
