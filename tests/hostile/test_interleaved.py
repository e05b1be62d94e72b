"""Hostile datagrams of which several are under way at a time: a quick run."""

from __future__ import annotations

import pytest

from kerneld.mm.space import pace
from kerneld.server import exchange
from tests.hostile.interleaved import InterleavedDrive

DATAGRAMS = 1000


@pytest.mark.parametrize(("seed", "ram_mib"), [(1, 4), (2, 16)])
def test_whatever_others_do_between_two_pieces(seed: int, ram_mib: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory, files and processes go and come between two pieces; invariants hold, and nothing is left."""
    monkeypatch.setattr(exchange, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)
    drive = InterleavedDrive(seed, 0.1, ram_bytes=ram_mib << 20)
    try:
        drive.run(DATAGRAMS)
        drive.finish()
    finally:
        drive.close()
    assert drive.nr_waits > DATAGRAMS // 10
    assert drive.nr_given_up
