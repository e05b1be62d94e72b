"""execve over files built here: what lies where, what is on the stack, and every way to fail, which changes nothing."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_RW, pte_pfn
from kerneld.mm.access import read_remote_vm
from kerneld.mm.frames import PG_ANON
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.mm import MmStruct
from kerneld.mm.munmap import exit_mmap
from kerneld.task.exec import fresh_mm
from shared.uapi.auxvec import ELF_HWCAP, At
from shared.uapi.page import PAGE_SIZE
from shared.uapi.resource import RLIM_INFINITY, Rlimit
from shared.uapi.signals import Disposition
from tests.task.elf_files import (
    ET_DYN,
    ET_EXEC,
    LD_PATH,
    PT_GNU_STACK,
    PT_NOTE,
    BytesBacking,
    Elf,
    Phdr,
    R,
    W,
    World,
    X,
    errno_of,
    new_world,
    with_interp,
)

BASE = 0x40_0000
DYN_BASE = 0x5555_5555_4000
MMAP_TOP = 0x7FFF_F7FF_F000
STACK_TOP = 0x7FFF_FFFF_F000
STACK = (STACK_TOP - 33 * PAGE_SIZE, STACK_TOP, "rw-", "")
PROGRAM = "/bin/program"
U64 = (1 << 64) - 1

TEXT = Phdr(flags=R | X, vaddr=0, filesz=PAGE_SIZE, memsz=PAGE_SIZE)
DATA = Phdr(flags=R | W, offset=0x1000, vaddr=0x3000, filesz=0x100, memsz=0x100)
BSS = replace(DATA, memsz=0x2800)


def at(base: int, *phdrs: Phdr) -> tuple[Phdr, ...]:
    return tuple(replace(phdr, vaddr=phdr.vaddr + base) for phdr in phdrs)


STATIC = Elf(at(BASE, TEXT, BSS), entry=BASE + 0x80)
STATIC_PIE = Elf((TEXT, BSS), e_type=ET_DYN, entry=0x80)
_PHDRS, _TEXTS = with_interp((TEXT, BSS))
PIE = replace(STATIC_PIE, phdrs=_PHDRS, texts=_TEXTS)
LD = Elf((TEXT, DATA), e_type=ET_DYN, entry=0x90)


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


def refused(world: World, content: Any, *arguments: Any) -> int:
    """Execve something that fails, and return the errno: the process must be as it was."""
    mm, maps, free, comm = world.mm, world.maps(), world.frames.free_pages, world.process.comm
    code = errno_of(world.execve, content, *arguments)
    assert code
    world.check()
    assert (world.mm, world.maps(), world.frames.free_pages, world.process.comm) == (mm, maps, free, comm)
    return code


class Stack:
    """What a program's start-up code reads at its stack pointer."""

    def __init__(self, world: World) -> None:
        self.mm = world.mm
        self.pointer = self._next = world.mm.start_stack
        argc = self.word()
        self.argv = [self.string(self.word()) for _ in range(argc)]
        assert self.word() == 0
        self.envp = [self.string(address) for address in iter(self.word, 0)]
        self.auxv: list[tuple[int, int]] = []
        while not self.auxv or self.auxv[-1][0] != At.NULL:
            self.auxv.append((self.word(), self.word()))

    def word(self) -> int:
        (value,) = struct.unpack("<Q", read_remote_vm(self.mm, self._next, 8))
        self._next += 8
        return int(value)

    def string(self, address: int) -> bytes:
        data = bytearray()
        while (byte := read_remote_vm(self.mm, address + len(data), 1)) != b"\0":
            data += byte
        return bytes(data)


def test_a_static_program_lies_at_its_addresses(world: World) -> None:
    mm = world.execve(STATIC)
    assert world.maps() == [
        (BASE, BASE + 0x1000, "r-x", PROGRAM),
        (BASE + 0x3000, BASE + 0x4000, "rw-", PROGRAM),
        (BASE + 0x4000, BASE + 0x6000, "rw-", ""),
        STACK,
    ]
    assert mm.start_brk == mm.brk == BASE + 0x6000
    assert (mm.start_code, mm.end_code) == (BASE, BASE + 0x1000)
    assert (mm.start_data, mm.end_data) == (BASE + 0x3000, BASE + 0x3100)
    assert (mm.exe_path, mm.mmap_base) == (PROGRAM, MMAP_TOP)


def test_the_last_page_of_the_file_is_zeroed_in_a_copy(world: World) -> None:
    mm = world.execve(STATIC)
    page = BASE + 0x3000
    pte = mm.page_table.find_pte(page)
    assert pte is not None
    entry = mm.frames.ram.words[pte]
    assert entry & PTE_RW
    assert mm.frames.flags_at[pte_pfn(entry)] & PG_ANON
    assert read_remote_vm(mm, page, PAGE_SIZE) == b"\2" * 0x100 + bytes(0xF00)
    assert read_remote_vm(mm, BASE + 0x4000, 0x2000) == bytes(0x2000)
    text = mm.page_table.find_pte(BASE)
    assert text is None or not mm.frames.ram.words[text]


def test_data_without_bss_is_not_touched_and_keeps_the_file_s_tail(world: World) -> None:
    mm = world.execve(replace(STATIC, phdrs=at(BASE, TEXT, DATA)))
    assert not mm.page_table.entries(BASE, BASE + 0x6000).any()
    assert read_remote_vm(mm, BASE + 0x3000, PAGE_SIZE) == b"\2" * PAGE_SIZE
    assert mm.brk == BASE + 0x4000


def test_a_segment_without_a_part_in_the_file_is_all_bss(world: World) -> None:
    world.execve(replace(STATIC, phdrs=at(BASE, TEXT, Phdr(flags=R | W | X, vaddr=0x3080, filesz=0, memsz=0x1000))))
    assert world.maps()[1] == (BASE + 0x3000, BASE + 0x5000, "rwx", "")


def test_the_bss_of_a_read_only_segment_that_ends_in_a_page(world: World) -> None:
    """Linux cannot zero the page's tail then, and does not mind."""
    mm = world.execve(replace(STATIC, phdrs=at(BASE, TEXT, replace(DATA, flags=R, memsz=0x2000))))
    assert read_remote_vm(mm, BASE + 0x3000, PAGE_SIZE) == b"\2" * PAGE_SIZE
    assert world.maps()[1:3] == [
        (BASE + 0x3000, BASE + 0x4000, "r--", PROGRAM),
        (BASE + 0x4000, BASE + 0x5000, "rw-", ""),
    ]


def test_a_later_segment_replaces_what_it_overlaps(world: World) -> None:
    bss, text = Phdr(flags=R | W, vaddr=0, memsz=0x3000), replace(TEXT, vaddr=0x1000)
    world.execve(replace(STATIC, phdrs=at(BASE, TEXT, bss, text)))
    assert world.maps()[:3] == [
        (BASE, BASE + 0x1000, "rw-", ""),
        (BASE + 0x1000, BASE + 0x2000, "r-x", PROGRAM),
        (BASE + 0x2000, BASE + 0x3000, "rw-", ""),
    ]


def test_a_pie_and_its_interpreter(world: World) -> None:
    world.file(LD, LD_PATH)
    mm = world.execve(PIE)
    assert world.opened == [LD_PATH]
    ld = MMAP_TOP - 0x4000
    assert world.maps() == [
        (DYN_BASE, DYN_BASE + 0x1000, "r-x", PROGRAM),
        (DYN_BASE + 0x3000, DYN_BASE + 0x4000, "rw-", PROGRAM),
        (DYN_BASE + 0x4000, DYN_BASE + 0x6000, "rw-", ""),
        (ld, ld + 0x1000, "r-x", LD_PATH),
        (ld + 0x3000, ld + 0x4000, "rw-", LD_PATH),
        STACK,
    ]
    assert mm.brk == DYN_BASE + 0x6000
    auxv = dict(Stack(world).auxv)
    assert (auxv[At.BASE], auxv[At.ENTRY], auxv[At.PHDR]) == (ld, DYN_BASE + 0x80, DYN_BASE + 64)


def test_a_static_pie_goes_to_the_top_of_the_mmap_area(world: World) -> None:
    mm = world.execve(STATIC_PIE)
    base = MMAP_TOP - 0x6000
    assert world.maps()[0] == (base, base + 0x1000, "r-x", PROGRAM)
    assert mm.brk == MMAP_TOP
    auxv = dict(Stack(world).auxv)
    assert (auxv[At.BASE], auxv[At.ENTRY]) == (0, base + 0x80)


def test_an_et_exec_program_and_its_interpreter(world: World) -> None:
    world.file(LD, LD_PATH)
    phdrs, texts = with_interp(STATIC.phdrs)
    world.execve(replace(STATIC, phdrs=phdrs, texts=texts))
    assert (world.maps()[0][0], world.maps()[3][0]) == (BASE, MMAP_TOP - 0x4000)


def test_a_large_alignment_moves_a_pie_down(world: World) -> None:
    world.file(LD, LD_PATH)
    world.execve(replace(PIE, phdrs=(*PIE.phdrs[:1], *(replace(phdr, align=1 << 21) for phdr in PIE.phdrs[1:]))))
    assert world.maps()[0][0] == DYN_BASE & -(1 << 21)


def test_a_pie_linked_at_an_address_of_its_own_is_moved_to_the_base(world: World) -> None:
    world.file(replace(LD, phdrs=at(0x7000, TEXT, DATA)), LD_PATH)
    phdrs = (PIE.phdrs[0], *at(0x10_0000, TEXT, BSS))
    mm = world.execve(replace(PIE, phdrs=phdrs, entry=0x10_0080))
    assert (world.maps()[0][0], world.maps()[3][0]) == (DYN_BASE, MMAP_TOP - 0x4000)
    auxv = dict(Stack(world).auxv)
    assert (auxv[At.ENTRY], auxv[At.BASE]) == (DYN_BASE + 0x80, MMAP_TOP - 0x4000 - 0x7000)
    assert mm.start_code == DYN_BASE


def test_the_stack_as_a_program_finds_it(world: World) -> None:
    mm = world.execve(STATIC, [b"program", b"", b"two words"], [b"A=1", b"B="])
    stack = Stack(world)
    assert stack.pointer % 16 == 0
    assert stack.argv == [b"program", b"", b"two words"]
    assert stack.envp == [b"A=1", b"B="]
    auxv = dict(stack.auxv)
    assert len(auxv) == len(stack.auxv)
    values = {kind: auxv[kind] for kind in (At.PHDR, At.PHENT, At.PHNUM, At.PAGESZ, At.CLKTCK, At.BASE, At.ENTRY)}
    assert [*values.values()] == [BASE + 64, 56, 2, PAGE_SIZE, 100, 0, BASE + 0x80]
    assert [auxv[kind] for kind in (At.UID, At.EUID, At.GID, At.EGID, At.SECURE)] == [1000, 1000, 1001, 1001, 0]
    assert auxv[At.HWCAP] == ELF_HWCAP
    assert stack.string(auxv[At.EXECFN]) == PROGRAM.encode()
    assert stack.string(auxv[At.PLATFORM]) == b"x86_64"
    assert read_remote_vm(mm, auxv[At.RANDOM], 16) != bytes(16)
    strings = b"program\0\0two words\0"
    assert read_remote_vm(mm, mm.arg_start, mm.arg_end - mm.arg_start) == strings
    assert read_remote_vm(mm, mm.env_start, mm.env_end - mm.env_start) == b"A=1\0B=\0"
    assert auxv[At.EXECFN] == STACK_TOP - 8 - len(PROGRAM) - 1
    assert read_remote_vm(mm, STACK_TOP - 8, 8) == bytes(8)


def test_the_random_bytes_differ_from_program_to_program(world: World) -> None:
    seen = set()
    for _ in range(2):
        mm = world.execve(STATIC)
        seen.add(read_remote_vm(mm, dict(Stack(world).auxv)[At.RANDOM], 16))
    assert len(seen) == 2


def test_no_argument_at_all_becomes_an_empty_one(world: World) -> None:
    world.execve(STATIC, [], [b"A=1"])
    stack = Stack(world)
    assert (stack.argv, stack.envp) == ([b""], [b"A=1"])


def test_the_stack_is_128_kib_larger_than_what_is_in_it(world: World) -> None:
    world.execve(STATIC, [b"x" * (5 * PAGE_SIZE)])
    assert world.maps()[-1] == (STACK_TOP - 38 * PAGE_SIZE, STACK_TOP, "rw-", "")
    assert Stack(world).argv == [b"x" * (5 * PAGE_SIZE)]


def test_the_stack_stays_within_its_limit(world: World) -> None:
    world.process.rlimits.soft[Rlimit.STACK] = 0x8FFF
    world.execve(STATIC)
    assert world.maps()[-1][:2] == (STACK_TOP - 0x8000, STACK_TOP)


@pytest.mark.parametrize(("flags", "expected"), [(R | W, "rw-"), (R | W | X, "rwx")])
def test_gnu_stack_decides_whether_the_stack_is_executable(world: World, flags: int, expected: str) -> None:
    world.execve(replace(STATIC, phdrs=(Phdr(PT_GNU_STACK, flags=flags), *STATIC.phdrs)))
    assert world.maps()[-1][2] == expected


@pytest.mark.parametrize(
    ("limit", "base"),
    [
        (0, MMAP_TOP),
        (127 << 20, MMAP_TOP),
        (1 << 30, STACK_TOP - (1 << 30) - (1 << 20)),
        (RLIM_INFINITY, 0x1555_5555_6000),
    ],
)
def test_the_mmap_area_leaves_room_for_the_stack(world: World, limit: int, base: int) -> None:
    """With no limit: a sixth of the address space, and what is over is rounded up to a page."""
    world.process.rlimits.soft[Rlimit.STACK] = limit
    assert world.execve(STATIC).mmap_base == base


def test_a_process_goes_on_as_another_program(world: World) -> None:
    process = world.process
    limits = process.rlimits
    process.dispositions = {10: Disposition.CAUGHT, 11: Disposition.IGNORE, 12: Disposition.DEFAULT}
    old = world.mm
    world.execve(world.file(STATIC, "/usr/bin/a-name-of-20-bytes"))
    assert process.comm == "a-name-of-20-by"
    assert {signo for signo, is_ in process.dispositions.items() if is_ is not Disposition.DEFAULT} == {11}
    assert process.mm is not old
    assert process.rlimits is limits


def test_listeners_move_to_the_new_program(world: World) -> None:
    told: list[tuple[bool, int]] = []

    class Listener:
        def invalidate_range(self, start: int, end: int) -> None:
            raise AssertionError("the old program's memory goes after the listener has moved")

        def release(self) -> None:
            raise AssertionError("the process goes on")

        def exec_mmap(self, new_mm: MmStruct) -> None:
            told.append((new_mm is world.mm, new_mm.start_stack))

    world.mm.notifiers.append(Listener())
    refused(world, replace(STATIC, entry=STACK_TOP))
    assert not told
    mm = world.execve(STATIC)
    assert told == [(True, mm.start_stack)]


def test_the_same_program_again_uses_the_same_pages(world: World) -> None:
    file = world.file(STATIC)
    world.execve(file)
    backing = file.mapping.backing
    assert isinstance(backing, BytesBacking)
    world.execve(file)
    assert backing.nr_releases == 0
    world.execve(world.file(STATIC, "/bin/other"))
    assert (backing.nr_releases, len(file.mapping.pages)) == (1, 0)


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
        ({"elf_class": 1}, errno.ELIBBAD),
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
    assert codes == {errno.ENOMEM}
    assert allowed > 5
    assert world.process.comm == "program"


def test_a_fresh_process(world: World) -> None:
    mm = fresh_mm(world.frames, Rlimits(), Sysctl())
    try:
        (stack,) = mm.vmas
        assert (stack.start, stack.end) == (0x7FFF_FFFD_E000, STACK_TOP)
        assert mm.start_brk == mm.brk == 0x5555_5555_9000
        assert (mm.mmap_base, mm.rss, mm.page_table.table_pages) == (MMAP_TOP, [0, 0, 0, 0], 1)
        assert stack.start <= mm.start_stack < stack.end
    finally:
        exit_mmap(mm)
