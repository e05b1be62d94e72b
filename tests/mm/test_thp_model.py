"""Random calls and accesses with huge pages everywhere, against a model: see `tests.mm.huge_model`."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.mm.huge_model import HugeAddressSpaces
from tests.support.effort import examples

pytestmark = pytest.mark.slow

TestHugeAddressSpaces = HugeAddressSpaces.TestCase
TestHugeAddressSpaces.settings = settings(max_examples=examples(20), stateful_step_count=30, deadline=None)
