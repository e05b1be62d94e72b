"""The probes, by what they watch: each file puts its own into `kerneld.trace.probe.PROBES` when it is imported.

This package imports none of them: to import all takes a while, and a daemon does that one by one.
"""

from __future__ import annotations

NAMES = ("fault", "frames", "pte", "reclaim", "request", "rss", "shadow", "task", "vma")
