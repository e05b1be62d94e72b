"""Fixtures of the tests of kerneld.fs: no machine leaves a frame, a file or a descriptor behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.fs.world import World
from tests.support.file_machine import FileMachine, open_descriptors


@pytest.fixture
def machine() -> Iterator[FileMachine]:
    gc.collect()  # Descriptors that earlier tests left to the collector are not ours to count.
    before = open_descriptors()
    made = FileMachine()
    yield made
    made.close()
    assert open_descriptors() == before


@pytest.fixture
def world(machine: FileMachine) -> Iterator[World]:
    made = World(machine)
    yield made
    made.close()
