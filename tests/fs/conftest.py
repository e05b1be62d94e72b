"""Fixtures of the tests of kerneld.fs: no machine leaves a frame, a file or a descriptor behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fs.machine import Machine, open_descriptors


@pytest.fixture
def machine() -> Iterator[Machine]:
    before = open_descriptors()
    made = Machine()
    yield made
    made.close()
    assert open_descriptors() == before
