"""The scan-time advisor: changes `pages_to_scan` so that a full scan takes `advisor_target_scan_time` seconds.

Answers to Linux v6.8 mm/ksm.c:scan_time_advisor(). All divisions drop the rest, as there.
"""

from __future__ import annotations

from time import monotonic

from kerneld.mm.space.ksm_state import DEFAULT_PAGES_TO_SCAN, AdvisorContext, Ksm

MODES = ("none", "scan-time")
_EWMA_WEIGHT = 30
_MIN_CPU = 10
"""The least share of a processor, in per cent, that the advisor lets the scan have."""


def set_advisor_mode(ksm: Ksm, mode: str) -> None:
    """Change `advisor_mode`, one of `MODES`; a new mode begins with its own `pages_to_scan`.

    Source: Linux v6.8 mm/ksm.c:advisor_mode_store(), set_advisor_defaults().
    """
    settings = ksm.settings
    if settings.advisor_mode == mode:
        return
    settings.advisor_mode = mode
    if mode == "none":
        settings.pages_to_scan = DEFAULT_PAGES_TO_SCAN
    else:
        ksm.advisor = AdvisorContext()
        settings.pages_to_scan = settings.advisor_min_pages_to_scan


def advisor_start_scan(ksm: Ksm) -> None:
    """Note that a full scan begins."""
    if ksm.settings.advisor_mode != "none":
        ksm.advisor.start_scan = monotonic()


def advisor_stop_scan(ksm: Ksm) -> None:
    """Note that a full scan is over, and choose the pages of the next passes."""
    if ksm.settings.advisor_mode != "none":
        scan_time_advisor(ksm, int(monotonic() - ksm.advisor.start_scan))


def scan_time_advisor(ksm: Ksm, scan_seconds: int) -> None:
    """Choose `pages_to_scan` after a full scan that took so many seconds.

    Source: Linux v6.8 mm/ksm.c:scan_time_advisor().
    """
    settings, context = ksm.settings, ksm.advisor
    scan_time = scan_seconds or 1
    cpu_millisecs = int((ksm.cpu_seconds - context.cpu_time) * 1000)
    cpu_percent = cpu_millisecs * 100 // (scan_time * 1000) or 1
    factor = settings.advisor_target_scan_time * 100 // scan_time or 1
    change = scan_time * 100 // (context.scan_time or scan_time) or 1
    change = ((100 - _EWMA_WEIGHT) * context.change + _EWMA_WEIGHT * change) // 100
    pages = settings.pages_to_scan * 100 // factor * change // 100
    per_page_cost = settings.pages_to_scan // cpu_percent or 1
    pages = min(pages, per_page_cost * settings.advisor_max_cpu)
    pages = max(pages, per_page_cost * _MIN_CPU)
    context.change, context.scan_time, context.cpu_time = change, scan_time, ksm.cpu_seconds
    settings.pages_to_scan = min(pages, settings.advisor_max_pages_to_scan)
