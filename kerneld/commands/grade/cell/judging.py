"""Judges what the inspector did and printed, row by row. Owns the words about what was seen.

Each row is decided by what it is about alone: a program that prints no flags loses the row of the flags, and not those
of the frame numbers.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import statistics
from collections.abc import Iterator

from kerneld.commands.grade.cell.inspecting import LARGE_WINDOW, WINDOW, Inspection, Period, Short
from kerneld.commands.grade.cell.program import ending_words
from kerneld.commands.grade.cell.reading import (
    ADDRESS,
    Window,
    has_number,
    indexed_segments,
    mask_pfn,
    segments,
    whole_segment,
)
from kerneld.commands.grade.cell.states import States, learn
from kerneld.commands.grade.model import Finding, failed, judged, passed
from shared.uapi.shadowpt import Spte

_SECOND = 10**9
_SLOWEST, _FASTEST = 1.6, 0.6
"""Seconds between two prints: the middle one of all, so that a busy host delays single prints only."""
_FEWEST_INTERVALS = 3
_GOOD_ENDS = (0, 130)
"""Exit statuses after Ctrl+C: success, or 128 and SIGINT, as shells have it."""


def judge(seen: Inspection, large: Inspection, shorts: list[Short]) -> Iterator[Finding]:
    """Yield the finding of each row about the inspector."""
    *usage, no_process = shorts
    yield judged("inspector_usage", _why_not_short(usage), "it ended with an error and a line of text each time")
    yield judged("inspector_errors", _why_not_short([no_process]), "it ended with an error and a line of text")
    yield _opens(seen)
    yield _rhythm(seen)
    yield from _contents(seen)
    yield judged("inspector_large", _why_not_large(large, seen), "2,048 pages were opened and printed")
    if seen.opened is None or seen.opened.fields["ret"] < 0:
        yield failed("inspector_closes", "no table was opened, so none could be closed")
        yield failed("inspector_ends", f"no table was opened; it {ending_words(seen.status)}")
        return
    yield judged("inspector_closes", _why_not_closed(seen), "shadowpt_close, by a call")
    yield judged("inspector_ends", _why_not_ended(seen), f"it {ending_words(seen.status)}")


def _why_not_short(shorts: list[Short]) -> str:
    for short in shorts:
        call = " ".join(("./inspector", *short.arguments))
        if short.status is None:
            return f"{call} did not end"
        if os.WIFSIGNALED(short.status) or os.WEXITSTATUS(short.status) == 0:
            return f"{call} {ending_words(short.status)}"
        if not short.text.strip():
            return f"{call} printed nothing"
    return ""


def _opens(seen: Inspection) -> Finding:
    wanted = f"{WINDOW.start:#x} to {WINDOW.end:#x}"
    if seen.opened is None:
        return failed("inspector_opens", "the kernel has seen no shadowpt_open")
    fields = seen.opened.fields
    if fields["ret"] < 0:
        name = errno.errorcode.get(-fields["ret"], str(fields["ret"]))
        return failed("inspector_opens", f"shadowpt_open failed with {name}: {fields['why']}")
    bounds = f"{fields['start']:#x} to {fields['end']:#x}"
    if (fields["start"], fields["end"]) != (WINDOW.start, WINDOW.end):
        return failed("inspector_opens", f"it was asked for {wanted}, and opened {bounds}")
    if seen.started is None:
        return failed("inspector_opens", "shadowpt_open, and no shadowpt_start")
    return passed("inspector_opens", f"shadowpt_open of {bounds}, and shadowpt_start")


def _rhythm(seen: Inspection) -> Finding:
    gaps = [(b - a) / _SECOND for a, b in itertools.pairwise(seen.hits)]
    if len(gaps) < _FEWEST_INTERVALS:
        times = len(seen.hits)
        what = (
            f"page {WINDOW.address(14):#x} was printed {times} times" if times else "no page of the range was printed"
        )
        return failed("inspector_rhythm", f"{what}; {_FEWEST_INTERVALS + 1} prints are needed to see a rhythm")
    middle = statistics.median(gaps)
    words = f"{len(gaps) + 1} prints, {middle:.2f} s apart"
    return judged("inspector_rhythm", "" if _FASTEST <= middle <= _SLOWEST else words, words)


def _contents(seen: Inspection) -> Iterator[Finding]:
    """The four rows about what is printed."""
    if not seen.periods or not seen.periods[0].text.strip():
        why = "no table was opened and started" if seen.started is None else "nothing was printed after start"
        yield from (failed(f"inspector_{row}", why) for row in ("addresses", "pfns", "flags", "live"))
        return
    first = seen.periods[0]
    has_lines = _has_lines(first)
    why_no_address = _why_no_address(first, segments(first.text, WINDOW, has_lines=has_lines))
    found = _read_pages(first, has_lines=has_lines)
    states = learn(found, first.held, seen.text)
    why_no_pfn = _why_no_pfn(first, found)
    pages = sum(1 for _pfn, flags in first.held.values() if flags)
    yield judged("inspector_addresses", why_no_address, f"the addresses of all {pages} allocated pages")
    yield judged("inspector_pfns", why_no_pfn, "the frame number of each mapped page")
    how = "as a number" if states.is_number else "in words or letters"
    yield judged("inspector_flags", states.why_not, f"the state of each page, {how}")
    has_flags, has_pfns = not states.why_not, not why_no_pfn
    if not has_flags and not has_pfns:
        yield failed("inspector_live", "neither frame numbers nor states can be read from the first print")
        return
    why_not = _why_not_live(seen.periods, states if has_flags else None, has_pfns=has_pfns)
    steps = len(seen.periods) - 1
    yield judged("inspector_live", why_not, f"each of {steps} changes of the target, with its exit")


def _has_lines(period: Period) -> bool:
    """Return whether a page has several lines: more frame numbers are then in the lines up to the next address."""
    found, several = (segments(period.text, WINDOW, has_lines=has_lines) for has_lines in (False, True))
    return _count_pfns(period, several) > _count_pfns(period, found)


def _read_pages(period: Period, *, has_lines: bool, has_whole: bool = True) -> dict[int, str]:
    """Return the text of each page, by its address; where no address is printed, by an index, or of all at once.

    Without `has_whole` the range of all pages is a headline: pages with nothing in them are not printed.
    """
    found = segments(period.text, WINDOW, has_lines=has_lines) or indexed_segments(period.text, WINDOW)
    return found or (whole_segment(period.text, WINDOW) if has_whole else {})


def _count_pfns(period: Period, found: dict[int, str]) -> int:
    return sum(1 for index, (pfn, _flags) in period.held.items() if pfn and mask_pfn(found.get(index, ""), pfn)[1])


def _line(segment: str, index: int, window: Window = WINDOW) -> str:
    shown = " ".join(segment.replace(ADDRESS, f"{window.address(index):#x}").split())
    return f"'{shown[:100]}'"


def _why_no_address(period: Period, found: dict[int, str]) -> str:
    missing = _missing(period, found)
    if not missing:
        return ""
    if not found:
        return "no address of the range is in the text"
    return f"{WINDOW.address(missing[0]):#x} is allocated, and not printed; {len(missing)} pages are missing"


def _missing(period: Period, found: dict[int, str]) -> list[int]:
    return [index for index, (_pfn, flags) in period.held.items() if flags and index not in found]


def _why_no_pfn(period: Period, found: dict[int, str]) -> str:
    for index, (pfn, _flags) in period.held.items():
        if pfn and index in found and not mask_pfn(found[index], pfn)[1]:
            held = f"{WINDOW.address(index):#x}: the table held pfn {pfn:#x} ({pfn})"
            return f"{held}; printed: {_line(found[index], index)}"
    if not any(pfn and index in found for index, (pfn, _flags) in period.held.items()):
        # Lines that cannot be told by their addresses may still have the frame numbers.
        missing = [pfn for pfn, _flags in period.held.values() if pfn and not has_number(period.text, pfn)]
        return f"pfn {missing[0]:#x} is not in the text" if missing else ""
    return ""


def _why_not_live(periods: list[Period], states: States | None, *, has_pfns: bool) -> str:
    old: dict[int, set[int]] = {}
    has_lines = _has_lines(periods[0])
    missing = _missing(periods[0], _read_pages(periods[0], has_lines=has_lines))
    for before, period in itertools.pairwise(periods):
        for index, (pfn, _flags) in before.held.items():
            old.setdefault(index, set()).add(pfn)
        if not period.text.strip():
            return f"nothing was printed after '{period.name}'"
        found = _read_pages(period, has_lines=has_lines, has_whole=states is None or not states.says(None, 0, 0))
        for index, (pfn, flags) in period.held.items():
            segment = found.get(index)
            if segment is None and index in missing:
                continue
            wrong = _wrong_entry(segment, pfn, flags, states, old.get(index, set()) - {0, pfn} if has_pfns else None)
            if wrong:
                line = "no line of it" if segment is None else _line(segment, index)
                return f"after '{period.name}', {WINDOW.address(index):#x}: {wrong}; printed: {line}"
    return ""


def _wrong_entry(segment: str | None, pfn: int, flags: int, states: States | None, old: set[int] | None) -> str:
    """Return what is wrong with the text of an entry. `old` are its earlier frames; None: no frames are printed."""
    if segment is None and flags:
        return "the table held an allocated page"
    if old is not None and segment is not None:
        if pfn and not mask_pfn(segment, pfn)[1]:
            return f"the table held pfn {pfn:#x} ({pfn})"
        if any(mask_pfn(segment, one)[1] for one in old):
            return f"the table held {f'pfn {pfn:#x}' if pfn else 'no frame'}, and an earlier one is printed"
    if states is not None and not states.says(segment, pfn, flags):
        return f"the table held {_names(flags)}"
    return ""


def _names(flags: int) -> str:
    return str(Spte(flags)).removeprefix("Spte.") if flags else "no flag"


def _why_not_large(large: Inspection, seen: Inspection) -> str:
    if large.opened is None:
        return "the kernel has seen no shadowpt_open"
    fields = large.opened.fields
    if fields["ret"] < 0:
        name = errno.errorcode.get(-fields["ret"], str(fields["ret"]))
        return f"shadowpt_open failed with {name}: {fields['why']}"
    if large.status_before is not None:
        return f"it {ending_words(large.status_before)} before Ctrl+C"
    if not large.periods:
        # Without start no inspector prints anything: that is the row inspector_opens.
        return "" if seen.started is None else "no shadowpt_start"
    if not large.text.strip():
        return "nothing was printed"
    last = LARGE_WINDOW.pages - 1
    prints_addresses = bool(seen.periods) and not _missing(seen.periods[0], segments(seen.periods[0].text, WINDOW))
    if prints_addresses and last not in segments(large.periods[0].text, LARGE_WINDOW):
        return f"the last page, {LARGE_WINDOW.address(last):#x}, was not printed"
    return ""


def _why_not_closed(seen: Inspection) -> str:
    if seen.closed is not None:
        return ""
    if seen.status_before is not None:
        return f"it {ending_words(seen.status_before)} before Ctrl+C, and the kernel cleaned up"
    if not seen.is_ended:
        return "the kernel has seen no shadowpt_close, and the inspector still runs"
    return f"the inspector {ending_words(seen.status)}, and the kernel had to clean up: no shadowpt_close"


def _why_not_ended(seen: Inspection) -> str:
    if seen.status_before is not None:
        return f"it {ending_words(seen.status_before)} before Ctrl+C"
    if not seen.is_ended or seen.status is None:
        return "it still ran three seconds after Ctrl+C"
    is_good = (
        os.WTERMSIG(seen.status) == signal.SIGINT
        if os.WIFSIGNALED(seen.status)
        else os.WEXITSTATUS(seen.status) in _GOOD_ENDS
    )
    return "" if is_good else f"it {ending_words(seen.status)}"
