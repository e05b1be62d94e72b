"""Foreign referees over what a real daemon gives out: the descriptor and the CR3 of the `ram` request, and no more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.client import Process
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_MASK, PAGE_SIZE
from shared.uapi.syscalls import Access
from tests.foreign.agreement import choose_addresses, judge
from tests.foreign.walker import Walker
from tests.support.daemons import running_daemon

ADDRESSES = 5000
PAGES = 600
RW = Prot.READ | Prot.WRITE
ANON = Map.PRIVATE | Map.ANONYMOUS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir(mode=0o700)
    return directory / "kerneld.sock"


def test_a_process_of_a_real_daemon(path: Path) -> None:
    with running_daemon(path):
        client = Process.attach(str(path))
        vaddr = client.mmap(0, PAGES * PAGE_SIZE, RW, ANON)
        client.mem.touch(vaddr, 400 * PAGE_SIZE, Access.WRITE)
        client.mem.touch(vaddr + 400 * PAGE_SIZE, 100 * PAGE_SIZE, Access.READ)
        client.mprotect(vaddr + 100 * PAGE_SIZE, 100 * PAGE_SIZE, Prot.NONE)
        client.mprotect(vaddr + 200 * PAGE_SIZE, 100 * PAGE_SIZE, Prot.READ | Prot.EXEC)
        client.munmap(vaddr + 350 * PAGE_SIZE, 20 * PAGE_SIZE)
        client.mem[vaddr + 5 : vaddr + 9] = b"mark"
        cr3, fd = client.ram(client.pid)
        try:
            ram_bytes = os.fstat(fd).st_size
            ranges = parse_maps(client.read_proc("self/maps").decode())
            addresses = choose_addresses(ranges, ADDRESSES)
            verdicts = judge(fd, ram_bytes, cr3, addresses)
            whole = Walker(fd, ram_bytes, cr3).mapped_pages()
            assert os.pread(fd, 4, whole[vaddr] + 5) == b"mark"
        finally:
            os.close(fd)
        client.close()
    mapped = sum(page in whole for page in range(vaddr, vaddr + PAGES * PAGE_SIZE, PAGE_SIZE))
    assert mapped == 500 - 100 - 20
    assert [vaddr & PAGE_MASK in whole for vaddr in addresses] == (verdicts[:, 0] >= 0).tolist()


def parse_maps(text: str) -> list[tuple[int, int]]:
    """Return the ranges in /proc/PID/maps."""
    edges = [line.split(" ", 1)[0].split("-") for line in text.splitlines()]
    return [(int(start, 16), int(end, 16)) for start, end in edges]
