"""Whether this machine's processor is one that the packages from PyPI are built for: x86-64-v2.

numpy's wheels have that as their baseline; on an older processor they end with a traceback, or with SIGILL.
"""

from __future__ import annotations

from pathlib import Path

_V2 = ("cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3")
"""/proc/cpuinfo's names of what x86-64-v2 adds: Linux v6.8 arch/x86/Makefile.cpu, and the psABI of x86-64."""
_CPUINFO = Path("/proc/cpuinfo")


def why_too_old(cpuinfo: Path = _CPUINFO) -> str:
    """Say in a line what the processor lacks of x86-64-v2; "" where it lacks nothing, or that cannot be told."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    flags = next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), None)
    lacking = [flag for flag in _V2 if flags is not None and flag not in flags]
    if not lacking:
        return ""
    return f"this processor is older than x86-64-v2, which numpy needs: it has no {', '.join(lacking)}"
