"""How many random examples the dear tests try: few in each run of the suite, many in `make test-long`."""

from __future__ import annotations

import os

EFFORT = float(os.environ.get("KERNELD_TEST_EFFORT", "1"))


def examples(count: int) -> int:
    """Return how many examples to try where a usual run tries `count`."""
    return max(1, round(count * EFFORT))
