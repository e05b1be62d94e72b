"""Anonymous pages that very many address spaces map: reclaim takes them too, in pieces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kerneld.hw.paging import pte_present
from kerneld.mm.calls.mlock import do_mlock
from kerneld.mm.frames.frames import PG_UNEVICTABLE
from kerneld.mm.frames.lru import SWAP_CLUSTER_MAX
from kerneld.mm.reclaim import crowd, scan_control
from kerneld.mm.space import pace
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rmap_walk import Patience
from kerneld.mm.vm_flags import VM_LOCKED
from kerneld.syscalls.kernel import KernelConfig
from shared.uapi.page import PAGE_SIZE, PMD_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.mm.reclaim.old import make_old
from tests.support.machine import Machine, checked, entry, load, mmap, page, pfn_of, store, vma_at
from tests.support.pieces import Pieces
from tests.support.programs import ANON, BASE, ROOT, RW, World

CHILDREN = 12
PAGES = 4


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches that give up at eight entries, and pieces that are over at once."""
    monkeypatch.setattr(Patience.__init__, "__defaults__", (64,))
    monkeypatch.setattr(crowd, "CROWD", 8)
    monkeypatch.setattr(pace, "_PIECE_SECONDS", 0.0)


@pytest.fixture
def machine() -> Iterator[Machine]:
    yield from checked(Machine(4 << 20, swap_bytes=4 << 20))


def new_family(machine: Machine, mm: MmStruct) -> list[MmStruct]:
    """Return a parent and its children, who share pages that nobody has used since."""
    mmap(mm, PAGES, at=page(0))
    for number in range(PAGES):
        store(mm, page(number), b"%d" % number)
        make_old(mm, page(number))
    return [mm, *(machine.fork(mm) for _ in range(CHILDREN))]


@pytest.fixture
def family(machine: Machine, mm: MmStruct) -> list[MmStruct]:
    return new_family(machine, mm)


def begin_kswapd(machine: Machine) -> None:
    machine.frames.watermark_high = machine.frames.free_pages + PAGES
    machine.vmscan.in_pieces = True
    machine.vmscan.wakeup_kswapd()


def run_kswapd(machine: Machine) -> int:
    """Run background passes until all pages but one have been looked at, and return the number of pieces.

    The invariants hold between two of them.
    """
    begin_kswapd(machine)
    pieces = 0
    for _ in range(PAGES - 1):
        machine.vmscan.wakeup_kswapd()
        while machine.vmscan.is_awake:
            machine.vmscan.kswapd()
            pieces += 1
            if pieces == CHILDREN:
                machine.check()
    return pieces


def mapped(family: list[MmStruct], number: int = 0) -> int:
    return sum(pte_present(entry(mm, page(number))) for mm in family)


def test_they_are_swapped_out_in_pieces(machine: Machine, family: list[MmStruct]) -> None:
    pfn = pfn_of(family[0], page(0))
    assert run_kswapd(machine) >= CHILDREN
    assert not machine.frames.refcount_at[pfn]
    assert [mapped(family, number) for number in range(PAGES - 1)] == [0] * (PAGES - 1)
    for mm in family:
        assert [load(mm, page(number)) for number in range(PAGES)] == [b"%d" % number for number in range(PAGES)]


@pytest.mark.parametrize("piece_seconds", [0.0, 60.0])
def test_every_entry_that_is_removed_counts_as_progress_once(
    machine: Machine, family: list[MmStruct], monkeypatch: pytest.MonkeyPatch, piece_seconds: float
) -> None:
    """However many pieces that takes: an allocation that waits gives up without progress."""
    monkeypatch.setattr(pace, "_PIECE_SECONDS", piece_seconds)
    crowded = machine.vmscan.crowded
    crowded.pfns = [pfn_of(family[0], page(number)) for number in range(PAGES)]
    progress, freed = 0, 0
    for frames in crowded.unmap():
        progress += crowded.take_progress()
        freed += frames
    assert (progress + crowded.take_progress(), freed) == (len(family) * PAGES, PAGES)


def test_one_that_is_in_use_is_judged_again(machine: Machine, family: list[MmStruct]) -> None:
    """It is in the swap cache first: who uses it then reads nothing. Later it is as any other page."""
    pfn = pfn_of(family[0], page(1))
    assert load(family[7], page(1)) == b"1"
    begin_kswapd(machine)
    while mapped(family, 1):
        machine.vmscan.wakeup_kswapd()
        machine.vmscan.kswapd()
    assert load(family[3], page(1)) == b"1"
    assert (pfn_of(family[3], page(1)), machine.frames.vmstat["pswpin"]) == (pfn, 0)


def test_a_locked_one_stays(machine: Machine, family: list[MmStruct]) -> None:
    do_mlock(family[5], page(2), PAGE_SIZE, VM_LOCKED, privileged=True)
    pfn = pfn_of(family[5], page(2))
    run_kswapd(machine)
    assert [mapped(family, number) for number in range(PAGES)].count(0) >= PAGES - 2
    assert pfn_of(family[5], page(2)) == pfn
    assert machine.frames.flags_at[pfn] & PG_UNEVICTABLE


def test_one_that_lost_its_mark_gets_it_again(machine: Machine, family: list[MmStruct]) -> None:
    """A VMA that is locked keeps its entry, and the page is marked. Source: Linux v6.8 mm/rmap.c:try_to_unmap_one()."""
    vma, pfn = vma_at(family[5], page(2)), pfn_of(family[5], page(2))
    family[5].set_vma_flags(vma, vma.vm_flags | VM_LOCKED)
    machine.vmscan.crowded.pfns = [pfn]
    assert sum(machine.vmscan.crowded.unmap()) == 0
    assert pte_present(entry(family[5], page(2)))
    assert machine.frames.flags_at[pfn] & PG_UNEVICTABLE
    family[5].set_vma_flags(vma, vma.vm_flags & ~VM_LOCKED)


def test_one_that_is_locked_meanwhile_stays(machine: Machine, family: list[MmStruct]) -> None:
    """So do the entries that are left of it. Those that were removed already map it again."""
    crowded, pfn = machine.vmscan.crowded, pfn_of(family[0], page(2))
    crowded.pfns = [pfn_of(family[0], page(number)) for number in range(PAGES)]
    steps = crowded.unmap()
    for _ in range(CHILDREN // 2):
        next(steps)
    left = [mm for mm in family if pte_present(entry(mm, page(2)))]
    assert 1 < len(left) < len(family) - 1
    do_mlock(left[0], page(2), PAGE_SIZE, VM_LOCKED, privileged=True)
    assert sum(steps) == PAGES - 1
    assert [mapped(family, number) for number in range(PAGES)] == [0, 0, len(left), 0]
    assert [load(mm, page(2)) for mm in family] == [b"2"] * len(family)
    assert {pfn_of(mm, page(2)) for mm in family} == {pfn}


def test_without_room_in_the_swap_file_they_stay() -> None:
    machine = Machine(4 << 20, swap_bytes=3 * PAGE_SIZE)
    family = new_family(machine, machine.new_mm())
    run_kswapd(machine)
    assert sum(mapped(family, number) > 0 for number in range(PAGES)) == PAGES - machine.frames.swap.total_pages
    machine.close()


def test_processes_end_while_they_are_swapped_out(machine: Machine, family: list[MmStruct]) -> None:
    begin_kswapd(machine)
    ended = 0
    while machine.vmscan.is_awake:
        machine.vmscan.kswapd()
        if len(family) > 2:
            machine.exit(family.pop())
            ended += 1
            machine.check()
    assert (ended, machine.frames.vmstat["pswpout"] > 0) == (CHILDREN - 1, True)
    for mm in family:
        assert [load(mm, page(number)) for number in range(PAGES)] == [b"%d" % number for number in range(PAGES)]


def test_a_machine_full_of_them_swaps_and_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for memory waits for the background pass."""
    monkeypatch.setattr(scan_control, "MOST_SCANNED", SWAP_CLUSTER_MAX)
    world = World(KernelConfig(ram_bytes=4 << 20, superuser_uid=ROOT, swap_bytes=8 << 20))
    kernel, pieces = world.kernel, Pieces()
    kernel.vmscan.in_pieces = True
    program = world.attach(ROOT)
    at = program.call(Nr.MMAP, BASE, PMD_SIZE, RW, ANON)
    program.call(Nr.TOUCH, at, PMD_SIZE, Access.WRITE)
    program.store(at, b"kept")
    for _ in range(12):
        assert program.call(Nr.CLONE) > 0
    length = kernel.frames.free_pages * PAGE_SIZE
    more = program.call(Nr.MMAP, 0, length, RW, ANON)
    answer = pieces.begin(program, Nr.MLOCK, more, length)
    while answer is None:
        if kernel.vmscan.is_awake:
            kernel.run_kswapd()
        answer = pieces.go_on(program)
    assert (answer.ret, kernel.frames.vmstat["oom_kill"]) == (0, 0)
    assert kernel.frames.vmstat["pswpout"] > 0
    assert program.load(at, 4) == b"kept"
    world.close()
