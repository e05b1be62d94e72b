"""A kernel for each test, which leaves no frame, no file and no descriptor; and real processes and files for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.descriptors import leaves_no_descriptor
from tests.support.programs import ROOT, USER, Program, World


@pytest.fixture
def world() -> Iterator[World]:
    with leaves_no_descriptor():
        made = World()
        yield made
        made.close()


@pytest.fixture
def program(world: World) -> Program:
    """A program of an ordinary user."""
    return world.attach(USER)


@pytest.fixture
def root(world: World) -> Program:
    return world.attach(ROOT)


@pytest.fixture
def real_child() -> Iterator[int]:
    """The pid of a real child of this process, which lives until the test is over."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as process:
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a real file of two pages of "x", open for reading and writing."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 8192)
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)
