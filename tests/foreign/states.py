"""States that a process's memory can be in. Each function builds one and returns the processes to be judged."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from kerneld.mm.vm_flags import VM_EXEC, VM_GROWSDOWN, VM_READ, VM_WRITE
from kerneld.task.task import Thread
from shared.uapi.mman import Madv, Map, Mremap, Ms
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.foreign.world import BASE, NONE, PRIVATE, SHARED, R, W, World, X, mm_of

State: TypeAlias = Callable[[World], list[Thread]]
STATES: list[State] = []
_EDGE = BASE + 500 * PAGE_SIZE
"""So that a mapping from here lies across two leaf tables."""


def _state(build: State) -> State:
    STATES.append(build)
    return build


@_state
def fresh(world: World) -> list[Thread]:
    return [world.me]


@_state
def mapped_not_touched(world: World) -> list[Thread]:
    world.mmap(600)
    world.mmap(64, R | X)
    return [world.me]


@_state
def zero_page(world: World) -> list[Thread]:
    world.touch(world.mmap(1024, at=BASE), 1024, Access.READ)
    return [world.me]


@_state
def zero_page_then_written(world: World) -> list[Thread]:
    vaddr = world.mmap(700, at=_EDGE)
    world.touch(vaddr, 700, Access.READ)
    for page in range(0, 700, 3):
        world.touch(vaddr + page * PAGE_SIZE)
    return [world.me]


@_state
def protection_keys(world: World) -> list[Thread]:
    """Every key, of memory of all rights; the foreign ones translate as a processor without keys does."""
    vaddr = world.mmap(16 * 12, at=_EDGE)
    world.touch(vaddr, 16 * 6)
    for key in range(16):
        part = vaddr + key * 12 * PAGE_SIZE
        if key:
            assert world.call(Nr.PKEY_ALLOC, 0, 0) == key
        for number, prot in enumerate((R, R | W, R | X, NONE)):
            world.call(Nr.PKEY_MPROTECT, part + 3 * number * PAGE_SIZE, 3 * PAGE_SIZE, prot, key)
    for key in range(8, 16):
        world.touch(vaddr + key * 12 * PAGE_SIZE, 9, Access.READ)
    return [world.me, world.fork()]


@_state
def written(world: World) -> list[Thread]:
    world.touch(world.mmap(3000, at=_EDGE), 3000)
    return [world.me]


@_state
def read_only_and_write_only(world: World) -> list[Thread]:
    world.touch(world.mmap(300, R), 300, Access.READ)
    world.touch(world.mmap(300, W), 300)
    vaddr = world.mmap(300)
    world.touch(vaddr, 300)
    world.mprotect(vaddr, 200, R)
    return [world.me]


@_state
def prot_none(world: World) -> list[Thread]:
    world.mmap(100, NONE)
    vaddr = world.mmap(600, at=_EDGE)
    world.touch(vaddr, 300)
    world.touch(vaddr + 300 * PAGE_SIZE, 200, Access.READ)
    world.mprotect(vaddr + 10 * PAGE_SIZE, 580, NONE)
    return [world.me]


@_state
def prot_none_and_back(world: World) -> list[Thread]:
    vaddr = world.mmap(600, at=_EDGE)
    world.touch(vaddr, 600)
    world.mprotect(vaddr, 600, NONE)
    world.mprotect(vaddr + 50 * PAGE_SIZE, 300, R | W)
    world.mprotect(vaddr + 400 * PAGE_SIZE, 50, R)
    world.touch(vaddr + 60 * PAGE_SIZE, 20)
    return [world.me]


@_state
def executable(world: World) -> list[Thread]:
    for prot in (R | X, R | W | X, X):
        world.touch(world.mmap(200, prot), 200, Access.FETCH)
    vaddr = world.mmap(200)
    world.touch(vaddr, 200)
    world.mprotect(vaddr, 100, R | X)
    world.mprotect(vaddr + 100 * PAGE_SIZE, 50, R | W | X)
    return [world.me]


@_state
def forked(world: World) -> list[Thread]:
    _parent_to_be(world)
    return [world.me, world.fork()]


@_state
def forked_and_written(world: World) -> list[Thread]:
    vaddr = _parent_to_be(world)
    child = world.fork()
    for page in range(0, 600, 4):
        world.touch(vaddr + page * PAGE_SIZE, by=child)
        world.touch(vaddr + (page + 1) * PAGE_SIZE)
        world.touch(vaddr + (page + 2) * PAGE_SIZE, access=Access.READ, by=child)
    return [world.me, child]


@_state
def grandchild_of_a_parent_that_ended(world: World) -> list[Thread]:
    vaddr = _parent_to_be(world)
    child = world.fork()
    other = world.fork()
    world.touch(vaddr, 100, by=child)
    world.call(Nr.EXIT_GROUP, 0, by=child)
    world.kernel.take_ended()
    world.touch(vaddr, 50)
    world.touch(vaddr, 80, by=other)
    return [world.me, other]


def _parent_to_be(world: World) -> int:
    vaddr = world.mmap(600, at=_EDGE)
    world.touch(vaddr, 500)
    world.touch(vaddr + 500 * PAGE_SIZE, 50, Access.READ)
    world.touch(world.mmap(100, R | W | X), 100)
    world.touch(world.mmap(100, R | W, SHARED), 50)
    return vaddr


@_state
def mprotect_down_and_up(world: World) -> list[Thread]:
    vaddr = world.mmap(900, at=_EDGE)
    world.touch(vaddr, 800)
    world.mprotect(vaddr + 100 * PAGE_SIZE, 600, R)
    world.mprotect(vaddr + 200 * PAGE_SIZE, 200, R | W)
    world.mprotect(vaddr + 300 * PAGE_SIZE, 200, R | X)
    world.touch(vaddr + 210 * PAGE_SIZE, 30)
    return [world.me]


@_state
def mremap_moved(world: World) -> list[Thread]:
    for odd in (0, 7):
        old = world.mmap(700, at=BASE + (odd << 30))
        world.touch(old, 600)
        flags = Mremap.MAYMOVE | Mremap.FIXED
        to = BASE + (1 << 38) + odd * (512 + 1) * PAGE_SIZE * 4
        world.call(Nr.MREMAP, old, 700 * PAGE_SIZE, 900 * PAGE_SIZE, flags, to)
    return [world.me]


@_state
def mremap_resized_and_left_behind(world: World) -> list[Thread]:
    vaddr = world.mmap(600, at=_EDGE)
    world.touch(vaddr, 600)
    world.call(Nr.MREMAP, vaddr, 600 * PAGE_SIZE, 400 * PAGE_SIZE, 0)
    world.call(Nr.MREMAP, vaddr, 400 * PAGE_SIZE, 500 * PAGE_SIZE, 0)
    left = world.mmap(200)
    world.touch(left, 200)
    world.call(Nr.MREMAP, left, 200 * PAGE_SIZE, 200 * PAGE_SIZE, Mremap.MAYMOVE | Mremap.DONTUNMAP)
    world.touch(left, 20)
    return [world.me]


@_state
def munmap_holes(world: World) -> list[Thread]:
    vaddr = world.mmap(4000, at=_EDGE)
    world.touch(vaddr, 4000)
    rng = random.Random(1)
    for _ in range(40):
        world.call(Nr.MUNMAP, vaddr + rng.randrange(3900) * PAGE_SIZE, rng.randrange(1, 100) * PAGE_SIZE)
    world.call(Nr.MUNMAP, BASE + 1024 * PAGE_SIZE, 512 * PAGE_SIZE)
    return [world.me]


@_state
def stack_grown(world: World) -> list[Thread]:
    (stack,) = [vma for vma in mm_of(world.me).vmas if vma.vm_flags & VM_GROWSDOWN]
    world.touch(stack.start - 900 * PAGE_SIZE)
    world.touch(stack.start + 100 * PAGE_SIZE, 300)
    own = world.mmap(10, R | W, PRIVATE | Map.GROWSDOWN, at=_EDGE)
    world.touch(own - 200 * PAGE_SIZE)
    return [world.me]


@_state
def heap(world: World) -> list[Thread]:
    start = world.call(Nr.BRK, 0)
    world.call(Nr.BRK, start + 1000 * PAGE_SIZE)
    world.touch(start, 900)
    world.call(Nr.BRK, start + 300 * PAGE_SIZE)
    world.call(Nr.BRK, start + 600 * PAGE_SIZE)
    return [world.me]


@_state
def private_file(world: World) -> list[Thread]:
    with tempfile.TemporaryFile() as file:
        file.write(os.urandom(600 * PAGE_SIZE + 100))
        file.flush()
        vaddr = world.mmap(601, R | W, PRIVATE, at=_EDGE, fd=file.fileno())
        code = world.mmap(200, R | X, PRIVATE, fd=file.fileno(), offset=100 * PAGE_SIZE)
    for page in range(0, 600, 40):
        world.touch(vaddr + page * PAGE_SIZE, access=Access.READ)
    world.touch(vaddr + 200 * PAGE_SIZE, 100)
    world.touch(code, 150, Access.FETCH)
    return [world.me]


@_state
def shared_file(world: World) -> list[Thread]:
    with tempfile.TemporaryFile() as file:
        file.truncate(600 * PAGE_SIZE)
        vaddr = world.mmap(600, R | W, SHARED, at=_EDGE, fd=file.fileno())
        world.touch(world.mmap(600, R, SHARED, fd=file.fileno()), 600, Access.READ)
    world.touch(vaddr, 300)
    world.touch(vaddr + 300 * PAGE_SIZE, 200, Access.READ)
    world.call(Nr.MSYNC, vaddr, 200 * PAGE_SIZE, Ms.SYNC)
    world.touch(vaddr + 50 * PAGE_SIZE, 20)
    return [world.me]


@_state
def shared_file_of_two_processes(world: World) -> list[Thread]:
    with tempfile.TemporaryFile() as file:
        file.truncate(300 * PAGE_SIZE)
        vaddr = world.mmap(300, R | W, SHARED, fd=file.fileno())
        private = world.mmap(300, R | W, PRIVATE, fd=file.fileno())
    world.touch(vaddr, 200)
    world.touch(private, 100)
    child = world.fork()
    world.touch(vaddr + 100 * PAGE_SIZE, 200, by=child)
    world.touch(private + 50 * PAGE_SIZE, 100, by=child)
    return [world.me, child]


@_state
def shared_anonymous(world: World) -> list[Thread]:
    vaddr = world.mmap(600, R | W, SHARED, at=_EDGE)
    world.touch(vaddr, 300)
    child = world.fork()
    world.touch(vaddr + 200 * PAGE_SIZE, 200, by=child)
    return [world.me, child]


@_state
def given_back(world: World) -> list[Thread]:
    vaddr = world.mmap(900, at=_EDGE)
    world.touch(vaddr, 900)
    world.call(Nr.MADVISE, vaddr + 100 * PAGE_SIZE, 300 * PAGE_SIZE, Madv.DONTNEED)
    world.call(Nr.MADVISE, vaddr + 400 * PAGE_SIZE, 100 * PAGE_SIZE, Madv.FREE)
    world.touch(vaddr + 200 * PAGE_SIZE, 50, Access.READ)
    world.touch(vaddr + 420 * PAGE_SIZE, 30)
    return [world.me]


@_state
def locked_and_populated(world: World) -> list[Thread]:
    world.mmap(300, R | W, PRIVATE | Map.POPULATE)
    world.mmap(300, R, PRIVATE | Map.POPULATE)
    vaddr = world.mmap(100)
    world.call(Nr.MLOCK, vaddr, 60 * PAGE_SIZE)
    return [world.me]


@_state
def not_for_the_child(world: World) -> list[Thread]:
    for advice in (Madv.DONTFORK, Madv.WIPEONFORK):
        vaddr = world.mmap(300)
        world.touch(vaddr, 200)
        world.call(Nr.MADVISE, vaddr, 300 * PAGE_SIZE, advice)
    child = world.fork()
    world.touch(vaddr, 20, by=child)
    return [world.me, child]


@_state
def after_execve(world: World) -> list[Thread]:
    world.touch(world.mmap(100), 100)
    program = Path("/bin/cat").resolve()
    with program.open("rb") as file:
        world.call(Nr.EXECVE, 0, 0, 0, data=b"cat\0file\0\0LANG=C\0", fd=file.fileno())
    return [world.me]


@_state
def after_execve_and_running(world: World) -> list[Thread]:
    after_execve(world)
    for vma in list(mm_of(world.me).vmas):
        half = max(1, vma.nr_pages // 2)
        for flag, access in ((VM_READ, Access.READ), (VM_WRITE, Access.WRITE), (VM_EXEC, Access.FETCH)):
            if vma.vm_flags & flag:
                world.touch(vma.start, half, access)
    return [world.me, world.fork()]


@_state
def sparse(world: World) -> list[Thread]:
    rng = random.Random(2)
    for _ in range(60):
        vaddr = rng.randrange(16, (1 << 47) // PAGE_SIZE - 20) * PAGE_SIZE
        pages = rng.randrange(1, 12)
        prot = rng.choice([R, R | W, R | W | X, R | X, W])
        if (
            world.request(Nr.MMAP, vaddr, pages * PAGE_SIZE, prot, PRIVATE | Map.ANONYMOUS | Map.FIXED_NOREPLACE).ret
            > 0
        ):
            world.touch(vaddr, rng.randrange(1, pages + 1), Access.WRITE if prot & W else Access.READ)
    return [world.me]


@_state
def the_ends_of_user_space(world: World) -> list[Thread]:
    low = world.mmap(16, at=16 * PAGE_SIZE)
    world.touch(low, 16)
    high = (1 << 47) - PAGE_SIZE * 20
    world.touch(world.mmap(19, at=high), 19)
    world.touch(world.mmap(4, at=(1 << 39) - 2 * PAGE_SIZE), 4)
    world.touch(world.mmap(4, at=(1 << 30) - 2 * PAGE_SIZE), 4)
    return [world.me]
