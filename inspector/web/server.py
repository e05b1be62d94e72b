"""The server of the page: on loopback alone, behind a token in the address.

    /TOKEN/              the page and its files
    /TOKEN/live          a WebSocket: the head, then the chunks of the record, then those that come
    /TOKEN/record        the record so far, as a file
    /TOKEN/view.html     the record so far in one HTML file that opens from the disk

The token keeps other users of the machine out, and other pages of the browser: they cannot know it. The names of the
host in a request are checked too, so that no name of another site can lead here (DNS rebinding). Nothing is taken from
a page but the wish to connect. The kernel waits for none of this, and the server waits for no page: each page has its
own place in the history, and one that stops reading is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from aiohttp import WSCloseCode, web

from inspector.web.history import History
from shared.page.package import KINDS, one_file, page_files, script_hashes
from shared.recording.chunks import Chunk, pack_head
from shared.recording.marks import parse_marks, with_marks

if TYPE_CHECKING:
    from inspector.source import Source

HOST = "127.0.0.1"
MAX_PAGES = 32
"""The most pages that may be connected at once."""
_STUCK_SECONDS = 30
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Viewer:
    """One record, served to any number of pages."""

    def __init__(self, source: Source, *, token: str | None = None, history: History | None = None) -> None:
        self._source = source
        self.token = token or secrets.token_urlsafe(24)
        self._history = history or History()
        self._ended = ""
        """Why no more chunks will come; "" while they may."""
        self._changed = asyncio.Condition()
        self._pages: set[web.WebSocketResponse] = set()
        self._files = page_files()
        self.port = 0

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0) -> AsyncIterator[str]:
        """Serve while a with block runs; yield the address. Raises OSError for a port that is taken."""
        app = web.Application(middlewares=[self._guard])
        app.add_routes(
            [
                web.get("/{token}/live", self._live),
                web.get("/{token}/record", self._record),
                web.get("/{token}/view.html", self._one_file),
                web.get("/{token}/{name:[a-z0-9_.-]*}", self._file),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, HOST, port)
            await site.start()
            self.port = runner.addresses[0][1]
            loop = asyncio.get_running_loop()
            self._source.begin(
                lambda chunks: _post(loop, self._take(list(chunks))), lambda why: _post(loop, self._end(why))
            )
            yield f"http://{HOST}:{self.port}/{self.token}/"
        finally:
            for page in list(self._pages):
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(page.close(code=WSCloseCode.GOING_AWAY), 1.0)
            await runner.cleanup()

    async def _take(self, chunks: Iterable[Chunk]) -> None:
        async with self._changed:
            for chunk in chunks:
                self._history.add(chunk)
            self._changed.notify_all()

    async def _end(self, why: str) -> None:
        async with self._changed:
            self._ended = why
            self._changed.notify_all()

    # Requests

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Refuse what does not know the token, or comes from another page."""
        token = request.match_info.get("token", "")
        hosts = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        origin = request.headers.get("Origin")
        if not hmac.compare_digest(token.encode(), self.token.encode()) or request.host not in hosts:
            raise web.HTTPForbidden(text="This address is not complete: take the one that the inspector has printed.\n")
        if origin is not None and origin.removeprefix("http://") not in hosts:
            raise web.HTTPForbidden(text="Another page may not read this.\n")
        response: web.StreamResponse = await handler(request)
        return response

    async def _file(self, request: web.Request) -> web.Response:
        name = request.match_info["name"] or "index.html"
        data = self._files.get(name)
        if data is None:
            raise web.HTTPNotFound
        headers = dict(_HEADERS)
        if name == "index.html":
            scripts = " ".join(["'self'", *script_hashes(data)])
            headers["Content-Security-Policy"] = (
                f"default-src 'none'; script-src {scripts}; style-src 'self' 'unsafe-inline'; connect-src 'self' "
                f"ws://{request.host}; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'"
            )
        kind = KINDS[name[name.rindex(".") :]]
        return web.Response(body=data, content_type=kind, charset="utf-8", headers=headers)

    def _head(self, request: web.Request) -> dict[str, Any]:
        """Return the head to save: with the marks that the page has, if it names any."""
        text = request.query.get("marks")
        if text is None:
            return self._source.head
        try:
            return with_marks(self._source.head, parse_marks(text))
        except ValueError as error:
            raise web.HTTPBadRequest(text=f"{error}\n") from None

    async def _record(self, request: web.Request) -> web.Response:
        data = pack_head(self._head(request)) + b"".join(chunk.pack() for chunk in self._history.all())
        return _download(data, "application/octet-stream", "machine.kdrecord")

    async def _one_file(self, request: web.Request) -> web.Response:
        head, chunks = self._head(request), self._history.all()
        data = await asyncio.to_thread(one_file, head, chunks)
        return _download(data, "text/html", "machine.html")

    async def _live(self, request: web.Request) -> web.StreamResponse:
        if len(self._pages) >= MAX_PAGES:
            raise web.HTTPServiceUnavailable(text="Too many pages are open.\n")
        page = web.WebSocketResponse(heartbeat=20.0, compress=False, max_msg_size=1 << 16)
        await page.prepare(request)
        self._pages.add(page)
        sender = asyncio.create_task(self._send(request, page))
        try:
            async for _message in page:
                pass  # A page has nothing to say. Its end ends the loop.
        finally:
            sender.cancel()
            self._pages.discard(page)
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await sender
        return page

    async def _send(self, request: web.Request, page: web.WebSocketResponse) -> None:
        """Send the head and every chunk, each when it is there."""
        try:
            await self._patiently(page.send_str(json.dumps({"kind": "head", "head": self._source.head})))
            at, has_told_end, is_ready = self._history.begin, False, False
            while True:
                while at < self._history.end:
                    chunk = self._history.get(at)
                    if chunk is None:
                        # The page has read so slowly that its place is gone. When it connects again, it begins anew.
                        await page.close(code=WSCloseCode.TRY_AGAIN_LATER, message=b"too slow")
                        return
                    await self._patiently(page.send_bytes(chunk.pack()))
                    at += 1
                if not is_ready and self._history.end:
                    is_ready = True
                    await self._patiently(page.send_str(json.dumps({"kind": "ready"})))
                if self._ended and not has_told_end:
                    has_told_end = True
                    await self._patiently(page.send_str(json.dumps({"kind": "end", "why": self._ended})))
                async with self._changed:
                    if at >= self._history.end and (not self._ended or has_told_end):
                        await self._changed.wait()
        except (TimeoutError, ConnectionError):
            # The page is gone, or has not read for long: what is in its socket's buffers is all that it costs.
            if request.transport is not None:
                request.transport.abort()

    @staticmethod
    async def _patiently(sending: Any) -> None:
        await asyncio.wait_for(sending, _STUCK_SECONDS)


def _post(loop: asyncio.AbstractEventLoop, work: Any) -> None:
    with contextlib.suppress(RuntimeError):  # The loop has ended.
        asyncio.run_coroutine_threadsafe(work, loop)


def _download(data: bytes, kind: str, name: str) -> web.Response:
    headers = {**_HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(body=data, content_type=kind, headers=headers)
