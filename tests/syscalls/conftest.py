"""A kernel for each test, which leaves no frame, no file and no descriptor; and real processes and files for it."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.syscalls.world import ROOT, USER, Program, World


def open_descriptors() -> set[str]:
    """Return this process's descriptors, without the one that lists them."""
    return {name for name in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{name}")}


@pytest.fixture
def world() -> Iterator[World]:
    before = open_descriptors()
    made = World()
    yield made
    made.close()
    if not open_descriptors() <= before:
        gc.collect()  # The traceback of an error that was caught may hold a file.
    assert open_descriptors() <= before


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
