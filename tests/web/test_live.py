"""The page that a server serves follows what happens, and stays where a person has gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inspector.web.server import Viewer
from tests.support.programs import page
from tests.web.chromium import Browser
from tests.web.lesson import Lesson
from tests.web.opened import Opened
from tests.web.test_server import FakeSource


def test_a_page_follows_and_keeps_its_place_in_the_past(in_browser: Callable[..., Any], lesson: Lesson) -> None:
    first, *rest = lesson.recording.chunks()
    events = [chunk for chunk in rest if chunk.events]

    async def look(browser: Browser) -> None:
        source = FakeSource()
        async with Viewer(source).serving() as address:
            source.take([first])
            await browser.size(1280, 720)
            await browser.open(address)
            view = Opened(browser)
            end = 0
            for chunk in events[:-1]:
                source.take([chunk])
                end = chunk.first + chunk.events
                await browser.until(f"kerneld.position === {end} && kerneld.isLive")
            assert (await view.text("#status")).startswith("live")
            await browser.press("ArrowLeft")
            source.take([events[-1]])
            await browser.until(f"kerneld.recording.nrEvents === {lesson.recording.nr_events}")
            assert await view.run("kerneld.position") == end - 1
            await browser.press("End")
            assert await view.run("kerneld.position") == lesson.recording.nr_events
            source.end("kerneld went away")
            await browser.until("document.getElementById('status').textContent.startsWith('kerneld went away')")
            await view.run(f"kerneldPage.chooseProcess({lesson.parent})")
            assert f"{page(0):#x}" in await view.text(".vma")

    in_browser(look)
