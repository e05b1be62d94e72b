"""Measures the page in a browser: `python -m tests.web.measure`. It asserts nothing: the figures are in docs/view.md.

CPU times are those of the page's main thread, which other programs of the machine do not disturb.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
from pathlib import Path

from tests.web.chromium import PROGRAM, WHY_NOT, Browser
from tests.web.synthetic import changes, saved

PAGES, FRAMES, MANY = 2048, 300, 1_000_000
_RUN = """(async (rounds, frames, count) => {
  const parts = rounds.map((text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)));
  const times = [];
  kerneld.ended = ""; kerneld.goLive();
  await new Promise((done) => {
    let last = 0;
    const frame = (now) => {
      if (last) times.push(now - last);
      last = now;
      if (times.length >= frames) return done();
      const chunk = { kind: "EVNT", flags: 0, events: count, first: kerneld.recording.nrEvents, time: 0n };
      kerneld.add(chunk, parts[times.length % 2]);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  });
  times.sort((one, other) => one - other);
  return [times[times.length >> 1], times[Math.floor(times.length * 0.95)]];
})"""


async def _cpu(browser: Browser) -> float:
    metrics = (await browser.send("Performance.getMetrics"))["metrics"]
    return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))


async def _open(browser: Browser, folder: Path, pages: int) -> float:
    path = folder / f"{pages}.html"
    path.write_bytes(saved(pages))
    await browser.open(path.as_uri())
    return float(await browser.until("kerneldPage.scene && kerneld.ended && performance.now()"))


async def measure() -> None:
    """Open both records, and print the figures."""
    with tempfile.TemporaryDirectory() as name:
        async with Browser() as browser:
            await browser.send("Performance.enable", timeDomain="threadTicks")
            await browser.size(1280, 720)
            await _open(browser, Path(name), PAGES)
            before = await _cpu(browser)
            rounds = [base64.b64encode(changes(PAGES, n)).decode() for n in (0, 1)]
            median, slow = await browser.run(f"{_RUN}({rounds!r}, {FRAMES}, {PAGES})")
            each = (await _cpu(browser) - before) / FRAMES * 1000
            print(
                f"{PAGES:,} pages change in each frame: {median:.1f} ms a frame (median), {slow:.1f} ms (p95),", end=" "
            )
            print(f"{each:.1f} ms of CPU a frame")
            opened = await _open(browser, Path(name), MANY)
            print(f"{MANY:,} mapped pages: open after {opened:.0f} ms, {await _cpu(browser) * 1000:.0f} ms of CPU")


if __name__ == "__main__":
    if PROGRAM is None:
        sys.exit(WHY_NOT)
    asyncio.run(measure())
