"""One page of a file that is mapped very often: others are served between its mappings, and may change them then."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_RW
from kerneld.mm.calls import move_page_tables
from kerneld.mm.files import i_mmap
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.space import pace
from kerneld.mm.space.vma import Vma
from kerneld.server.batch import Batch
from kerneld.syscalls.kernel import Kernel
from shared.uapi.mman import Madv, Map, Mremap, Ms
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Nr
from tests.support.in_process import Client
from tests.support.long_requests import attached, begun, call, finish, kernel_in_pieces
from tests.support.wide_ranges import ANON, BASE, NO_FD, READ, RW, mm_of

TIMES = 40
"""More than the mappings of a file that have no buckets."""
INDEX = 1
"""The page that is mapped so often."""
SHARED = (Map.SHARED | Map.FIXED).value
MOVE = (Mremap.MAYMOVE | Mremap.FIXED).value
AWAY = BASE + (1 << 30)
SYNC = Ms.SYNC.value


def place(number: int) -> int:
    return BASE + number * 4 * PAGE_SIZE


def address_in(vma: Vma) -> int:
    return vma.start + (INDEX - vma.pgoff) * PAGE_SIZE


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """Every slice and every piece is over at once; two VMAs of a file are many, and so are two tables."""
    monkeypatch.setattr(pace, "_AT_ONCE", 2 * PMD_SIZE)
    monkeypatch.setattr(i_mmap, "_WALKED_AT_ONCE", 2)
    monkeypatch.setattr(move_page_tables, "_MOVED_AT_ONCE", 2 * PMD_SIZE)
    for kernel in kernel_in_pieces(monkeypatch):
        # The tests check when they mean to: each of hundreds of requests and pieces would take a minute.
        kernel.config = replace(kernel.config, check_invariants=False)
        yield kernel


class World:
    """Three processes that map one page: the first once, the second often, the third once."""

    def __init__(self, kernel: Kernel, path: Path) -> None:
        self.kernel, self.path = kernel, path
        path.write_bytes(bytes(4 * PMD_SIZE))
        self.fd = os.open(path, os.O_RDWR)
        self.caller, self.often, self.third = (attached(kernel, pid) for pid in (os.getpid(), 1 << 22, (1 << 22) + 1))
        self.map(self.often, place(0), 0)
        for number in range(1, TIMES):
            self.map(self.often, place(number), INDEX)
        self.map(self.caller, BASE, INDEX)
        self.map(self.third, BASE, INDEX)
        assert mm_of(self.caller).vmas.lookup(BASE) is not None

    def check(self) -> None:
        """Check every invariant."""
        with_checks = replace(self.kernel.config, check_invariants=True)
        without, self.kernel.config = self.kernel.config, with_checks
        self.kernel.check()
        self.kernel.config = without

    def map(self, who: Client, vaddr: int, index: int, length: int = PAGE_SIZE) -> None:
        assert who.call is not None
        who.call.fds.append(os.dup(self.fd))
        assert call(who, Nr.MMAP, vaddr, length, RW, SHARED, 0, index * PAGE_SIZE).ret == vaddr

    @property
    def mapping(self) -> AddressSpace:
        vma = mm_of(self.caller).vmas.lookup(BASE)
        assert vma is not None
        assert vma.file is not None
        return vma.file.mapping

    def store_everywhere(self, data: bytes) -> None:
        """Each mapping of the page that is there gets a store."""
        clients = {mm_of(client): client for client in (self.caller, self.often, self.third) if client.thread}
        for vma in self.mapping.i_mmap.overlapping(INDEX, INDEX + 1):
            # A fork's copy that nobody has taken yet has no client.
            if vma.vm_mm in clients:
                assert call(clients[vma.vm_mm], Nr.STORE, address_in(vma), 1, data=data).ret == len(data)

    def sync(self) -> Batch:
        return begun(self.caller, Nr.MSYNC, BASE, PAGE_SIZE, SYNC)

    def entries(self) -> list[int]:
        """Return the entries that map the page."""
        entries = []
        for vma in self.mapping.i_mmap.overlapping(INDEX, INDEX + 1):
            assert vma.vm_mm is not None
            pte = vma.vm_mm.page_table.find_pte(address_in(vma))
            if pte is not None and self.kernel.frames.ram.words[pte]:
                entries.append(self.kernel.frames.ram.words[pte])
        return entries

    def writable(self) -> int:
        """Return how many of them are writable."""
        return sum(entry & PTE_RW != 0 for entry in self.entries())

    def in_file(self) -> bytes:
        return self.path.read_bytes()[INDEX * PAGE_SIZE :][:1]


@pytest.fixture
def world(kernel: Kernel, tmp_path: Path) -> Iterator[World]:
    world = World(kernel, tmp_path / "file")
    yield world
    os.close(world.fd)


def test_msync_gives_way_between_the_mappings_of_one_page(world: World) -> None:
    world.store_everywhere(b"x")
    (reply,), served = finish(world.sync(), world.third)
    assert reply.ret == 0
    assert served >= TIMES // 2
    assert (world.writable(), set(world.mapping.dirty), world.in_file()) == (0, set(), b"x")


def unmaps(world: World, number: int) -> None:
    assert call(world.often, Nr.MUNMAP, place(number), PAGE_SIZE).ret == 0


def moves(world: World, number: int) -> None:
    to = AWAY + place(number)
    assert call(world.often, Nr.MREMAP, place(number), PAGE_SIZE, PAGE_SIZE, MOVE, to).ret == to


def joins(world: World, number: int) -> None:
    """A mapping joins another one, which begins before the page, and has been passed already."""
    assert call(world.often, Nr.MREMAP, place(number), PAGE_SIZE, PAGE_SIZE, MOVE, place(0) + PAGE_SIZE).ret > 0


def forks(world: World, _number: int) -> None:
    assert call(world.often, Nr.CLONE).ret > 0


def dies(world: World, _number: int) -> None:
    assert world.third.thread is not None
    world.kernel.process_died(world.third.thread.process)
    world.third.thread = None


def splits(world: World, number: int) -> None:
    """The mapping grows, and its halves get different rights: VMAs with other bounds, and a new one."""
    assert call(world.often, Nr.MREMAP, place(number), PAGE_SIZE, 2 * PAGE_SIZE, 0).ret == place(number)
    assert call(world.often, Nr.MPROTECT, place(number) + PAGE_SIZE, PAGE_SIZE, READ).ret == 0


def refuses_writes(world: World, number: int) -> None:
    for prot in (READ, RW):
        assert call(world.often, Nr.MPROTECT, place(number), PAGE_SIZE, prot).ret == 0


def writes(world: World, number: int) -> None:
    assert call(world.often, Nr.STORE, place(number), 1, data=b"y").ret == 1


def syncs_too(world: World, number: int) -> None:
    assert call(world.often, Nr.MSYNC, place(number), PAGE_SIZE, SYNC).ret == 0


def pages_out(world: World, number: int) -> None:
    assert call(world.often, Nr.MADVISE, place(number), PAGE_SIZE, Madv.PAGEOUT).ret == 0


def maps_over(world: World, number: int) -> None:
    assert call(world.often, Nr.MMAP, place(number), PAGE_SIZE, RW, ANON, NO_FD, 0).ret == place(number)


def truncates(world: World, _number: int) -> None:
    os.truncate(world.path, 0)
    world.kernel.files.take_changes()


ACTS = [
    unmaps, moves, joins, forks, dies, splits, refuses_writes, writes, syncs_too, pages_out, maps_over, truncates
]  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("number", [2, TIMES - 1])
def test_what_others_do_meanwhile(world: World, act: Callable[[World, int], None], number: int) -> None:
    """The invariants that are checked have it: no entry is writable whose page counts as clean."""
    world.store_everywhere(b"x")
    batch = world.sync()
    for _ in range(TIMES // 4):
        assert batch.run(0.0) is None
    act(world, number)
    world.check()
    (reply,), _ = finish(batch, world.caller)
    world.check()
    assert reply.ret == 0
    if act is truncates:
        return
    assert world.in_file() in (b"x", b"y")
    world.store_everywhere(b"z")
    assert call(world.caller, Nr.MSYNC, BASE, PAGE_SIZE, SYNC).ret == 0
    assert (world.writable(), set(world.mapping.dirty), world.in_file()) == (0, set(), b"z")


def test_what_is_written_meanwhile_is_not_lost(world: World) -> None:
    """A write through an entry that was clean already: the page stays dirty, and the next msync() has it."""
    world.store_everywhere(b"x")
    batch = world.sync()
    while world.writable() > 3:
        assert batch.run(0.0) is None
    writes(world, 1)
    assert finish(batch, world.third)[0][0].ret == 0
    assert set(world.mapping.dirty) == {INDEX}
    assert call(world.often, Nr.STORE, place(1), 1, data=b"z").ret == 1
    assert call(world.caller, Nr.MSYNC, BASE, PAGE_SIZE, SYNC).ret == 0
    assert (world.writable(), set(world.mapping.dirty), world.in_file()) == (0, set(), b"z")


def test_who_syncs_may_die_meanwhile(world: World) -> None:
    world.store_everywhere(b"x")
    batch = world.sync()
    batch.close()
    assert (set(world.mapping.dirty), world.in_file()) == ({INDEX}, b"\0")
    assert world.caller.thread is not None
    world.kernel.process_died(world.caller.thread.process)
    world.check()
    assert world.in_file() == b"x"


@pytest.mark.parametrize("lead", range(8))
def test_a_move_that_fails_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch, lead: int) -> None:
    """The page's entry goes to the new place and comes back: the search must not miss it at both."""
    monkeypatch.setattr(i_mmap, "_WALKED_AT_ONCE", 1)
    length = 3 * PMD_SIZE
    world.map(world.third, AWAY, 0, length)
    for at in range(0, length, PMD_SIZE):
        assert call(world.third, Nr.STORE, AWAY + at + PAGE_SIZE, 1, data=b"x").ret == 1
    frames = world.kernel.frames
    alloc, left = frames.alloc_page, [4]

    def few(*args: int, **words: bool) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise SysError(errno.ENOMEM)
        return alloc(*args, **words)

    to = AWAY + (1 << 30) + PAGE_SIZE
    with monkeypatch.context() as patch:
        patch.setattr(frames, "alloc_page", few)
        move = begun(world.third, Nr.MREMAP, AWAY, length, length, MOVE, to)
        sync = world.sync()
        for _ in range(TIMES - 4 + lead):
            assert sync.run(0.0) is None
        moved = synced = None
        while moved is None or synced is None:
            moved = moved or move.run(0.0)
            synced = synced or sync.run(0.0)
    world.check()
    world.store_everywhere(b"z")
    assert call(world.caller, Nr.MSYNC, BASE, PAGE_SIZE, SYNC).ret == 0
    assert world.in_file() == b"z"


@pytest.mark.parametrize("seed", range(3))
def test_anything_meanwhile(world: World, seed: int) -> None:
    rng = random.Random(seed)
    numbers = list(range(1, TIMES))
    rng.shuffle(numbers)
    batch = None
    for _ in range(12):
        if batch is None:
            world.store_everywhere(b"x")
            batch = world.sync()
        for _ in range(rng.randrange(6)):
            if batch is not None and batch.run(0.0) is not None:
                batch = None
        rng.choice([unmaps, moves, forks, splits, refuses_writes, writes, syncs_too, maps_over])(world, numbers.pop())
    if batch is not None:
        finish(batch, world.caller)
    world.store_everywhere(b"z")
    assert call(world.caller, Nr.MSYNC, BASE, PAGE_SIZE, SYNC).ret == 0
    assert (world.writable(), world.in_file()) == (0, b"z")


def test_a_hole_gives_way_although_a_fault_maps_the_page_again(world: World) -> None:
    """MADV_REMOVE: what is mapped again meanwhile is looked for in pieces too."""
    world.store_everywhere(b"x")
    batch = begun(world.caller, Nr.MADVISE, BASE, PAGE_SIZE, Madv.REMOVE)
    while len(world.entries()) > 2:
        assert batch.run(0.0) is None
    assert call(world.often, Nr.LOAD, place(1), 1).data == b"x"
    (reply,), served = finish(batch, world.third)
    assert reply.ret == 0
    assert served >= TIMES // 2
    assert call(world.often, Nr.LOAD, place(1), 1).data == b"\0"
