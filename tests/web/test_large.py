"""A process with a million pages, and pages that change faster than the screen."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.programs import page
from tests.web.chromium import Browser
from tests.web.opened import Opened
from tests.web.synthetic import PID, changes, saved

MILLION, SOME = 1_000_000, 2048


def test_a_million_mapped_pages_open_and_can_be_looked_at(in_browser: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "large.html"
    path.write_bytes(saved(MILLION))

    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(path.as_uri())
        assert "1,000,000 anonymous" in await view.text(".vma")
        for name in ("walk", "frames", "processes", "events"):
            await view.see(name)
        assert "1,000,000" in await view.text(".processes")
        await view.see("space")
        await view.run(f"kerneldPage.views.get('space').view.zoom.set({page(700_000)}, {page(700_016)})")
        cells = await view.pages(PID, page(0))
        assert cells == ["anonymous accessed dirty"] * 16

    in_browser(look)


def test_every_page_that_changes_is_drawn(in_browser: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "some.html"
    path.write_bytes(saved(SOME))
    rounds = [base64.b64encode(changes(SOME, number)).decode() for number in (0, 1)]

    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(path.as_uri())
        await view.run("(kerneld.ended = '', kerneld.goLive())")
        for number, text in enumerate(rounds):
            await view.run(
                f"kerneld.add({{kind: 'EVNT', flags: 0, events: {SOME}, first: kerneld.recording.nrEvents, time: 0n}},"
                f" Uint8Array.from(atob('{text}'), (letter) => letter.charCodeAt(0)))"
            )
            cells = await view.pages(PID, page(0))
            assert [" dirty" in cell for cell in cells] == [(n + number) % 2 == 0 for n in range(SOME)]

    in_browser(look)
