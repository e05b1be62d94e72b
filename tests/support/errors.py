"""Calls that must fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kerneld.errors import SysError


def fails(code: int, call: Callable[..., Any], *arguments: Any, **named: Any) -> bool:
    """Whether a call that must raise SysError raises it with this errno."""
    with pytest.raises(SysError) as caught:
        call(*arguments, **named)
    return caught.value.errno == code
