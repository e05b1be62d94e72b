"""The probes, by what they watch. Importing this package puts all of them into `kerneld.trace.probe.PROBES`."""

from __future__ import annotations

from kerneld.trace.probes import fault, frames, pte, reclaim, request, rss, shadow, task, vma

__all__ = ["fault", "frames", "pte", "reclaim", "request", "rss", "shadow", "task", "vma"]
