"""A kernel that is traced, for each test; nothing of it is left after."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.syscalls.conftest import open_descriptors
from tests.syscalls.world import USER, Program
from tests.trace.world import TracedWorld


@pytest.fixture
def world() -> Iterator[TracedWorld]:
    before = open_descriptors()
    made = TracedWorld()
    yield made
    made.close()
    if not open_descriptors() <= before:
        gc.collect()  # The traceback of an error that was caught may hold one.
    assert open_descriptors() <= before


@pytest.fixture
def program(world: TracedWorld) -> Program:
    """A program of an ordinary user."""
    return world.attach(USER)
