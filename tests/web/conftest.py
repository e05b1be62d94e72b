"""A Chromium that the tests of this folder share; without one, its tests say why they are skipped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.web.chromium import PROGRAM, WHY_NOT, Browser
from tests.web.lesson import Lesson, make_lesson

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


@pytest.fixture(scope="session")
def lesson() -> Lesson:
    """The record of a lecture."""
    return make_lesson()


@pytest.fixture(scope="session")
def lesson_url(lesson: Lesson, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of the lecture's one file."""
    path: Path = tmp_path_factory.mktemp("lesson") / "lesson.html"
    path.write_bytes(lesson.html)
    return path.as_uri()
