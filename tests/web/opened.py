"""The page with a record in it, and what a test asks of it."""

from __future__ import annotations

from typing import Any

from tests.web.chromium import Browser

DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(done))))"


class Opened:
    """A page that has read its record whole."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser

    async def open(self, url: str, *, width: int = 1280, height: int = 720, dark: bool = False) -> Opened:
        """Open a saved file, and wait for the end of its record."""
        await self.browser.size(width, height, dark=dark)
        await self.browser.open(url)
        await self.browser.until("Boolean(kerneld.ended && kerneldPage.scene)")
        return self

    async def run(self, expression: str) -> Any:
        """Evaluate JavaScript when the page has drawn."""
        await self.browser.run(DRAWN)
        return await self.browser.run(expression)

    async def see(self, view: str, moment: int | None = None) -> None:
        """Show a view, at a moment."""
        if moment is not None:
            await self.browser.run(f"void kerneld.seek({moment})")
        await self.browser.run(f"void kerneldPage.show('{view}')")
        await self.browser.run(DRAWN)

    async def text(self, selector: str) -> str:
        """Return what is written in an element."""
        return str(await self.run(f"document.querySelector({selector!r}).innerText"))

    async def pages(self, pid: int, vaddr: int) -> list[str]:
        """Return the name of the kind of each cell of the VMA that begins at an address, with its marks."""
        return list(
            await self.run(
                f"""(() => {{
                  const row = kerneldPage.views.get("space").view.columns.get({pid}).rows.get("vma {vaddr}");
                  const marks = [[256, "accessed"], [512, "dirty"], [1024, "locked"], [2048, "changed"]];
                  return [...row.grid.cells].map((cell) => [row.grid.kinds[cell & 255].name,
                    ...marks.filter(([bit]) => cell & bit).map(([, name]) => name)].join(" "));
                }})()"""
            )
        )
