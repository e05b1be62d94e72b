"""The different numbers of an array.

numpy.unique() imports numpy.ma at its first call. That takes 15 to 40 ms, in which the daemon serves nobody.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", bound=np.integer)


def distinct(numbers: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Return the different numbers of an array of one dimension, in rising order."""
    ordered = np.sort(numbers)
    is_first = np.ones(len(ordered), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_first[1:])
    found: npt.NDArray[Number] = ordered[is_first]
    return found
