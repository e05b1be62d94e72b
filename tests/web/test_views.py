"""Each view shows what the machine had, at each moment of a lecture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from shared.recording.physical import free_blocks, mapped_frames, uses
from tests.support.programs import page
from tests.web.chromium import Browser
from tests.web.lesson import HOSTILE, HOSTILE_FILE, Lesson
from tests.web.opened import Opened

InBrowser = Callable[..., Any]
VIEWS = ("space", "walk", "frames", "shadow", "events", "processes", "compare", "search")


def test_demand_paging_can_be_seen(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.see("space", lesson.moments["mmap"])
        assert await view.pages(lesson.parent, page(0)) == ["allocated changed"] * 8
        assert "No page of it has a frame yet." in await view.text(".story")
        await view.see("space", lesson.moments["first write"])
        first, *others = await view.pages(lesson.parent, page(0))
        assert (first, set(others)) == ("anonymous accessed dirty changed", {"allocated"})
        assert "had no frame. It gets frame 0x" in await view.text(".story")
        await view.see("space", lesson.moments["first read"])
        assert (await view.pages(lesson.parent, page(0)))[1] == "zero page accessed changed"
        assert "zero page that all share" in await view.text(".story")
        await view.see("space", lesson.moments["locked"])
        assert "accessed dirty locked" in " ".join(await view.pages(lesson.parent, page(2)))

    in_browser(look)


def test_copy_on_write_can_be_seen_in_both_processes(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.see("space", lesson.moments["fork"])
        for pid in (lesson.parent, lesson.child):
            assert (await view.pages(pid, page(0)))[0].startswith("copy-on-write")
        await view.see("space", lesson.moments["copy"])
        assert (await view.pages(lesson.child, page(0)))[0] == "anonymous accessed dirty changed"
        assert (await view.pages(lesson.parent, page(0)))[1].startswith("copy-on-write")
        assert "It gets a copy" in await view.text(".story")
        await view.see("space", lesson.moments["reuse"])
        assert "Nobody else maps frame" in await view.text(".story")
        assert "changed" in (await view.pages(lesson.parent, page(0)))[0]

    in_browser(look)


def test_stack_growth_and_execve_can_be_seen(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.see("space", lesson.moments["stack growth"])
        assert "The stack grows down" in await view.text(".story")
        assert "[stack]" in await view.text("#views")
        await view.see("space", lesson.moments["exec"])
        assert "The process runs /usr/bin/true now." in await view.text(".story")
        await view.run(f"kerneldPage.chooseProcess({lesson.child})")
        assert "/usr/bin/true" in await view.text(".space")
        await view.see("space", lesson.moments["swapped"])
        await view.run(f"kerneldPage.chooseProcess({lesson.parent})")
        assert (await view.pages(lesson.parent, page(0)))[0] == "swapped changed"
        assert (await view.pages(lesson.parent, page(8)))[:2] == ["shared accessed dirty"] * 2

    in_browser(look)


def test_the_walk_says_where_it_stops_and_why(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.see("walk", lesson.moments["first write"])
        for vaddr, why in (
            (page(0), "The walk ends in frame 0x"),
            (page(1), "The next access is a page fault"),
            (0x5000, "no VMA covers the page"),
        ):
            await view.run(f"kerneldPage.choosePage({lesson.parent}, {vaddr})")
            assert why in await view.text(".outcome")
        await view.run(f"kerneldPage.choosePage({lesson.parent}, {page(3)})")
        mm = lesson.recording.machine(lesson.moments["first write"]).tasks[lesson.parent].mm
        machine = lesson.recording.machine(lesson.moments["first write"])
        text = await view.text(".levels")
        for (level, _vaddr), pfn in machine.mms[mm].tables.items():
            if level > 1:
                assert f"in frame {pfn:#x}" in text
        assert "64 = 0x40, 9 bits" in await view.text(".bits")
        await view.see("walk", lesson.moments["swapped"])
        await view.run(f"kerneldPage.choosePage({lesson.parent}, {page(0)})")
        assert "of the swap file. The next access reads the page back." in await view.text(".outcome")

    in_browser(look)


def test_physical_memory_is_that_of_the_python_model(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        for moment in (0, *lesson.moments.values()):
            machine = lesson.recording.machine(moment)
            await view.see("frames", moment)
            names = await view.run("[...kerneldPage.views.get('frames').view.uses]")
            kinds = ("free", "per-cpu", "reserved", "zero page", "page table", "page cache", "shared memory",
                     "anonymous", "swap cache", "other")  # fmt: skip
            assert [kinds[use] for use in names] == [use.value for use in uses(machine)]
            orders = Counter(order for _first, order in free_blocks(machine))
            shown = await view.run(
                "[...document.querySelectorAll('.order .number')].map((one) => parseInt(one.textContent))"
            )
            assert shown == [orders[order] for order in range(11)]

    in_browser(look)


def test_frames_can_be_coloured_by_their_owner(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        await view.see("frames", lesson.moments["copy"])
        await browser.run("document.getElementById('by-owner').focus()")
        await browser.press(" ")
        for name in ("fork", "copy", "reuse", "swapped"):
            machine = lesson.recording.machine(lesson.moments[name])
            await view.see("frames", lesson.moments[name])
            letters = await view.run(
                """(() => {
                  const { shown, kinds } = kerneldPage.views.get("frames").view;
                  return [...shown].map((owner) => kinds[owner].mark || "free").join(" ");
                })()"""
            )
            mapped: dict[int, set[int]] = {}
            for mm in machine.mms.values():
                for first, pages, _vaddr, _entry in mapped_frames(mm):
                    for pfn in range(first, first + pages):
                        mapped.setdefault(pfn, set()).add(mm.pid)
            seen = dict(enumerate(letters.split()))
            legend = await view.text("#view-frames .legend")
            by_letter = {letter: {next(iter(mapped[pfn])) for pfn in seen if seen[pfn] == letter} for letter in "ABCDE"}
            for pfn, use in enumerate(uses(machine)):
                if pfn in mapped and use.value not in ("reserved", "zero page", "page table"):
                    assert (seen[pfn] == "+") == (len(mapped[pfn]) > 1), hex(pfn)
                elif use.value in ("free", "per-cpu"):
                    assert seen[pfn] == "free"
                else:
                    assert seen[pfn] in ("k", "−")
            # One letter is one process, and the legend names it.
            assert all(len(pids) <= 1 for pids in by_letter.values())
            for pid in set().union(*by_letter.values()):
                assert str(pid) in legend
        assert {lesson.parent, lesson.child} <= set().union(*by_letter.values())
        await browser.press(" ")
        assert "anonymous" in await view.text("#view-frames .legend")

    in_browser(look)


def test_the_shadow_page_table_is_shown_entry_by_entry(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        for name in ("mmap", "first write", "first read", "munmap"):
            shadow = lesson.recording.machine(lesson.moments[name]).shadow
            assert shadow is not None
            await view.see("shadow", lesson.moments[name])
            rows = await view.run("[...document.querySelectorAll('.shadowrow code')].map((one) => one.textContent)")
            words = [int(cell.split()[0], 16) for cell in rows]
            expected = [(page(n), shadow.pfns[n], shadow.flags[n]) for n in range(16)]
            assert list(zip(words[::3], words[1::3], words[2::3], strict=True)) == expected
        assert "changed" in (await view.text(".rows"))

    in_browser(look)


def test_every_view_draws_every_moment(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    """No failure in the console, forward and back."""

    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        for name in VIEWS:
            await view.see(name)
            await view.run(
                "(() => { const { starts, count } = kerneldPage.steps;"
                " const show = (n) => { kerneld.seek(n); kerneldPage.draw(); };"
                " for (let n = count - 1; n >= 0; n -= 1) show(starts.values[n] + 2);"
                " for (let n = 0; n <= kerneld.recording.nrEvents; n += 2) show(n); })()"
            )
            assert await view.run("kerneld.position") == lesson.recording.nr_events // 2 * 2

    in_browser(look)


def test_hostile_names_are_text(in_browser: InBrowser, lesson: Lesson, lesson_url: str) -> None:
    async def look(browser: Browser) -> None:
        view = await Opened(browser).open(lesson_url)
        before = await view.run("document.querySelectorAll('script').length")
        for name in VIEWS:
            await view.see(name, lesson.recording.nr_events)
        options = await view.run("[...document.querySelectorAll('#process option')].map((one) => one.textContent)")
        assert any(HOSTILE in option for option in options)
        await view.run(f"kerneldPage.chooseProcess({lesson.parent})")
        await view.see("space", lesson.moments["shared"])
        assert HOSTILE_FILE in await view.text("#views")
        assert await view.run("document.querySelectorAll('img, body b > script').length") == 0
        assert await view.run("document.querySelectorAll('script').length") == before

    in_browser(look)
