"""States with huge pages and with pages in the swap file: entries that a walker has to read in another way."""

from __future__ import annotations

from kerneld.hw.paging import PTE_PSE, swap_mask
from kerneld.task.task import Thread
from shared.uapi.mman import Madv, Mremap
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.foreign.states import State
from tests.foreign.world import BASE, NONE, R, W, World, X, mm_of

HUGE_PAGES = 512
STATES: list[State] = []


def _state(build: State) -> State:
    STATES.append(build)
    return build


def _huge(world: World, count: int, access: Access = Access.WRITE) -> int:
    """Return where so many huge pages are mapped, and see that they are huge."""
    vaddr = world.mmap(count * HUGE_PAGES, at=BASE)
    world.call(Nr.MADVISE, vaddr, count * HUGE_PAGES * PAGE_SIZE, Madv.HUGEPAGE)
    world.touch(vaddr, count * HUGE_PAGES, access)
    assert _huge_entries(world) == count
    return vaddr


def _huge_entries(world: World) -> int:
    """Return how many huge entries the caller's address space has at BASE and after."""
    mm = mm_of(world.me)
    leaves = mm.page_table.walk.leaves(BASE, BASE + 64 * HUGE_PAGES * PAGE_SIZE)
    return sum(bool(leaf.huge and mm.frames.ram.words[leaf.low] & PTE_PSE) for leaf in leaves)


def _page_out(world: World, vaddr: int, pages: int) -> None:
    """Let pages go to the swap file, and see that they have."""
    world.call(Nr.MADVISE, vaddr, pages * PAGE_SIZE, Madv.PAGEOUT)
    assert swap_mask(mm_of(world.me).page_table.walk.entries(vaddr, vaddr + pages * PAGE_SIZE)).any()


@_state
def huge(world: World) -> list[Thread]:
    _huge(world, 4)
    return [world.me]


@_state
def the_huge_zero_page(world: World) -> list[Thread]:
    vaddr = _huge(world, 3, Access.READ)
    world.touch(vaddr + HUGE_PAGES * PAGE_SIZE, 1)
    return [world.me]


@_state
def huge_with_other_rights(world: World) -> list[Thread]:
    vaddr = _huge(world, 6)
    size = HUGE_PAGES * PAGE_SIZE
    for number, prot in enumerate((R, R | X, R | W | X, NONE, W)):
        world.mprotect(vaddr + number * size, HUGE_PAGES, prot)
    assert _huge_entries(world) == 6
    return [world.me]


@_state
def huge_cut_up(world: World) -> list[Thread]:
    vaddr = _huge(world, 5)
    size = HUGE_PAGES * PAGE_SIZE
    world.mprotect(vaddr + 100 * PAGE_SIZE, 50, R)
    world.call(Nr.MUNMAP, vaddr + size + 7 * PAGE_SIZE, 60 * PAGE_SIZE)
    world.call(Nr.MADVISE, vaddr + 2 * size + 300 * PAGE_SIZE, 40 * PAGE_SIZE, Madv.DONTNEED)
    to = vaddr + 16 * size + 5 * PAGE_SIZE
    half = size // 2
    world.call(Nr.MREMAP, vaddr + 3 * size, half, half, Mremap.MAYMOVE | Mremap.FIXED, to)
    assert _huge_entries(world) == 1
    return [world.me]


@_state
def huge_and_moved(world: World) -> list[Thread]:
    vaddr = _huge(world, 3)
    size = HUGE_PAGES * PAGE_SIZE
    world.call(Nr.MREMAP, vaddr, 2 * size, 2 * size, Mremap.MAYMOVE | Mremap.FIXED, vaddr + 32 * size)
    assert _huge_entries(world) == 3
    return [world.me]


@_state
def huge_after_fork(world: World) -> list[Thread]:
    vaddr = _huge(world, 3)
    child = world.fork()
    world.touch(vaddr + 5 * PAGE_SIZE, 1, by=child)
    world.touch(vaddr + HUGE_PAGES * PAGE_SIZE, 3)
    return [world.me, child]


@_state
def collapsed(world: World) -> list[Thread]:
    vaddr = world.mmap(2 * HUGE_PAGES, at=BASE)
    world.touch(vaddr, 2 * HUGE_PAGES)
    world.call(Nr.MADVISE, vaddr, HUGE_PAGES * PAGE_SIZE, Madv.COLLAPSE)
    assert _huge_entries(world) == 1
    return [world.me]


@_state
def swapped_out(world: World) -> list[Thread]:
    vaddr = world.mmap(900, at=BASE + 300 * PAGE_SIZE)
    world.touch(vaddr, 700)
    _page_out(world, vaddr + 50 * PAGE_SIZE, 500)
    return [world.me]


@_state
def swapped_in_again(world: World) -> list[Thread]:
    vaddr = world.mmap(900, at=BASE)
    world.touch(vaddr, 900)
    _page_out(world, vaddr, 900)
    world.touch(vaddr, 300, Access.READ)
    world.touch(vaddr + 500 * PAGE_SIZE, 100)
    return [world.me]


@_state
def swapped_and_forked(world: World) -> list[Thread]:
    vaddr = world.mmap(600, at=BASE)
    world.touch(vaddr, 600)
    _page_out(world, vaddr, 400)
    child = world.fork()
    world.touch(vaddr, 100, Access.READ, by=child)
    world.touch(vaddr + 50 * PAGE_SIZE, 100)
    world.mprotect(vaddr + 200 * PAGE_SIZE, 100, R)
    return [world.me, child]


@_state
def huge_and_swapped_out(world: World) -> list[Thread]:
    vaddr = _huge(world, 2)
    _page_out(world, vaddr, HUGE_PAGES)
    world.touch(vaddr + 17 * PAGE_SIZE, 9, Access.READ)
    return [world.me]
