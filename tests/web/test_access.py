"""The page for everyone: by keyboard alone, with a screen reader, on a phone, at 200 % zoom, in light and dark."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest

from tests.support.programs import page
from tests.web.chromium import Browser
from tests.web.lesson import Lesson
from tests.web.opened import Opened
from tests.web.test_views import VIEWS

InBrowser = Callable[..., Any]
NAMED = {
    "button",
    "tab",
    "textbox",
    "combobox",
    "checkbox",
    "slider",
    "link",
    "application",
    "listbox",
    "meter",
    "dialog",
}
_KINDS = """Promise.all([import("kd/kinds.js"), import("kd/dom.js")]).then(
  ([{ PAGE_KINDS, FRAME_KINDS }, { cssValue }]) =>
  [["page", PAGE_KINDS], ["frame", FRAME_KINDS]].map(([name, kinds]) => kinds.map((kind, n) =>
    [kind.mark, cssValue(`--${name}-${n}`), cssValue(`--${name}-ink-${n}`) || cssValue("--cell-ink")])))"""


def test_keys_alone_reach_a_cell_and_explain_it(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.run(f"kerneldPage.chooseProcess({lesson.parent})")
        await view.see("space", lesson.moments["first write"])
        for _ in range(60):
            await browser.press("Tab")
            if await view.run("(document.activeElement.getAttribute('aria-label') || '').startsWith('Pages of')"):
                break
        assert "Page 0x1000000000: anonymous" in await view.text(".here")
        await browser.press("ArrowRight")
        assert f"Page {page(1):#x}: allocated" in await view.text(".here")
        await browser.press("Enter")
        await browser.press(".")
        assert await view.run("kerneld.position") == lesson.moments["first write"] + 1
        await browser.press("Escape")
        for number, name in enumerate(VIEWS, 1):
            await browser.press(str(number))
            assert await view.run("kerneldPage.view") == name
        await browser.press("?")
        assert await view.run("document.getElementById('help').open")
        await browser.press("Escape")

    in_browser(look)


def test_the_ruler_zooms_from_128_tib_to_a_page(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.run(f"kerneldPage.chooseProcess({lesson.parent})")
        await view.see("space", lesson.moments["mmap"])
        await view.run("document.querySelector('.ruler canvas').focus()")
        assert "128 TiB" in await view.text(".where")
        await browser.press("Enter")
        assert f"{page(0):#x}–{page(8):#x} 32 KiB" in " ".join((await view.text(".where")).split())
        for _ in range(2):
            await browser.press("+")
        assert (await view.text(".where")).endswith("4 KiB")
        await browser.press("Home")
        assert "128 TiB" in await view.text(".where")

    in_browser(look)


def test_everything_has_a_name_for_a_screen_reader(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await browser.press("m")
        for name in VIEWS:
            await view.see(name, lesson.moments["copy"])
            nodes = (await browser.send("Accessibility.getFullAXTree"))["nodes"]
            found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in NAMED]
            assert len(found) > 10
            assert [node for node in found if not node.get("name", {}).get("value", "").strip()] == []

    in_browser(look)


@pytest.mark.parametrize(("width", "height"), [(360, 740), (640, 360), (1280, 720)])
def test_nothing_is_wider_than_the_screen(
    in_browser: InBrowser, lesson: Lesson, lesson_url: str, width: int, height: int
) -> None:
    """A phone; a projector of 1280×720 at 200 % zoom, which is a page of 640×360; and the projector."""

    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url, width=width, height=height)
        for name in VIEWS:
            await view.see(name, lesson.moments["exec"])
            assert await view.run("document.documentElement.scrollWidth <= innerWidth"), name

    in_browser(look)


def test_marks_tell_kinds_apart_and_can_be_read(in_browser: InBrowser, lesson_url: str) -> None:
    """No two kinds have the same mark, and each mark, and all text, stands out from what is behind it."""

    async def look(browser: Browser) -> None:
        for dark in (False, True):
            view = await Opened(browser).open(lesson_url, dark=dark)
            for kinds in await view.run(_KINDS):
                assert len({mark for mark, _colour, _ink in kinds}) == len(kinds)
                for mark, colour, ink in kinds:
                    assert not mark or contrast(colour, ink) >= 4.5, (mark, colour, ink)
                for (_mark, one, _ink), (_mark2, other, _ink2) in combinations(kinds, 2):
                    assert one != other
            names = ("--ink", "--quiet", "--accent", "--paper", "--soft")
            ink, quiet, accent, paper, soft = [
                await view.run(f"getComputedStyle(document.documentElement).getPropertyValue('{name}').trim()")
                for name in names
            ]
            for text in (ink, quiet, accent):
                assert min(contrast(text, paper), contrast(text, soft)) >= 4.5, (dark, text)

    in_browser(look)


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours as WCAG 2 defines it: 1 to 21."""
    lights = sorted((_luminance(one), _luminance(other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def _luminance(colour: str) -> float:
    digits = re.fullmatch("#([0-9a-f]{3}|[0-9a-f]{6})", colour)
    assert digits is not None, colour
    text = digits[1] if len(digits[1]) == 6 else "".join(letter * 2 for letter in digits[1])
    parts = [int(text[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
