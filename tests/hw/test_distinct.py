"""The different numbers of an array, found without numpy.unique()."""

from __future__ import annotations

import numpy as np
import pytest

from kerneld.hw.distinct import distinct


@pytest.mark.parametrize("numbers", [[], [7], [3, 3, 3], [5, 1, 5, 2, 1], [-1, 0, -1]])
def test_each_number_comes_once_in_order(numbers: list[int]) -> None:
    array = np.array(numbers, dtype=np.int64)
    found = distinct(array)
    assert found.dtype == array.dtype
    assert found.tolist() == sorted(set(numbers))
