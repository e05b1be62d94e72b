"""A headless Chromium, driven by the DevTools protocol: opens pages, runs JavaScript, presses keys, takes pictures.

Chromium is Debian's package of that name. It connects to nothing but the page's own address.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
WHY_NOT = "there is no chromium (Debian: apt install chromium)"
_END_SECONDS = 5.0
_ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--allow-file-access-from-files", "--remote-debugging-port=0", "about:blank",
)  # fmt: skip


class PageError(Exception):
    """JavaScript of the page, or of the test in it, has failed."""


class Browser:
    """One Chromium with one page."""

    def __init__(self) -> None:
        assert PROGRAM is not None
        self._profile = tempfile.TemporaryDirectory(prefix="kerneld-chromium-", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [PROGRAM, f"--user-data-dir={self._profile.name}", *_ARGUMENTS],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            # What it leaves in the directory for temporary files goes with the profile.
            env=os.environ | {"DBUS_SESSION_BUS_ADDRESS": "", "TMPDIR": self._profile.name}, start_new_session=True,
        )  # fmt: skip
        self._port = self._read_port()
        self._numbers = itertools.count(1)
        self.errors: list[str] = []
        """What the page's console has said of failures."""

    def _read_port(self) -> int:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "DevTools listening on" in line:
                return int(line.rsplit("/devtools", 1)[0].rsplit(":", 1)[1])
        raise PageError("chromium does not start")

    async def __aenter__(self) -> Browser:
        self._session = ClientSession()
        async with self._session.get(f"http://127.0.0.1:{self._port}/json/list") as reply:
            targets = json.loads(await reply.text())
        url = next(one["webSocketDebuggerUrl"] for one in targets if one["type"] == "page")
        self._socket: ClientWebSocketResponse = await self._session.ws_connect(url, max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._socket.close()
        await self._session.close()
        self.close()

    def close(self) -> None:
        """End Chromium, with its other processes: they write to the profile until they have gone."""
        self._process.terminate()
        self._process.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stderr is not None:
            self._process.stderr.close()
        end = time.monotonic() + _END_SECONDS
        while os.path.exists(self._profile.name) and time.monotonic() < end:
            shutil.rmtree(self._profile.name, ignore_errors=True)
        self._profile.cleanup()

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Make a request of the protocol, and return its result."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await self._socket.receive()
            if message.type is not WSMsgType.TEXT:
                raise PageError("chromium has gone")
            said = json.loads(message.data)
            if said.get("id") == number:
                if "error" in said:
                    raise PageError(said["error"]["message"])
                return dict(said["result"])
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        if said.get("method") == "Runtime.exceptionThrown":
            details = said["params"]["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif said.get("method") == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
            self.errors.append(said["params"]["entry"]["text"])

    async def open(self, url: str) -> None:
        """Open a page; wait until it has loaded."""
        await self.send("Page.navigate", url=url)
        await self.run(
            "new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )

    async def run(self, expression: str) -> Any:
        """Evaluate JavaScript in the page, wait for a promise, and return the value. Raises PageError."""
        result = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true in a frame of the page, and return its value."""
        return await self.run(
            f"new Promise((done) => {{ const look = () => {{ let found; try {{ found = {expression}; }} catch {{}} "
            "found ? done(found) : setTimeout(look, 5); }; look(); })"
        )

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key, as a person does."""
        text = {"Enter": "\r", " ": " "}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, " ": 32, "Tab": 9, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
                "Home": 36, "End": 35, "Escape": 27}.get(key, ord(key[0].upper()))  # fmt: skip
        more: dict[str, Any] = {"text": text} if text else {}
        for kind in ("keyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=8 if shift else 0,
                **(more if kind == "keyDown" else {}),
            )  # fmt: skip

    async def size(self, width: int, height: int, *, dark: bool = False, scale: float = 1.0) -> None:
        """Give the page a size in pixels, and light or dark."""
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.send("Emulation.setEmulatedMedia", features=features)

    async def picture(self, path: Path | str) -> None:
        """Write a picture of the page: PNG or WebP, as the name ends."""
        how: dict[str, Any] = {"format": "webp", "quality": 70} if Path(path).suffix == ".webp" else {"format": "png"}
        shot = await self.send("Page.captureScreenshot", **how)
        Path(path).write_bytes(base64.b64decode(shot["data"]))
