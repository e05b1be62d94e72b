"""/proc/PID/walk/ADDRESS: where a translation goes, where it stops, and why."""

from __future__ import annotations

import errno

import pytest

from kerneld.hw.paging import translate
from kerneld.mm.calls.mmap import do_mmap
from kerneld.mm.calls.mprotect import do_mprotect
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from tests.fs.world import World
from tests.support.errors import fails
from tests.support.file_machine import RW, USER

AT = 0x10_0000_0000
PRIVATE = Map.PRIVATE | Map.ANONYMOUS | Map.FIXED


def map_two(world: World) -> None:
    do_mmap(world.me.live_mm, AT, 2 * PAGE_SIZE, RW, PRIVATE, None, 0, privileged=True)


def walk(world: World, vaddr: int) -> list[str]:
    return world.text(f"self/walk/{vaddr:x}").splitlines()


def test_the_walk_ends_at_the_address_that_the_processor_finds(world: World) -> None:
    map_two(world)
    mm = world.me.live_mm
    world.machine.store(mm, AT + 0x123, b"x")
    lines = walk(world, AT + 0x123)
    physical = translate(world.frames.ram.words, mm.page_table.root, AT + 0x123, 0)
    assert [line.split()[1].split("[")[0] for line in lines[1:5]] == ["PGD", "PUD", "PMD", "PTE"]
    assert lines[0].startswith(f"CR3       frame {mm.page_table.root:#x}")
    assert lines[4].endswith("present, writable, user, accessed, dirty, no execution, soft-dirty")
    assert lines[5] == (
        f"{AT + 0x123:#x} is physical address {physical:#x}: byte {physical & 0xFFF:#x} of frame {physical >> 12:#x}"
    )


def test_the_walk_changes_nothing(world: World) -> None:
    map_two(world)
    mm = world.me.live_mm
    world.machine.store(mm, AT, b"x")
    at = mm.page_table.find_pte(AT)
    assert at is not None
    before = world.frames.ram.words[at]
    walk(world, AT)
    assert world.frames.ram.words[at] == before


def test_an_untouched_page_stops_the_walk_and_the_mapping_allows_the_fault(world: World) -> None:
    map_two(world)
    mm = world.me.live_mm
    world.machine.store(mm, AT, b"x")
    lines = walk(world, AT + PAGE_SIZE)
    assert lines[4].endswith("entry 0x0000000000000000  empty")
    assert lines[5:] == [
        "The walk stops here: an access is a page fault.",
        f"The mapping {AT:#x}-{AT + 2 * PAGE_SIZE:#x} rw- covers it, anonymous memory.",
        "The fault gives the page a frame, if the mapping allows the access.",
    ]


def test_an_address_without_a_mapping_says_so(world: World) -> None:
    lines = walk(world, AT)
    assert len(lines) == 4
    assert lines[1].endswith("empty")
    assert lines[-1] == f"No mapping covers {AT:#x}: the access ends in SIGSEGV, unless a stack can grow down to it."


def test_a_page_without_rights_keeps_its_frame(world: World) -> None:
    map_two(world)
    mm = world.me.live_mm
    world.machine.store(mm, AT, b"x")
    do_mprotect(mm, AT, PAGE_SIZE, Prot.NONE)
    lines = walk(world, AT)
    assert lines[4].endswith("hidden from the processor (PROT_NONE)")
    assert lines[-1] == "It allows no access: SIGSEGV."


def test_the_zero_page_is_special(world: World) -> None:
    map_two(world)
    world.machine.load(world.me.live_mm, AT, 1)
    assert "frame 0x1: present, read-only, user" in walk(world, AT)[4]
    assert walk(world, AT)[4].endswith("special (the zero page)")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("self/walk", errno.EISDIR),
        ("self/walk/xyz", errno.ENOENT),
        ("self/walk/0x1000", errno.ENOENT),
        (f"self/walk/{TASK_SIZE:x}", errno.ENOENT),
        ("self/walk/1000/more", errno.ENOENT),
    ],
)
def test_what_is_no_address_is_no_file(world: World, path: str, code: int) -> None:
    assert fails(code, world.read, path)


def test_only_the_superuser_sees_frames(world: World) -> None:
    other = world.add(7, USER)
    assert fails(errno.EACCES, world.read, "self/walk/1000", other)
