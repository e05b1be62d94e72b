"""A kernel for each test, which leaves no frame, no file and no descriptor; and real processes and files for it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.support.descriptors import leaves_no_descriptor
from tests.support.keyed_programs import either, without
from tests.support.program_fixtures import fd, program
from tests.support.programs import ROOT, Program, World

__all__ = ["either", "fd", "program", "without"]


@pytest.fixture
def world() -> Iterator[World]:
    with leaves_no_descriptor():
        made = World()
        yield made
        made.close()


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
