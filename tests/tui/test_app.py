"""The view in the terminal, driven by Textual's pilot: every view, time, marks, search, any size, no colours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, Static, Tabs

from inspector.player import Player
from inspector.tui.app import LiveApp
from inspector.tui.screens import Help
from shared.recording.chunks import Chunk
from shared.recording.reader import Recording
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.support.programs import NOBODY_FROM, READ, page
from tests.support.recorded import recorded
from tests.support.traced import TracedWorld

PID = NOBODY_FROM + 7
Act = Callable[[LiveApp, "Pilot[None]"], Awaitable[None]]


@pytest.fixture(scope="module")
def made() -> bytes:
    """A record: a process with a hostile name maps, reads, writes, protects, unmaps."""
    world = TracedWorld()
    with recorded(world) as record:
        program = world.attach(pid=PID)
        program.process.comm = "[b]<script>\x1b[2J"
        world.tracing.note_process(program.process)
        program.mmap(64, at=page(0))
        program.touch(0, 8, Access.READ)
        program.store(page(1), b"x")
        program.call(Nr.MPROTECT, page(2), 4 * PAGE_SIZE, READ)
        program.call(Nr.MUNMAP, page(8), 8 * PAGE_SIZE)
        data = record.file()
    world.close()
    return data


def drive(data: bytes, act: Act, *, size: tuple[int, int] = (80, 24), vaddr: int = 0) -> None:
    """Run the program on a record while `act` uses it."""

    async def run() -> None:
        app = LiveApp(Player(Recording(data)), pid=PID, vaddr=vaddr)
        async with app.run_test(size=size) as pilot:
            await drawn(app, pilot)
            await act(app, pilot)

    asyncio.run(run())


def position(app: LiveApp) -> int:
    return app.player.position


def last_name(app: LiveApp) -> str:
    record = app.player.last_event()
    return record.event.name if record is not None else ""


async def drawn(app: LiveApp, pilot: Pilot[None]) -> str:
    """Draw what is due, and return the view's text."""
    await pilot.pause()
    app.draw()
    await pilot.pause()
    return text_of(app, "#view")


def text_of(app: LiveApp, name: str) -> str:
    return str(app.query_one(name, Static).content)


@pytest.mark.parametrize("size", [(80, 24), (40, 12), (200, 60)])
def test_every_view_says_something_at_any_size(made: bytes, size: tuple[int, int]) -> None:
    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        for key, words in (
            ("1", f"{page(0):#x}-{page(2):#x} rw-p"), ("2", "PGD index"), ("3", "Free blocks by order"),
            ("4", "No shadow page table"), ("5", "munmap"), ("6", "Press m"),
        ):  # fmt: skip
            await pilot.press(key)
            assert words in await drawn(app, pilot)

    drive(made, act, size=size, vaddr=page(0))


def test_a_name_is_text_and_nothing_else(made: bytes) -> None:
    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        await drawn(app, pilot)
        assert "[b]<script>?[2" in text_of(app, "#top")

    drive(made, act)


def test_time_goes_back_and_on(made: bytes) -> None:
    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        end = position(app)
        assert f"{page(16):#x}-{page(64):#x}" in await drawn(app, pilot)
        await pilot.press("left_square_bracket", "left_square_bracket")
        assert f"{page(0):#x}-{page(64):#x} rw-p" in await drawn(app, pilot)
        await pilot.press("home")
        assert f"{page(0):#x}" not in await drawn(app, pilot)
        assert position(app) == 0
        await pilot.press("right", "right", "left")
        assert position(app) == 1
        await pilot.press("right_square_bracket")
        assert position(app) > 1
        await pilot.press("end")
        assert position(app) == end
        app.seek_part(0.5)
        assert 0 < position(app) < end

    drive(made, act)


def test_playing_ends_at_the_end(made: bytes) -> None:
    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        await pilot.press("home", *["plus"] * 6, "space")
        while app.is_playing:
            app._tick()
        assert position(app) == app.player.recording.nr_events

    drive(made, act)


def test_a_mark_is_compared(made: bytes) -> None:
    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        end = position(app)
        await pilot.press("home", "m", "end", "c")
        assert position(app) == end
        # The process came after the beginning: the comparison says so, and begins where it is there.
        assert "not there at both moments" in await drawn(app, pilot)
        app.player.seek(end // 2)
        await pilot.press("m", "end")
        said = await drawn(app, pilot)
        assert f"From event {end // 2} to event {end}" in said
        assert "* " in said

    drive(made, act)


def test_the_walk_says_where_it_stops_and_why(made: bytes) -> None:
    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        await pilot.press("2")
        assert "The walk ends here: the page's frame." in await drawn(app, pilot)
        await pilot.press("up")
        assert "no mapping covers this address" in await drawn(app, pilot)
        await pilot.press("n")
        assert app.vaddr == page(0)
        await pilot.press("n", "n")
        app.vaddr = page(20)
        assert "no frame yet" in await drawn(app, pilot)

    drive(made, act, vaddr=page(0))


def test_search_finds_when_a_page_and_a_frame_changed(made: bytes) -> None:
    async def typed(app: LiveApp, pilot: Pilot[None], key: str, said: str) -> None:
        await pilot.press(key)
        app.screen.query_one(Input).value = said
        await pilot.press("enter")
        await drawn(app, pilot)

    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        await pilot.press("home")
        await typed(app, pilot, "slash", hex(page(1)))
        first = position(app)
        assert last_name(app) == "pte:set"
        await typed(app, pilot, "slash", hex(page(1)))
        assert position(app) > first
        assert app.mm is not None
        pfn = app.mm.entry(page(1)) >> 12 & 0xFF_FFFF
        await pilot.press("home")
        await typed(app, pilot, "slash", f"frame {pfn:#x}")
        assert last_name(app) == "kmem:mm_page_alloc"
        await typed(app, pilot, "slash", "nonsense")
        assert "no number: nonsense" in text_of(app, "#top")
        await pilot.press("end")
        await typed(app, pilot, "g", "[stack]")
        assert app.mm.find_vma(app.vaddr) is not None

    drive(made, act)


def test_help_and_the_mouse(made: bytes) -> None:
    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        assert [type(screen) for screen in app.screen_stack].count(Help) == 1
        await pilot.press("escape")
        assert Help not in [type(screen) for screen in app.screen_stack]
        await pilot.click("#memory")
        await drawn(app, pilot)
        assert (app.view, app.query_one(Tabs).active) == ("memory", "memory")
        await pilot.click("#timeline", offset=(0, 0))
        assert position(app) == 0

    drive(made, act)


def test_without_colours_the_letters_are_left(made: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        assert "0a" in await drawn(app, pilot)

    drive(made, act)


def test_a_live_record_is_drawn_as_it_comes(made: bytes) -> None:
    whole = Recording(made)

    async def run() -> None:
        taken: list[Callable[[Iterable[Chunk]], None]] = []
        player = Player(Recording.growing(whole.head))
        app = LiveApp(player, lambda take, _end: taken.append(take), pid=PID)
        async with app.run_test(size=(80, 24)) as pilot:
            assert "no memory" in await drawn(app, pilot)
            app._take(list(whole.chunks()))
            assert f"{page(0):#x}" in await drawn(app, pilot)
            assert "live" in text_of(app, "#top")
            app._end("kerneld went away")
            await drawn(app, pilot)
            assert "kerneld went away" in text_of(app, "#top")

    asyncio.run(run())


@pytest.fixture(scope="module")
def large() -> bytes:
    """A record: a process with a mapping of 1,024 pages, of which it has read eight."""
    world = TracedWorld()
    with recorded(world) as record:
        program = world.attach(pid=PID)
        program.mmap(1024, at=page(0))
        program.touch(0, 8, Access.READ)
        data = record.file()
    world.close()
    return data


def test_a_large_mapping_has_half_blocks_and_a_key_brings_letters(
    large: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    async def act(app: LiveApp, pilot: Pilot[None]) -> None:
        assert "\u2580" * 8 in text_of(app, "#view")
        await pilot.press("h")
        assert "00000000..." in await drawn(app, pilot)
        await pilot.press("h")
        assert "\u2580" * 8 in await drawn(app, pilot)

    drive(large, act)


def test_without_colours_a_large_mapping_has_letters(large: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def act(app: LiveApp, _pilot: Pilot[None]) -> None:
        assert "00000000..." in text_of(app, "#view")

    drive(large, act)
