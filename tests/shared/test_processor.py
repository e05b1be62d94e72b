"""A processor that is too old is told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared import processor

V1 = "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat clflush mmx fxsr sse sse2 ht syscall nx lm"


def cpuinfo(directory: Path, flags: str) -> Path:
    path = directory / "cpuinfo"
    path.write_text(f"processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: {flags}\nbugs\t\t:\n\nprocessor\t: 1\n")
    return path


def test_this_one_will_do_or_the_tests_would_not_run() -> None:
    assert processor.why_too_old() == ""


@pytest.mark.parametrize(
    ("more", "lacking"),
    [
        ("", "cx16, lahf_lm, popcnt, pni, sse4_1, sse4_2, ssse3"),
        ("pni cx16 lahf_lm ssse3 sse4_1 popcnt", "sse4_2"),
        ("pni cx16 lahf_lm ssse3 sse4_1 sse4_2 popcnt", ""),
    ],
)
def test_what_is_lacking(tmp_path: Path, more: str, lacking: str) -> None:
    why = processor.why_too_old(cpuinfo(tmp_path, f"{V1} {more}"))
    assert why == (f"this processor is older than x86-64-v2, which numpy needs: it has no {lacking}" if lacking else "")


def test_where_nothing_can_be_told_nothing_is_said(tmp_path: Path) -> None:
    assert processor.why_too_old(tmp_path / "none") == ""
    (tmp_path / "arm").write_text("processor\t: 0\nFeatures\t: fp asimd\n")
    assert processor.why_too_old(tmp_path / "arm") == ""
