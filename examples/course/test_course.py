"""An example for instructors: tests of the shadow page table with the fixtures of pytest-kerneld. Copy and change it.

pip install CHECKOUT pytest; pytest test_course.py      (CHECKOUT: the directory of kerneld's sources)
"""

from __future__ import annotations

from collections.abc import Callable

from kerneld.pytest_plugin import ShadowTable
from shared.client import Process
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import Spte

START = 0x10_0000_0000
ALLOCATED = Spte.VADDR_ALLOCATED | Spte.VADDR_ANONYMOUS


def test_a_page_gets_its_frame_at_the_first_write(
    kerneld_process: Process, shadow_table: Callable[..., ShadowTable]
) -> None:
    table = shadow_table(START, 4)
    kerneld_process.mmap(START, 2 * PAGE_SIZE, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
    assert [entry.state for entry in table.entries()] == [ALLOCATED, ALLOCATED, 0, 0]
    kerneld_process.mem.store_u8(START, 1)
    assert table[START].state == ALLOCATED | Spte.PTE_MAPPED
    assert table[START].pfn != 0
    assert table[START + PAGE_SIZE].pfn == 0


def test_munmap_takes_the_frame_away(kerneld_process: Process, shadow_table: Callable[..., ShadowTable]) -> None:
    kerneld_process.mmap(START, PAGE_SIZE, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS | Map.FIXED)
    kerneld_process.mem.store_u8(START, 1)
    table = shadow_table(START, 1)
    assert table[START].state & Spte.PTE_MAPPED
    kerneld_process.munmap(START, PAGE_SIZE)
    assert table[START] == (START, 0, 0)
