"""Hosts whose lists of pages are others than v6.8's by default: what they say of accesses is not compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.referee.host_view import has_lru_gen


@pytest.mark.parametrize(
    ("text", "has"), [("0x0007\n", True), ("0x0001\n", True), ("0x0006\n", False), ("0x0000\n", False)]
)
def test_the_main_switch_decides(tmp_path: Path, text: str, has: bool) -> None:
    (tmp_path / "enabled").write_text(text)
    assert has_lru_gen(tmp_path / "enabled") is has


def test_a_host_without_the_knob_has_none(tmp_path: Path) -> None:
    assert not has_lru_gen(tmp_path / "enabled")
