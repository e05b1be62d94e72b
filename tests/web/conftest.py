"""A Chromium that the tests of this folder share; without one, its tests say why they are skipped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.web.chromium import PROGRAM, WHY_NOT, Browser

Act = Callable[[Browser], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def in_browser() -> Callable[[Act], Any]:
    """Call this with a coroutine function of a Browser: it runs in a Chromium, and its page has seen no error then."""
    if PROGRAM is None:
        pytest.skip(WHY_NOT)

    def run(act: Act) -> Any:
        async def session() -> Any:
            async with Browser() as browser:
                result = await act(browser)
                assert browser.errors == []
                return result

        return asyncio.run(session())

    return run
