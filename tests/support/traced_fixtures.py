"""A kernel that is traced, for each test; nothing of it is left after."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.descriptors import leaves_no_descriptor
from tests.support.traced import TracedWorld


@pytest.fixture
def world() -> Iterator[TracedWorld]:
    with leaves_no_descriptor():
        made = TracedWorld()
        yield made
        made.close()
