"""ksmd: runs the scan between requests, in pieces of about a millisecond, and sleeps between two passes.

A pass is `pages_to_scan` pages. It takes no time if nothing is mergeable or `run` is not 1.
Answers to Linux v6.8 mm/ksm.c:ksm_scan_thread().
"""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, thread_time

from kerneld.mm.frames.frames import Frames
from kerneld.mm.ksm.items import drop_items, remove_slot
from kerneld.mm.ksm.scan import IsLocked, ksm_do_scan
from kerneld.mm.space.ksm import ksm_of
from kerneld.mm.space.pace import Pace


class Ksmd:
    """The background task of one machine."""

    def __init__(self, frames: Frames, is_locked: IsLocked) -> None:
        self._frames = frames
        self._ksm = ksm_of(frames)
        self._is_locked = is_locked
        self._pass: Iterator[None] | None = None
        """The rest of a pass; None while ksmd sleeps."""
        self._slept_since = 0.0

    @property
    def is_awake(self) -> bool:
        """Whether there is something to scan, now or after a sleep."""
        return self._ksm.should_run

    @property
    def is_scanning(self) -> bool:
        """Whether a pass has begun and is to go on at once."""
        return self._pass is not None and self._ksm.should_run

    def wait_seconds(self, timeout_seconds: float | None) -> float | None:
        """Return the longest time that the loop may wait, if without ksmd it is `timeout_seconds` (None: for good)."""
        if not self.is_awake:
            return timeout_seconds
        return self._wakes_in() if timeout_seconds is None else min(timeout_seconds, self._wakes_in())

    def _wakes_in(self) -> float:
        """Return in how many seconds the next piece is due."""
        if self._pass is not None:
            return 0.0
        return max(0.0, self._slept_since + self._ksm.settings.sleep_millisecs / 1000 - monotonic())

    def stop(self) -> None:
        """End with the machine: forget what was scanned, and so the address spaces that have ended."""
        self._pass = self._ksm.scan.slot = None
        for slot in list(self._ksm.slots):
            drop_items(self._ksm, self._frames, slot, 0, len(slot.items))
            remove_slot(self._ksm, slot)
        self._ksm.unstable.root = None
        self._ksm.leaving.clear()

    @property
    def is_due(self) -> bool:
        """Whether a piece is to run now."""
        return self.is_awake and not self._wakes_in()

    def run(self) -> bool:
        """Scan for one piece of time, if that is due, and return whether anything was scanned."""
        if not self.is_due:
            return False
        begun, pace = thread_time(), Pace()
        if self._pass is None:
            self._pass = ksm_do_scan(self._ksm, self._frames, self._ksm.settings.pages_to_scan, self._is_locked)
        for _ in self._pass:
            if pace.is_over() or not self.is_awake:
                break
        else:
            self._pass, self._slept_since = None, monotonic()
        self._ksm.cpu_seconds += thread_time() - begun
        return True
