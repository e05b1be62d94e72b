"""A machine for each test of memory management, checked and counted when the test is over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.mm.space.mm import MmStruct
from tests.support.machine import Machine, checked


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine())


@pytest.fixture
def mm(machine: Machine) -> MmStruct:
    return machine.new_mm()
