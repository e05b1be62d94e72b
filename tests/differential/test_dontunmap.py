"""The rules of newer kernels for MREMAP_DONTUNMAP: memory that was never faulted and moves to its own side."""

from __future__ import annotations

from signal import SIGBUS

import pytest

from kerneld.mm.space.mempolicy import MPOL_LOCAL
from kerneld.referee.difference import Known, following
from kerneld.referee.known import KNOWN
from kerneld.referee.program import At, Op
from kerneld.referee.simulated import Simulated
from shared.uapi.mman import Map, Mremap
from shared.uapi.page import PAGE_SIZE
from tests.differential.alone import states

ANON = (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value
DONTUNMAP = (Mremap.MAYMOVE | Mremap.FIXED | Mremap.DONTUNMAP).value
MADE = Op(0, "mmap", (At(0), 4 * PAGE_SIZE, 3, ANON, 0))
MOVED = Op(0, "mremap", (At(0), PAGE_SIZE, PAGE_SIZE, DONTUNMAP, At(0, 4 * PAGE_SIZE)))


@pytest.fixture(
    params=[known for known in KNOWN if "copy_vma()" in known.source], ids=lambda difference: difference.source
)
def difference(request: pytest.FixtureRequest) -> Known:
    rule: Known = request.param
    return rule


def test_what_moves_is_watched_no_more(ours: Simulated, difference: Known) -> None:
    """But what stays is (fs/userfaultfd.c:mremap_userfaultfd_prep())."""
    with following([difference]):
        *_, moved, missing, there = states(
            ours, MADE, Op(0, "uffdio_register", (At(0), 4 * PAGE_SIZE, 1)), MOVED,
            Op(0, "load", (At(0), 1)), Op(0, "load", (At(0, 4 * PAGE_SIZE), 1)),
        )  # fmt: skip
    assert ["um" in mapping.flags for mapping in moved.views[0].mappings] == [True, False]
    assert (missing.outcome.signo, there.outcome.data) == (SIGBUS, b"\0")


def test_a_neighbour_with_another_policy_does_not_grow(ours: Simulated, difference: Known) -> None:
    with following([difference]):
        *_, apart, moved = states(
            ours, MADE, Op(0, "mbind", (At(0), 4 * PAGE_SIZE, MPOL_LOCAL, 0, 0, 0)),
            Op(0, "mmap", (At(0, 5 * PAGE_SIZE), PAGE_SIZE, 3, ANON, 0)), MOVED,
        )  # fmt: skip
    assert (len(apart.views[0].mappings), len(moved.views[0].mappings)) == (2, 3)
