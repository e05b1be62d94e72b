"""How many lines of Python a call runs: what must not grow with the size of the machine is measured without a clock."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import TraceFunction


def steps_of(call: Callable[[], object]) -> int:
    """Make a call, and return the number of lines that the interpreter ran.

    The collector of garbage rests meanwhile: what it ends are objects of other tests, and that may run lines too.
    """
    count = 0

    def count_lines(_frame: FrameType, event: str, _arg: object) -> TraceFunction:
        nonlocal count
        count += event == "line"
        return count_lines

    outer, was_enabled = sys.gettrace(), gc.isenabled()
    gc.collect()
    gc.disable()
    sys.settrace(count_lines)
    try:
        call()
    finally:
        sys.settrace(outer)
        if was_enabled:
            gc.enable()
    return count
