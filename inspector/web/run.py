"""`inspector --web`: serves the page until a signal, prints the address, opens a browser where there is one."""

from __future__ import annotations

import asyncio
import os
import webbrowser
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from inspector.web.server import HOST, Viewer
from shared.failure import Failure, Status

if TYPE_CHECKING:
    from inspector.source import Source
    from shared.stop_signals import StopSignals


def serve(source: Source, signals: StopSignals, port: int, focus: dict[str, str], say: Callable[[str], None]) -> None:
    """Serve the page of a record until a signal asks to end. `focus` is what the page shows first. Raises Failure."""
    try:
        asyncio.run(_serve(source, signals, port, focus, say))
    except OSError as error:
        raise Failure(Status.FAILED, f"cannot serve on {HOST} port {port}: {error.strerror or error}") from None


async def _serve(
    source: Source, signals: StopSignals, port: int, focus: dict[str, str], say: Callable[[str], None]
) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(signals.fileno(), stop.set)
    async with Viewer(source).serving(port) as root:
        address = f"{root}#{urlencode(focus)}" if focus else root
        say(address)
        if any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")):
            await asyncio.to_thread(webbrowser.open, address)
        await stop.wait()
