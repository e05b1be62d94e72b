"""Constants for numpy: arrays without dimensions.

numpy has to find the type for a Python number or a scalar such as np.uint64(8) at each operation. With a few entries
that takes longer than the operation itself. An array without dimensions has its type. Each is made once, and cannot be
written.
"""

from __future__ import annotations

import functools
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", bound=np.generic)


@functools.cache
def u64(value: int) -> npt.NDArray[np.uint64]:
    """Return a constant for words of 64 bits: entries, flags of pages. Negative numbers give their complement."""
    return _constant(np.array(value & (1 << 64) - 1, dtype=np.uint64))


@functools.cache
def u32(value: int) -> npt.NDArray[np.uint32]:
    """Return a constant for words of 32 bits: flags of frames. Negative numbers give their complement."""
    return _constant(np.array(value & (1 << 32) - 1, dtype=np.uint32))


@functools.cache
def i32(value: int) -> npt.NDArray[np.int32]:
    """Return a constant for counts of frames."""
    return _constant(np.array(value, dtype=np.int32))


def _constant(array: npt.NDArray[Number]) -> npt.NDArray[Number]:
    array.flags.writeable = False
    return array
