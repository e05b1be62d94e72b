"""The probes, one file for each subject. Each file adds its probes to `kerneld.trace.probe.PROBES` when it is imported.

This package imports none of them: importing all takes a while, so the daemon imports them one by one.
"""

from __future__ import annotations

NAMES = ("fault", "frames", "moves", "pte", "reclaim", "request", "rss", "shadow", "task", "vma")
