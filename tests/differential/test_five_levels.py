"""Where five levels of page tables reach and four do not."""

from __future__ import annotations

import errno

import pytest

from kerneld.mm.calls import mremap
from kerneld.mm.calls.userfaultfd import check_range
from kerneld.mm.space import munmap
from kerneld.referee.difference import following
from kerneld.referee.five_levels import TASK_SIZE_5LEVEL, is_out_of_reach
from kerneld.referee.known import KNOWN
from shared.uapi import page
from shared.uapi.mman import Mremap
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from tests.support.machine import Machine, errno_of

_RULE = [known for known in KNOWN if known.source.startswith("CONFIG_X86_5LEVEL")]
FIXED = (Mremap.MAYMOVE | Mremap.FIXED).value


@pytest.mark.parametrize(
    ("name", "args", "out"),
    [
        ("mmap", (0, 1 << 48, 3, 0x22, 0), False),  # no hint: searched for where four levels reach
        ("mmap", (1 << 47, 4096, 3, 0x22, 0), True),
        ("mmap", (TASK_SIZE - 4096, 4096, 3, 0x22, 0), False),
        ("mmap", (TASK_SIZE - 4096, 8192, 3, 0x32, 0), True),
        ("mremap", (0x10000, 4096, 8192, FIXED, TASK_SIZE - 4096), True),
        ("mremap", (0x10000, 4096, 1 << 48, Mremap.MAYMOVE.value, 0), False),
        ("shmat", (1 << 47, 4096), True),
        ("shmat", (0, 1 << 24), False),
        ("munmap", (1 << 47, 4096), False),
        ("uffdio_unregister", (1 << 47, 4096), True),
        ("uffdio_register", (TASK_SIZE - 4096, 8192, 1), False),
    ],
)
def test_what_only_five_levels_reach(name: str, args: tuple[int, ...], out: bool) -> None:
    assert is_out_of_reach(name, args) is out


def test_a_range_of_a_userfaultfd_may_lie_there() -> None:
    """Nothing is mapped there: that is another error than EINVAL, and comes later."""
    mm = Machine().new_mm()
    assert errno_of(lambda: check_range(mm, 1 << 47, PAGE_SIZE)) == errno.EINVAL
    with following(_RULE):
        check_range(mm, 1 << 47, PAGE_SIZE)
        assert errno_of(lambda: check_range(mm, 1 << 56, PAGE_SIZE)) == errno.EINVAL


def test_the_rule_is_for_the_modules_that_it_names() -> None:
    with following(_RULE):
        assert vars(munmap)["TASK_SIZE"] == vars(mremap)["TASK_SIZE"] == TASK_SIZE_5LEVEL
        assert page.TASK_SIZE == TASK_SIZE
    assert vars(munmap)["TASK_SIZE"] == TASK_SIZE
