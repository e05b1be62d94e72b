"""Random calls and accesses in a family of address spaces, against a model: see `tests.mm.model`."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.mm.model import AddressSpaces
from tests.support.effort import examples

pytestmark = pytest.mark.slow

TestAddressSpaces = AddressSpaces.TestCase
TestAddressSpaces.settings = settings(max_examples=examples(50), stateful_step_count=50, deadline=None)
