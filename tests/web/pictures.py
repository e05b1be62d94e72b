"""Makes the pictures of README.md from the lecture that the tests play: `python -m tests.web.pictures [FOLDER]`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.support.programs import page
from tests.web.chromium import PROGRAM, WHY_NOT, Browser
from tests.web.lesson import Lesson, make_lesson
from tests.web.opened import Opened

FOLDER = Path(__file__).parents[2] / "docs" / "pictures"


async def take(lesson: Lesson, url: str, folder: Path) -> None:
    """Take both pictures."""
    async with Browser() as browser:
        view = await Opened(browser).open(url, width=1280, height=600)
        await view.run(f"kerneldPage.choosePage({lesson.parent}, {page(0)})")
        await view.see("space", lesson.moments["copy"])
        await browser.picture(folder / "copy-on-write.webp")
        await browser.size(1280, 720, dark=True)
        await view.run(f"kerneldPage.choosePage({lesson.child}, {page(0)})")
        await view.see("walk", lesson.moments["copy"])
        await browser.picture(folder / "walk.webp")


def main() -> None:
    """Write the pictures into the folder that is named, or into docs/pictures."""
    if PROGRAM is None:
        sys.exit(WHY_NOT)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(exist_ok=True)
    lesson = make_lesson()
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "lesson.html"
        path.write_bytes(lesson.html)
        asyncio.run(take(lesson, path.as_uri(), folder))


if __name__ == "__main__":
    main()
