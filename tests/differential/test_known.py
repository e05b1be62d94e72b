"""The list of known differences: what people read is what the referee goes by, and it goes with the referee."""

from __future__ import annotations

from pathlib import Path

import pytest

from kerneld.mm import fault, mremap
from kerneld.mm.filemap import AddressSpace
from kerneld.referee import known
from kerneld.referee.known import KNOWN, Known, applying, following_host

FIDELITY = Path(__file__).parents[2] / "docs" / "fidelity.md"


def row(difference: Known) -> str:
    since = f"v{difference.since[0]}.{difference.since[1]}" if difference.since > (0, 0) else "–"
    return f"| {since} | {difference.source} | {difference.what} |"


def test_the_document_has_each_and_no_other() -> None:
    lines = FIDELITY.read_text().splitlines()
    start = lines.index("| since | source | what |") + 2
    assert lines[start : start + len(KNOWN)] == [row(difference) for difference in KNOWN]
    assert not lines[start + len(KNOWN)]


@pytest.mark.parametrize(("release", "has"), [((6, 8), []), ((6, 12), ["f8d112a4e657", "86e6b1547b3d"])])
def test_a_host_has_those_up_to_its_release(
    monkeypatch: pytest.MonkeyPatch, release: tuple[int, int], has: list[str]
) -> None:
    monkeypatch.setattr(known, "host_release", lambda: release)
    assert [difference.source for difference in applying() if difference.since > (0, 0)] == has


def test_the_rules_are_there_for_as_long_as_the_referee(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "host_release", lambda: (6, 18))
    before = (fault.window_to_read, mremap.do_mremap, AddressSpace.unlink_vma)
    with following_host():
        after = (fault.window_to_read, mremap.do_mremap, AddressSpace.unlink_vma)
        assert not any(rule is earlier for rule, earlier in zip(after, before, strict=True))
    assert (fault.window_to_read, mremap.do_mremap, AddressSpace.unlink_vma) == before
