"""The check of what the host maps: against mappings that this process really has."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.errors import KernelBug
from kerneld.tlb import host_check
from kerneld.tlb.host_check import check_host, host_mappings
from kerneld.tlb.rights import READ, WRITE, TlbWords
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, PMD_SHIFT

FRAME = 5


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Map two frames of a file that stands for the RAM, and return their address.

    It has a name of its own: other tests have machines in this process, and their RAM is mapped.
    """
    monkeypatch.setattr(host_check, "_RAM", "/memfd:a-test's-ram")
    fd = os.memfd_create("a-test's-ram")
    os.truncate(fd, 16 * PAGE_SIZE)
    with mmap.mmap(fd, 2 * PAGE_SIZE, offset=FRAME * PAGE_SIZE):
        os.close(fd)
        yield next(found.start for found in host_mappings(os.getpid()))


def granted(vaddr: int, *words: int) -> dict[int, TlbWords]:
    """Return a TLB's table with these words from an address on."""
    tables: dict[int, TlbWords] = {}
    for number, word in enumerate(words):
        at = vaddr + number * PAGE_SIZE
        table = tables.setdefault(at >> PMD_SHIFT, np.zeros(512, dtype=np.uint64))
        table[at >> PAGE_SHIFT & 511] = word
    return tables


def frame(number: int, rights: int) -> int:
    """Return a TLB word."""
    return number << PAGE_SHIFT | rights


def test_what_is_granted_may_be_mapped(mapped: int) -> None:
    check_host(os.getpid(), granted(mapped, frame(FRAME, READ | WRITE), frame(FRAME + 1, READ | WRITE)))


@pytest.mark.parametrize(
    "second",
    [0, frame(FRAME + 1, READ), frame(FRAME, READ | WRITE), frame(FRAME + 2, READ | WRITE)],
    ids=["nothing", "to be read", "its neighbour's frame", "another frame"],
)
def test_more_is_found(mapped: int, second: int) -> None:
    with pytest.raises(KernelBug, match=f"at {mapped + PAGE_SIZE:#x}"):
        check_host(os.getpid(), granted(mapped, frame(FRAME, READ | WRITE), second))


def test_a_process_that_has_ended_maps_nothing() -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitpid(pid, 0)
    check_host(pid, {})
