"""Every way in which execve fails, which changes nothing; and how far one may go before it does."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from kerneld.errors import SysError
from shared.uapi.auxvec import At
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import RLIM_INFINITY, Rlimit
from tests.support.elf_files import (
    ET_DYN,
    ET_EXEC,
    LD_PATH,
    PT_NOTE,
    Phdr,
    R,
    World,
    errno_of,
    new_world,
)
from tests.support.elf_programs import (
    BASE,
    BSS,
    DATA,
    DYN_BASE,
    LD,
    PIE,
    PROGRAM,
    STACK,
    STACK_TOP,
    STATIC,
    TEXT,
    U64,
    Stack,
    at,
    refused,
)


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


@pytest.mark.parametrize(
    ("phdr", "code"),
    [
        (replace(BSS, filesz=0x101, memsz=0x100), errno.EINVAL),
        (replace(DATA, vaddr=0x3000 - BASE + STACK_TOP), errno.ENOMEM),
        (replace(DATA, vaddr=U64 - BASE - 0xFFF, filesz=0, memsz=0), errno.EINVAL),
        (replace(DATA, memsz=U64), errno.ENOMEM),
        (replace(DATA, memsz=1 << 46), errno.ENOMEM),
        (replace(DATA, filesz=U64, memsz=U64), errno.EINVAL),
        (replace(DATA, filesz=1 << 47, memsz=1 << 47), errno.ENOMEM),
        (replace(DATA, offset=0x1001), errno.EINVAL),
        (replace(DATA, offset=U64 - 0xFFF), errno.EINVAL),
        (replace(DATA, offset=(1 << 63) - 0x1000), errno.EOVERFLOW),
        (replace(BSS, offset=0x8000), errno.EFAULT),
        (Phdr(vaddr=STACK_TOP - 0x2000 - BASE, flags=R, filesz=0x2000, memsz=0x2000), errno.EFAULT),
    ],
)
def test_a_segment_that_cannot_be(world: World, phdr: Phdr, code: int) -> None:
    assert refused(world, replace(STATIC, phdrs=at(BASE, TEXT, phdr))) == code


def test_low_addresses_are_for_the_superuser() -> None:
    low = replace(STATIC, phdrs=(TEXT,), entry=0)
    with new_world() as world:
        world.execve(low)
        assert world.maps()[0][0] == 0
    with new_world(superuser=False) as world:
        assert refused(world, low) == errno.EPERM


def test_programs_without_a_segment(world: World) -> None:
    """Linux runs an ET_EXEC one, straight into a fault."""
    nothing = replace(STATIC, phdrs=(Phdr(PT_NOTE),))
    assert refused(world, replace(nothing, e_type=ET_DYN)) == errno.EINVAL
    world.execve(nothing)
    assert world.maps() == [STACK]


def test_an_entry_outside_user_space(world: World) -> None:
    assert refused(world, replace(STATIC, entry=STACK_TOP)) == errno.EINVAL
    world.file(replace(LD, entry=STACK_TOP), LD_PATH)
    assert refused(world, PIE) == errno.EINVAL
    world.file(LD, LD_PATH)
    world.execve(replace(PIE, entry=STACK_TOP))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"magic": b"\x7fELG"}, errno.ELIBBAD),
        ({"machine": 3}, errno.ELIBBAD),
        ({"phnum": 0}, errno.ELIBBAD),
        ({"phdrs": (Phdr(PT_NOTE),)}, errno.EINVAL),
        ({"phdrs": (replace(TEXT, filesz=0x1000, memsz=0xFFF),)}, errno.ENOMEM),
        ({"phdrs": (replace(TEXT, offset=1),)}, errno.EINVAL),
        ({"e_type": ET_EXEC, "phdrs": at(STACK_TOP, TEXT)}, errno.ENOMEM),
    ],
)
def test_a_bad_interpreter(world: World, change: dict[str, Any], code: int) -> None:
    world.file(replace(LD, **change), LD_PATH)
    assert refused(world, PIE) == code


def test_an_interpreter_at_its_own_address_replaces_what_is_there(world: World) -> None:
    world.file(replace(LD, e_type=ET_EXEC, phdrs=at(DYN_BASE + 0x3000, TEXT), entry=DYN_BASE + 0x3000), LD_PATH)
    world.execve(PIE)
    assert world.maps()[1] == (DYN_BASE + 0x3000, DYN_BASE + 0x4000, "r-x", LD_PATH)
    assert dict(Stack(world).auxv)[At.BASE] == 0


def test_an_interpreter_that_cannot_be_opened(world: World) -> None:
    assert refused(world, PIE) == errno.ENOENT
    world.file(LD, LD_PATH, readable=False)
    assert refused(world, PIE) == errno.EACCES
    world.file(b"", LD_PATH)
    assert refused(world, PIE) == errno.EIO


def test_a_program_that_is_not_open_for_reading(world: World) -> None:
    assert refused(world, world.file(STATIC, readable=False)) == errno.EACCES


@pytest.mark.parametrize(
    ("limit", "room"),
    [(8 << 20, 2 << 20), (RLIM_INFINITY, 6 << 20), (1 << 20, 256 << 10), (400 << 10, 128 << 10)],
)
def test_arguments_up_to_the_limit(world: World, limit: int, room: int) -> None:
    """Strings with their NULs, the file's name with its own, and eight bytes for each pointer."""
    world.process.rlimits.soft[Rlimit.STACK] = limit
    argument = b"x" * 0x7FF
    count, rest = divmod(room - len(PROGRAM) - 1, len(argument) + 1 + 8)
    argv = [argument] * count + ([b"y" * (rest - 9)] if rest > 8 else [])
    assert refused(world, STATIC, [*argv[:-1], argv[-1] + b"z"]) == errno.E2BIG
    mm = world.execve(STATIC, argv)
    assert mm.arg_end - mm.arg_start == sum(map(len, argv)) + len(argv)


@pytest.mark.slow
def test_one_string_up_to_128_kib(world: World) -> None:
    longest = b"x" * ((128 << 10) - 1)
    assert refused(world, STATIC, [longest + b"x"]) == errno.E2BIG
    assert refused(world, STATIC, [b"x"], [longest + b"x"]) == errno.E2BIG
    world.execve(STATIC, [longest], [longest])
    assert Stack(world).envp == [longest]


def test_pointers_count_and_arguments_are_looked_at_before_the_file(world: World) -> None:
    world.process.rlimits.soft[Rlimit.STACK] = 0
    assert refused(world, b"no program", [b""] * (1 << 14)) == errno.E2BIG
    assert refused(world, STATIC, [b"x" * PAGE_SIZE]) == errno.E2BIG
    world.execve(STATIC)
    assert world.maps()[-1][:2] == (STACK_TOP - PAGE_SIZE, STACK_TOP)


def test_a_stack_that_has_no_room_for_its_128_kib(world: World) -> None:
    world.process.rlimits.soft[Rlimit.AS] = 16 * PAGE_SIZE
    assert refused(world, STATIC) == errno.EFAULT


def test_every_allocation_may_fail(world: World) -> None:
    """Each frame in turn is not to be had, until there is no further one: the old program stays whole."""
    world.file(LD, LD_PATH)
    codes = set()
    for allowed in range(200):
        left = allowed

        def take(count: int) -> None:
            nonlocal left
            left -= count
            if left < 0:
                raise SysError(errno.ENOMEM)

        world.frames.alloc_hook = take
        mm, free = world.mm, world.frames.free_pages
        code = errno_of(world.execve, PIE)
        world.frames.alloc_hook = None
        if not code:
            break
        world.check()
        assert (world.mm, world.frames.free_pages) == (mm, free)
        codes.add(code)
    assert codes == {errno.ENOMEM, errno.E2BIG, errno.EFAULT}
    assert allowed > 5
    assert world.process.comm == "program"
