"""`inspector --web` as a real program: a running kerneld, several pages at once, users, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

from inspector.viewing import Focus, show_in_browser, show_in_terminal
from shared.failure import Failure, Status
from shared.page.package import one_file
from shared.recording.chunks import KEY, make_chunk, pack_head
from shared.recording.head import make_head
from shared.recording.reader import Recording
from shared.trace.events import VMA_INSERT
from shared.trace.state_events import SNAPSHOT_BEGIN, SNAPSHOT_END, SNAPSHOT_TASK
from tests.support.daemons import environment, private_socket, running_daemon
from tests.support.patience import SECONDS
from tests.web.chromium import Browser
from tests.web.opened import Opened

INSPECTOR = (sys.executable, "-m", "inspector", "--web")
TARGET = (sys.executable, "-m", "target", "--scenario", "demand", "--step")
PAGES = 10


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a daemon that runs."""
    path = private_socket(tmp_path_factory.mktemp("run"))
    with running_daemon(path):
        yield path


@contextmanager
def viewer(path: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the viewer; yield it and its address."""
    environ = {name: value for name, value in environment(path).items() if name not in ("DISPLAY", "BROWSER")}
    process = subprocess.Popen([*INSPECTOR, *words], env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(SECONDS)


@contextmanager
def target(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a target that makes a step for each line."""
    process = subprocess.Popen(
        TARGET, env=environment(path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process
    finally:
        process.communicate("\n" * 100, timeout=SECONDS)


async def until_ready(page: ClientWebSocketResponse) -> list[bytes]:
    """Read a page's messages up to "ready"; return the chunks."""
    chunks = []
    while True:
        message = await page.receive(SECONDS)
        if message.type is WSMsgType.BINARY:
            chunks.append(message.data)
        elif json.loads(message.data)["kind"] == "ready":
            return chunks


def test_it_prints_its_address_and_ends_with_a_signal(path: Path) -> None:
    with viewer(path, "--port", "0") as (process, address):
        assert address.startswith("http://127.0.0.1:")

        async def look() -> None:
            async with ClientSession() as client, client.get(address) as reply:
                assert "kerneld" in await reply.text()

        asyncio.run(look())
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == Status.OK


def test_ten_pages_at_once_have_the_same_record(path: Path) -> None:
    with target(path) as process, viewer(path, str(process.pid)) as (_viewer, address):
        assert address.endswith(f"#pid={process.pid}")

        async def look() -> None:
            async with ClientSession() as client:
                live = f"{address.partition('#')[0]}live"
                pages = [await client.ws_connect(live, max_msg_size=0) for _ in range(PAGES)]
                firsts = await asyncio.gather(*(until_ready(page) for page in pages))
                assert len({first[0] for first in firsts}) == 1
                assert process.stdin is not None
                process.stdin.write("\n\n\n")
                process.stdin.flush()
                for page in pages:
                    assert (await page.receive(SECONDS)).type is WSMsgType.BINARY
                for page in pages:
                    await page.close()
                async with client.get(f"{address.partition('#')[0]}record") as reply:
                    machine = Recording(await reply.read()).machine(1 << 40)
            assert machine.tasks[process.pid].exit_signal is None

        asyncio.run(look())


def test_the_end_of_kerneld_is_said_and_the_record_stays(tmp_path: Path) -> None:
    socket = private_socket(tmp_path)
    with running_daemon(socket) as daemon, viewer(socket) as (_viewer, address):

        async def look() -> None:
            async with ClientSession() as client, client.ws_connect(f"{address}live", max_msg_size=0) as page:
                await until_ready(page)
                daemon.kill()
                while (message := await page.receive(SECONDS)).type is WSMsgType.BINARY:
                    pass
                assert json.loads(message.data) == {"kind": "end", "why": "kerneld went away"}
                async with client.get(f"{address}record") as reply:
                    assert Recording(await reply.read()).machine(0).is_whole

        asyncio.run(look())


def test_the_page_shows_what_happens_as_it_happens(in_browser: Callable[..., Any], path: Path) -> None:
    with target(path) as process, viewer(path, str(process.pid)) as (_viewer, address):
        mm = f"kerneld.machine.mms.get(kerneld.machine.tasks.get({process.pid}).mm)"

        async def look(browser: Browser) -> None:
            await browser.open(address)
            await browser.until(f"kerneld.isLive && {mm}.vmas.size")
            before = await browser.run("kerneld.position")
            assert process.stdin is not None
            process.stdin.write("\n\n\n")
            process.stdin.flush()
            await browser.until(f"kerneld.position > {before} && {mm}.leaves.size")
            assert await browser.run("kerneld.isLive")

        in_browser(look)


def test_a_replay_needs_no_kerneld(tmp_path: Path) -> None:
    file = tmp_path / "a.kdrecord"
    snapshot = b"".join(
        event.layout.pack(event.layout.size, event.number, 0, 0, 0, 1, 0, 0, 0, *fields)
        for event, fields in ((SNAPSHOT_BEGIN, (0, 0, 0, 0)), (SNAPSHOT_END, (0,)))
    )
    file.write_bytes(pack_head(make_head(pids=(), superuser=True)) + make_chunk(KEY, snapshot, 0, 1).pack())
    with viewer(tmp_path / "nobody.sock", "--replay", str(file)) as (_viewer, address):

        async def look() -> None:
            async with ClientSession() as client, client.ws_connect(f"{address}live") as page:
                await until_ready(page)
                message = await page.receive(SECONDS)
                assert json.loads(message.data) == {"kind": "end", "why": "the record ends here"}

        asyncio.run(look())


@pytest.mark.parametrize(
    ("show", "module", "extra"),
    [(show_in_browser, "inspector.web.run", "web"), (show_in_terminal, "inspector.tui.app", "tui")],
)
def test_a_missing_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, show: Callable[..., None], module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    more = {"port": 0} if show is show_in_browser else {}
    with pytest.raises(Failure, match=rf"pip install 'kerneld\[{extra}\]'"):
        show(Focus(None, None), path=None, socket_path=None, **more)


def test_without_kerneld_it_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        INSPECTOR,
        env=environment(tmp_path / "nobody.sock"),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (Status.NO_DAEMON, 1, "")


def test_so_many_mappings_that_no_page_could_show_them(in_browser: Callable[..., Any], tmp_path: Path) -> None:
    """Some have rows, and the page says how many there are more."""
    nr_vmas, base = 100_000, 0x10_0000_0000
    events: list[tuple[Any, tuple[Any, ...]]] = [(SNAPSHOT_BEGIN, (0, 0, 0, 0)), (SNAPSHOT_TASK, (b"many", 5, 0, 1, 0))]
    starts = range(base, base + nr_vmas * 0x2000, 0x2000)
    events += [(VMA_INSERT, (1, start, start + 0x1000, 0x100073, 0)) for start in starts]
    events.append((SNAPSHOT_END, (1,)))
    snapshot = b"".join(
        event.layout.pack(event.layout.size, event.number, 0, 0, 0, 1, 0, 0, 0, *fields) for event, fields in events
    )
    saved = tmp_path / "many.html"
    saved.write_bytes(one_file(make_head(pids=(), superuser=True), [make_chunk(KEY, snapshot, 0, 1)]))

    async def look(browser: Browser) -> None:
        page = await Opened(browser).open(saved.as_uri())
        await page.see("space")
        assert await page.run("document.querySelectorAll('.vma').length") < 1000
        assert f"{nr_vmas - 300:,} more mappings" in await page.text(".spaces")
        assert await page.run("kerneld.machine.mms.get(1).vmas.size") == nr_vmas

    in_browser(look)
