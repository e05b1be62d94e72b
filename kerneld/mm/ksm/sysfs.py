"""The files of /sys/kernel/mm/ksm: what each shows, and what a write to it does.

Answers to Linux v6.8 mm/ksm.c (KSM_ATTR), lib/kstrtox.c, and Documentation/admin-guide/mm/ksm.rst.

| file                                     | a write                                                                 |
|------------------------------------------|-------------------------------------------------------------------------|
| run                                      | 0 to 2, else EINVAL; 2 unmerges everything, ENOMEM: then run is 0         |
| pages_to_scan                            | EINVAL while the advisor chooses it                                     |
| max_page_sharing, merge_across_nodes     | EBUSY while a page is merged; EINVAL below 2, or above 1                 |
| use_zero_pages, smart_scan               | a truth value: 1, 0, y, n, on, off …                                    |
| advisor_mode                             | none or scan-time                                                       |
| advisor_target_scan_time                 | at least 1                                                              |
| sleep_millisecs, the other advisor files | any number                                                              |
| the counters                             | cannot be written                                                       |
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Generator
from functools import partial
from typing import TypeVar

from kerneld.errors import SysError
from kerneld.mm.frames.frames import Frames
from kerneld.mm.ksm.advisor import MODES, set_advisor_mode
from kerneld.mm.ksm.stable import remove_all_stable_nodes
from kerneld.mm.ksm.unmerge import unmerge_and_remove_all_rmap_items
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.ksm_state import RMAP_ITEM_BYTES, RUN_STOP, RUN_UNMERGE, Ksm
from kerneld.mm.space.pace import Steps
from shared.uapi.page import PAGE_SIZE

_UINT_MAX, _INT_MAX, _ULONG_MAX = (1 << 32) - 1, (1 << 31) - 1, (1 << 64) - 1
_NUMBER = re.compile(r"[+]?[0-9]+")
_SIGNED = re.compile(r"[+-]?[0-9]+")
_BOOLS = {"y": True, "t": True, "1": True, "on": True, "n": False, "f": False, "0": False, "of": False}
Store = Callable[[Frames, str], Steps]
Outcome = TypeVar("Outcome")


def show_ksm(frames: Frames, name: str) -> bytes:
    """Return the text of a file. Raises SysError(ENOENT)."""
    ksm = ksm_of(frames)
    if name in _COUNTERS:
        return f"{_COUNTERS[name](frames, ksm)}\n".encode()
    if name == "advisor_mode":
        return (" ".join(f"[{mode}]" if mode == ksm.settings.advisor_mode else mode for mode in MODES) + "\n").encode()
    if name in _STORES:
        return f"{int(getattr(ksm.settings, name))}\n".encode()
    raise SysError(errno.ENOENT)


def store_ksm(frames: Frames, name: str, text: str) -> Steps:
    """Write to a file, in pieces: yields when other clients may be served. Raises SysError as the table above says."""
    if name not in _STORES:
        raise SysError(errno.EACCES if name in _COUNTERS else errno.ENOENT)
    yield from _STORES[name](frames, text.removesuffix("\n"))


def _number(text: str, most: int, pattern: re.Pattern[str] = _NUMBER) -> int:
    """Return a decimal number. Raises SysError(EINVAL), or ERANGE above `most`. Source: lib/kstrtox.c:kstrtoull()."""
    if not pattern.fullmatch(text):
        raise SysError(errno.EINVAL)
    if not -most - 1 <= int(text) <= most:
        raise SysError(errno.ERANGE)
    return int(text)


def _number_or_invalid(text: str, most: int) -> int:
    """Do the same, with EINVAL for all errors, as most of these files."""
    try:
        return _number(text, most)
    except SysError:
        raise SysError(errno.EINVAL) from None


def _store_number(name: str, most: int, least: int, frames: Frames, text: str) -> Steps:
    value = _number_or_invalid(text, most)
    if value < least:
        raise SysError(errno.EINVAL)
    setattr(ksm_of(frames).settings, name, value)
    yield from ()


def _store_bool(name: str, frames: Frames, text: str) -> Steps:
    """Source: Linux v6.8 lib/kstrtox.c:kstrtobool(): the first letter, or of "on" and "off" the first two."""
    low = text.lower()
    key = low[:2] if low[:1] == "o" else low[:1]
    if key not in _BOOLS:
        raise SysError(errno.EINVAL)
    setattr(ksm_of(frames).settings, name, _BOOLS[key])
    yield from ()


def _store_run(frames: Frames, text: str) -> Steps:
    """Source: Linux v6.8 mm/ksm.c:run_store(): a second writer waits for the first (ksm_thread_mutex)."""
    ksm = ksm_of(frames)
    run = _number_or_invalid(text, RUN_UNMERGE)
    while ksm.is_held:
        yield
    if run == ksm.settings.run:
        return
    ksm.settings.run = run
    if run == RUN_UNMERGE:
        try:
            yield from _holding(ksm, unmerge_and_remove_all_rmap_items(frames))
        except SysError:
            ksm.settings.run = RUN_STOP
            raise


def _holding(ksm: Ksm, steps: Generator[None, None, Outcome]) -> Generator[None, None, Outcome]:
    """Keep ksmd and other writers out from the first step to the last."""
    ksm.is_held = True
    try:
        return (yield from steps)
    finally:
        ksm.is_held = False


def _store_pages_to_scan(frames: Frames, text: str) -> Steps:
    if ksm_of(frames).settings.advisor_mode != "none":
        raise SysError(errno.EINVAL)
    yield from _store_number("pages_to_scan", _UINT_MAX, 0, frames, text)


def _store_if_none_is_merged(frames: Frames, name: str, value: int) -> Steps:
    """Change a setting that the stable tree depends on. Raises SysError(EBUSY) while a page is merged."""
    ksm = ksm_of(frames)
    while ksm.is_held:
        yield
    if getattr(ksm.settings, name) != value:
        if ksm.pages_shared or not (yield from _holding(ksm, remove_all_stable_nodes(ksm, frames))):
            raise SysError(errno.EBUSY)
        setattr(ksm.settings, name, value)


def _store_max_page_sharing(frames: Frames, text: str) -> Steps:
    value = _number(text, _INT_MAX, _SIGNED)
    if value < 2:
        raise SysError(errno.EINVAL)
    yield from _store_if_none_is_merged(frames, "max_page_sharing", value)


def _store_merge_across_nodes(frames: Frames, text: str) -> Steps:
    value = _number(text, _ULONG_MAX)
    if value > 1:
        raise SysError(errno.EINVAL)
    yield from _store_if_none_is_merged(frames, "merge_across_nodes", value)


def _store_advisor_mode(frames: Frames, text: str) -> Steps:
    if text not in MODES:
        raise SysError(errno.EINVAL)
    set_advisor_mode(ksm_of(frames), text)
    yield from ()


def _number_store(name: str, most: int, least: int = 0) -> Store:
    return partial(_store_number, name, most, least)


_STORES: dict[str, Store] = {
    "run": _store_run,
    "pages_to_scan": _store_pages_to_scan,
    "sleep_millisecs": _number_store("sleep_millisecs", _UINT_MAX),
    "max_page_sharing": _store_max_page_sharing,
    "stable_node_chains_prune_millisecs": _number_store("stable_node_chains_prune_millisecs", _UINT_MAX),
    "merge_across_nodes": _store_merge_across_nodes,
    "use_zero_pages": partial(_store_bool, "use_zero_pages"),
    "smart_scan": partial(_store_bool, "smart_scan"),
    "advisor_mode": _store_advisor_mode,
    "advisor_max_cpu": _number_store("advisor_max_cpu", _ULONG_MAX),
    "advisor_min_pages_to_scan": _number_store("advisor_min_pages_to_scan", _ULONG_MAX),
    "advisor_max_pages_to_scan": _number_store("advisor_max_pages_to_scan", _ULONG_MAX),
    "advisor_target_scan_time": _number_store("advisor_target_scan_time", _ULONG_MAX, 1),
}


def _pages_volatile(_frames: Frames, ksm: Ksm) -> int:
    """Source: Linux v6.8 mm/ksm.c:pages_volatile_show()."""
    return max(0, ksm.rmap_items - ksm.pages_shared - ksm.pages_sharing - ksm.pages_unshared)


def _general_profit(frames: Frames, ksm: Ksm) -> int:
    """Return the bytes that merging saves. Source: Linux v6.8 mm/ksm.c:general_profit_show()."""
    return (ksm.pages_sharing + frames.ksm_zero_pages) * PAGE_SIZE - ksm.rmap_items * RMAP_ITEM_BYTES


_COUNTERS: dict[str, Callable[[Frames, Ksm], int]] = {
    "pages_scanned": lambda frames, ksm: ksm.pages_scanned,
    "pages_shared": lambda frames, ksm: ksm.pages_shared,
    "pages_sharing": lambda frames, ksm: ksm.pages_sharing,
    "pages_unshared": lambda frames, ksm: ksm.pages_unshared,
    "pages_volatile": _pages_volatile,
    "pages_skipped": lambda frames, ksm: ksm.pages_skipped,
    "ksm_zero_pages": lambda frames, ksm: frames.ksm_zero_pages,
    "full_scans": lambda frames, ksm: ksm.scan.seqnr,
    "stable_node_chains": lambda frames, ksm: ksm.stable_node_chains,
    "stable_node_dups": lambda frames, ksm: ksm.stable_node_dups,
    "general_profit": _general_profit,
}
KSM_FILES = (*_STORES, *_COUNTERS)
"""The names of all files."""
WRITABLE_KSM_FILES = frozenset(_STORES)
