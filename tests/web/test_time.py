"""Time travel on the page: by event, by call, by marks, by search; and two moments compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.page.package import one_file
from shared.recording.marks import Mark, with_marks
from tests.support.programs import page
from tests.web.chromium import Browser
from tests.web.lesson import Lesson
from tests.web.opened import Opened

InBrowser = Callable[..., Any]


def test_keys_step_by_event_and_by_call(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.see("space", lesson.moments["mmap"])
        await browser.press("ArrowRight")
        assert await view.run("kerneld.position") == lesson.moments["mmap"] + 1
        await browser.press("ArrowLeft")
        await browser.press("ArrowRight", shift=True)
        assert await view.run("kerneld.position") == lesson.moments["first write"]
        await browser.press("ArrowLeft", shift=True)
        assert await view.run("kerneld.position") == lesson.moments["mmap"]
        await browser.press("Home")
        assert await view.run("kerneld.position") == 0
        await browser.press("End")
        assert await view.run("kerneld.position") == lesson.recording.nr_events

    in_browser(look)


def test_it_plays_to_the_end_at_each_kind_of_speed(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        for speed in ("3", "7"):
            await view.run(
                f"(() => {{ const speed = document.getElementById('speed'); speed.value = '{speed}';"
                " speed.dispatchEvent(new Event('change')); })()"
            )
            await view.run("document.getElementById('play').click()")
            await browser.until(f"!kerneld.isPlaying && kerneld.position === {lesson.recording.nr_events}")
            assert await view.run("[kerneld.isPlaying, kerneld.position]") == [False, lesson.recording.nr_events]

    in_browser(look)


def test_two_marks_are_compared(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.run(f"kerneldPage.chooseProcess({lesson.parent})")
        await view.see("space", lesson.moments["fork"])
        await browser.press("m")
        await view.see("compare", lesson.moments["reuse"])
        assert "no difference" in await view.text(".compare h2")
        text = await view.text("#view-compare")
        assert f"≠ changed {page(0):#x} 1 page: copy-on-write → anonymous" in " ".join(text.split())
        await view.see("compare", lesson.moments["swapped"])
        text = " ".join((await view.text("#view-compare")).split())
        assert f"→ moved out {page(0):#x} 1 page: copy-on-write → swapped" in text
        assert f"+ came {page(8):#x}" in text
        await view.see("compare", lesson.moments["mmap"])
        assert f"− went {page(0):#x}" in " ".join((await view.text("#view-compare")).split())
        await browser.press("]")
        assert await view.run("kerneld.position") == lesson.moments["fork"]

    in_browser(look)


def test_marks_come_with_the_file_and_go_into_the_next(in_browser: InBrowser, lesson: Lesson, tmp_path: Path) -> None:
    fork, end = lesson.moments["fork"], lesson.recording.nr_events
    saved = tmp_path / "marked.html"
    bad = {"at": 1, "name": "<img src=x onerror=alert(1)>"}
    head = with_marks(lesson.recording.head, [Mark(fork, "A")])
    head["marks"] += [bad, None, {"at": "7", "name": "B"}]
    saved.write_bytes(one_file(head, list(lesson.recording.chunks())))

    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(saved.as_uri())
        assert await view.run("kerneldPage.marks") == [{"at": fork, "name": "A"}]
        assert await view.text(".flags") == "A"
        await view.see("space", end)
        await browser.press("m")
        for link in ("save", "save-record"):
            address = await view.run(f"document.getElementById('{link}').getAttribute('href')")
            assert address.partition("?")[2] == f"marks={fork}:A,{end}:B"
        await browser.press("[")
        assert await view.run("kerneld.position") == fork
        await browser.press("m")
        address = await view.run("document.getElementById('save').getAttribute('href')")
        assert address == f"view.html?marks={end}:B"

    in_browser(look)


def test_search_finds_when_a_page_got_its_frame_and_when_a_frame_changed_hands(
    in_browser: InBrowser, lesson: Lesson, lesson_url: str
) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.run(f"kerneldPage.chooseProcess({lesson.parent})")
        await browser.press("/")
        assert await view.run("document.activeElement.id") == "search-text"
        await browser.send("Input.insertText", text=f"{page(0):#x}")
        await browser.press("Enter")
        found = await view.text("#view-search")
        assert "gets a frame:" in found
        await view.run(
            "[...document.querySelectorAll('#view-search li button')]"
            ".find((one) => one.textContent.includes('gets a frame')).click()"
        )
        position = await view.run("kerneld.position")
        assert lesson.moments["mmap"] < position <= lesson.moments["first write"]
        machine = lesson.recording.machine(lesson.moments["first write"])
        frame = machine.mms[machine.tasks[lesson.parent].mm].entry(page(0)) >> 12 & 0xFF_FFFF
        await view.run(f"kerneldPage.views.get('search').view.ask('pfn {frame:#x}')")
        found = await view.text("#view-search")
        for what in ("taken:", "mapped:", "changes hands:"):
            assert what in found
        await view.run("kerneldPage.views.get('search').view.ask('munmap')")
        assert "munmap(" in await view.text("#view-search")

    in_browser(look)


def test_a_step_that_is_chosen_shows_in_all_views_what_it_changed(
    in_browser: InBrowser, lesson: Lesson, lesson_url: str
) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.see("events", lesson.moments["first write"])
        assert await view.run(
            "document.querySelector('.rows [aria-selected=true]').textContent.includes('writes memory')"
        )
        await view.see("space")
        assert "changed" in (await view.pages(lesson.parent, page(0)))[0]
        await view.see("shadow")
        assert "◂ changed" in await view.text(".shadowrow.touched")
        await view.see("frames")
        touched = (
            "[...kerneldPage.views.get('frames').view.parts.values()]"
            ".some((part) => part.grid.cells.some((cell) => cell & 2048))"
        )
        assert await view.run(touched)

    in_browser(look)
