"""Signal handlers that raise, at every place where CPython may run them."""

from __future__ import annotations

import dis
import itertools
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import Any, cast


class Interruption(Exception):
    """What a signal handler raises here."""


def raises_at(which: int, call: Callable[[], object], *functions: Callable[..., Any], everywhere: bool = False) -> bool:
    """Run `call` with an Interruption after the `which`th CALL within these functions; False when there are fewer.

    `everywhere`: before any instruction of them, not after a CALL alone. That is more than CPython does.
    """
    codes = [cast(FunctionType, function).__code__ for function in functions]
    places = {code: _places(code, everywhere=everywhere) for code in codes}
    seen = 0

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal seen
        if frame.f_code not in places:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in places[frame.f_code]:
            seen += 1
            if seen == which + 1:
                raise Interruption
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interruption:
        return True
    finally:
        sys.settrace(outer)
    return False


def _places(code: CodeType, *, everywhere: bool) -> set[int]:
    instructions = list(dis.get_instructions(code))
    if everywhere:
        return {instruction.offset for instruction in instructions}
    return {after.offset for before, after in itertools.pairwise(instructions) if before.opname == "CALL"}
