"""Fixtures of the tests of kerneld.fs: no machine leaves a frame, a file or a descriptor behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fs.world import World
from tests.support.file_machine import TEXT, FileMachine, open_descriptors


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of a file with TEXT."""
    made = tmp_path / "data"
    made.write_bytes(TEXT)
    return made


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    """A descriptor of that file."""
    made = os.open(path, os.O_RDWR)
    yield made
    os.close(made)
