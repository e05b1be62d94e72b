"""Fixtures of the tests of kerneld.fs: no machine leaves a frame, a file or a descriptor behind."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.fs.machine import Machine, open_descriptors
from tests.fs.world import World


@pytest.fixture
def machine() -> Iterator[Machine]:
    gc.collect()  # Descriptors that earlier tests left to the collector are not ours to count.
    before = open_descriptors()
    made = Machine()
    yield made
    made.close()
    assert open_descriptors() == before


@pytest.fixture
def world(machine: Machine) -> Iterator[World]:
    made = World(machine)
    yield made
    made.close()
