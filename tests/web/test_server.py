"""The server of the page: who may read it, what it sends, and that nobody who reads slowly holds up anybody."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, WSMsgType

from inspector.web.history import History
from inspector.web.server import MAX_PAGES, Viewer
from shared.recording.chunks import EVENTS, KEY, Chunk, make_chunk
from shared.recording.head import make_head
from shared.recording.marks import Mark, marks_of
from shared.recording.reader import Recording


class FakeSource:
    """Chunks when the test says so."""

    head: dict[str, Any]

    def __init__(self) -> None:
        self.head = make_head(pids=(), superuser=True)
        self.take: Callable[[Iterable[Chunk]], None] = lambda _chunks: None
        self.end: Callable[[str], None] = lambda _why: None

    def begin(self, take: Callable[[Iterable[Chunk]], None], end: Callable[[str], None]) -> None:
        self.take, self.end = take, end
        take([make_chunk(KEY, b"", 0, 0)])

    def close(self) -> None:
        pass


@asynccontextmanager
async def serving(source: FakeSource, history: History | None = None) -> AsyncIterator[tuple[str, ClientSession]]:
    async with Viewer(source, history=history).serving() as address, ClientSession() as client:
        yield address, client


async def status(client: ClientSession, url: str, **headers: str) -> int:
    async with client.get(url, headers=headers) as reply:
        return reply.status


def test_only_who_knows_the_token_may_read() -> None:
    async def check() -> None:
        async with serving(FakeSource()) as (address, client):
            root = address.rsplit("/", 2)[0]
            for name in ("", "live", "record", "view.html", "main.js"):
                assert await status(client, f"{address}{name}") != 403
                for wrong in ("x", "live", "%00", "é"):
                    assert await status(client, f"{root}/{wrong}/{name}") == 403
            assert await status(client, address, Host="evil.example") == 403
            assert await status(client, address, Origin="http://evil.example") == 403
            assert await status(client, f"{address}live", Origin="http://evil.example") == 403
            assert await status(client, f"{address}../server.py") in (403, 404)
            assert await status(client, f"{address}no.js") == 404

    asyncio.run(check())


def test_the_page_allows_no_script_but_its_own() -> None:
    async def check() -> None:
        async with serving(FakeSource()) as (address, client), client.get(address) as reply:
            policy = reply.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "'unsafe-inline'" not in policy.split("script-src")[1].split(";")[0]
            assert reply.headers["X-Frame-Options"] == "DENY"

    asyncio.run(check())


def test_a_page_gets_the_head_then_what_there_is_then_what_comes() -> None:
    async def check() -> None:
        source = FakeSource()
        async with serving(source) as (address, client), client.ws_connect(f"{address}live") as page:
            said = []
            for _ in range(3):
                said.append(await page.receive())
            assert json.loads(said[0].data) == {"kind": "head", "head": source.head}
            assert said[1].data == make_chunk(KEY, b"", 0, 0).pack()
            assert json.loads(said[2].data) == {"kind": "ready"}
            event = make_chunk(EVENTS, b"", 0, 0, 0)
            source.take([event])
            assert (await page.receive()).data == event.pack()
            source.end("kerneld went away")
            assert json.loads((await page.receive()).data) == {"kind": "end", "why": "kerneld went away"}
            async with client.get(f"{address}record") as reply:
                assert Recording(await reply.read()).nr_events == 0
            async with client.get(f"{address}view.html") as reply:
                assert b"application/x-kdrecord" in await reply.read()

    asyncio.run(check())


def test_what_is_saved_has_the_marks_of_the_page_that_saves_it() -> None:
    async def check() -> None:
        source = FakeSource()
        async with serving(source) as (address, client):
            async with client.get(f"{address}record?marks=300:B,120:A") as reply:
                assert marks_of(Recording(await reply.read()).head) == [Mark(120, "A"), Mark(300, "B")]
            async with client.get(f"{address}view.html?marks=120:A") as reply:
                text = (await reply.text()).partition('id="record">')[2].partition("<")[0]
                assert marks_of(Recording(base64.b64decode(text)).head) == [Mark(120, "A")]
            # Another page has other marks.
            assert "marks" not in source.head
            assert await status(client, f"{address}record?marks=%3Cscript%3E") == 400

    asyncio.run(check())


def test_a_page_that_stops_reading_holds_up_nobody_and_is_left_behind() -> None:
    """Its place in the history is dropped; it costs what is in the buffers of its socket."""

    async def check() -> None:
        source, history = FakeSource(), History(max_bytes=4 << 20)
        big = make_chunk(KEY, bytes(1 << 20), 0, 0, deflate=False)
        async with (
            serving(source, history) as (address, client),
            client.ws_connect(f"{address}live", max_msg_size=0) as stuck,
            client.ws_connect(f"{address}live", max_msg_size=0) as reader,
        ):
            await stuck.receive()
            await reader.receive()
            got = 0
            for _ in range(64):
                source.take([big])
                got += (await reader.receive()).type is WSMsgType.BINARY
            assert got >= 62
            assert sum(len(chunk.stored) for chunk in history.all()) <= 5 << 20
            kinds = set()
            while (message := await stuck.receive()).type is WSMsgType.BINARY or message.type is WSMsgType.TEXT:
                kinds.add(message.type)
            assert message.type in (WSMsgType.CLOSE, WSMsgType.CLOSED)

    asyncio.run(check())


def test_as_many_pages_as_there_is_room_for() -> None:
    async def check() -> None:
        async with serving(FakeSource()) as (address, client):
            pages = [await client.ws_connect(f"{address}live") for _ in range(MAX_PAGES)]
            for page in pages:
                assert json.loads((await page.receive()).data)["kind"] == "head"
            assert await status(client, f"{address}live", Upgrade="websocket") == 503
            await pages[0].close()

    asyncio.run(check())


def test_an_old_history_begins_with_a_key_frame() -> None:
    history = History(max_bytes=1000)
    for number in range(100):
        kind = KEY if number % 7 == 0 else EVENTS
        history.add(make_chunk(kind, bytes(100), number, 0, deflate=False))
    chunks = history.all()
    assert chunks[0].kind == KEY
    assert history.begin + len(chunks) == history.end == 100
    assert history.get(history.begin - 1) is None
    assert history.get(99) == chunks[-1]
    assert sum(len(chunk.stored) for chunk in chunks) <= 1000


@pytest.mark.parametrize("port", [0])
def test_a_port_that_is_taken_is_an_error(port: int) -> None:
    async def check() -> None:
        async with serving(FakeSource()) as (address, _client):
            taken = int(address.split(":")[2].split("/")[0])
            with pytest.raises(OSError, match="in use"):
                async with Viewer(FakeSource()).serving(taken + port):
                    pass

    asyncio.run(check())
