"""Tells whether the packages from PyPI can run on this processor: they need x86-64-v2.

On an older processor numpy's wheels end with a traceback, or with SIGILL.
"""

from __future__ import annotations

from pathlib import Path

_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
"""The features of x86-64-v2, by their names in /proc/cpuinfo: Linux v6.8 arch/x86/Makefile.cpu, and the psABI of
x86-64."""
_CPUINFO = Path("/proc/cpuinfo")


def why_too_old(cpuinfo: Path = _CPUINFO) -> str:
    """Return a line with the features of x86-64-v2 that the processor lacks.

    "" if it lacks none, or on no information.
    """
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
    lacking = [flag for flag in _V2 if flags is not None and flag not in flags]
    if not lacking:
        return ""
    return f"this processor is older than x86-64-v2, which numpy needs: it has no {', '.join(lacking)}"
