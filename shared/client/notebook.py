"""What a notebook shows of a process: the open shadow page table, or the mappings, as a small plain table. Pure."""

from __future__ import annotations

import html
from collections.abc import Iterable

from shared.proc_maps import parse_maps
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import SHADOW_PTE, Layout, Spte, SpteF23

MAX_ROWS = 100


def shadow_html(entries: bytes, layout: Layout = Layout.F24) -> str:
    """Return the entries of a shadow page table (struct shadow_pte one after the other) as a table, in runs."""
    names = SpteF23 if layout is Layout.F23 else Spte
    runs: list[list[int]] = []
    for vaddr, pfn, flags in SHADOW_PTE.iter_unpack(entries):
        if runs and runs[-1][3] == flags and pfn == (runs[-1][2] + runs[-1][1] if runs[-1][2] > 1 else runs[-1][2]):
            runs[-1][1] += 1
        else:
            runs.append([vaddr, 1, pfn, flags])
    rows = (
        (
            f"{vaddr:#x}",
            str(pages),
            f"{pfn:#x}" if pfn else "",
            " ".join(flag.name or "" for flag in names if flags & flag),
        )
        for vaddr, pages, pfn, flags in runs
    )
    return _table(("vaddr", "pages", "pfn", "state_flags"), rows, len(runs))


def maps_html(text: str) -> str:
    """Return the text of a maps file as a table."""
    mappings = parse_maps(text)
    rows = (
        (f"{one.start:#x}", f"{one.end:#x}", str((one.end - one.start) // PAGE_SIZE), one.perms, one.name)
        for one in mappings
    )
    return _table(("start", "end", "pages", "rights", "name"), rows, len(mappings))


def text_html(text: str) -> str:
    """Return a line of text."""
    return f"<p>{html.escape(text)}</p>"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]], count: int) -> str:
    shown = [row for row, _number in zip(rows, range(MAX_ROWS), strict=False)]
    lines = [_row("th", heads), *(_row("td", row) for row in shown)]
    more = f"<p>… {count - len(shown)} more rows</p>" if count > len(shown) else ""
    return f"<table>{''.join(lines)}</table>{more}"


def _row(tag: str, cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
