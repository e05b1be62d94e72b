"""execve over files built here: what lies where, and what the program finds on its stack."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from kerneld.fs.proc_pagemap import PM_PRESENT, PM_SOFT_DIRTY, read_pagemap
from kerneld.hw.paging import PTE_ACCESSED, PTE_DIRTY, PTE_RW, pte_pfn
from kerneld.hw.processor import INIT_PKRU
from kerneld.mm.calls.access import read_remote_vm
from kerneld.mm.fault.populate import fault_one
from kerneld.mm.frames.frames import PG_ANON
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import exit_mmap
from kerneld.mm.space.pkeys import vma_pkey
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_MERGEABLE, VM_SOFTDIRTY
from kerneld.task import uaccess
from kerneld.task.exec import fresh_mm
from shared.uapi.auxvec import ELF_HWCAP, At
from shared.uapi.page import PAGE_MASK, PAGE_SIZE
from shared.uapi.resource import RLIM_INFINITY, Rlimit
from shared.uapi.signals import Disposition
from tests.support.elf_files import (
    LD_PATH,
    PT_GNU_STACK,
    BytesBacking,
    Elf,
    Phdr,
    R,
    W,
    World,
    X,
    new_world,
    with_interp,
)
from tests.support.elf_programs import (
    BASE,
    BSS,
    DATA,
    DYN_BASE,
    LD,
    MMAP_TOP,
    PIE,
    PROGRAM,
    STACK,
    STACK_TOP,
    STATIC,
    STATIC_PIE,
    TEXT,
    Stack,
    at,
    refused,
)


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


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
    assert not mm.page_table.walk.entries(BASE, BASE + 0x6000).any()
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


def test_the_auxiliary_vector_is_in_linuxs_order(world: World) -> None:
    """Source: Linux v6.8 fs/binfmt_elf.c:create_elf_tables(); LD_SHOW_AUXV=1 shows a host's."""
    world.execve(STATIC)
    names = [At(kind).name for kind, _value in Stack(world).auxv]
    assert " ".join(names) == (
        "HWCAP PAGESZ CLKTCK PHDR PHENT PHNUM BASE FLAGS ENTRY UID EUID GID EGID SECURE "
        "RANDOM HWCAP2 EXECFN PLATFORM NULL"
    )


def test_a_program_goes_by_the_name_that_it_was_given(world: World) -> None:
    """A symbolic link's, or one from the working directory: fs/exec.c:begin_new_exec() and bprm->filename."""
    world.execve(world.file(STATIC, "/bin/busybox"), filename=b"links/./a_name_of_some_length")
    stack = Stack(world)
    assert stack.string(dict(stack.auxv)[At.EXECFN]) == b"links/./a_name_of_some_length"
    assert world.process.comm == "a_name_of_some_"
    assert world.mm.exe_path == "/bin/busybox"


def test_very_many_strings(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pointers take many pages, which are not faulted in one by one: half a million strings are one request."""
    single: list[int] = []

    def counted(mm: MmStruct, vma: Vma, vaddr: int, write: bool) -> int:
        single.append(vaddr)
        return fault_one(mm, vma, vaddr, write)

    monkeypatch.setattr(uaccess, "fault_one", counted)
    world.process.rlimits.soft[Rlimit.STACK] = 8 << 20
    argv, envp = [b"%d" % number for number in range(3000)], [b"E%d=" % number for number in range(3000)]
    world.execve(STATIC, argv, envp)
    stack = Stack(world)
    assert (stack.argv[-1], stack.argv[::700], stack.envp[::700]) == (argv[-1], argv[::700], envp[::700])
    pages = range(stack.pointer & PAGE_MASK, STACK_TOP, PAGE_SIZE)
    assert len(pages) > 12
    assert len(single) <= 3
    entries = world.mm.page_table.walk.entries(pages.start, pages.stop)
    assert ((entries & (PTE_ACCESSED | PTE_DIRTY | PTE_RW)) == PTE_ACCESSED | PTE_DIRTY | PTE_RW).all()


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


def test_all_memory_of_the_next_program_is_mergeable_too(world: World) -> None:
    """But not its stack, which no mmap makes (Linux v6.8 fs/exec.c:__bprm_mm_init())."""
    world.mm.merge_any = True
    mm = world.execve(STATIC)
    assert mm.merge_any
    stack = mm.vmas.lookup(mm.start_stack)
    assert [vma for vma in mm.vmas if not vma.vm_flags & VM_MERGEABLE] == [stack]


def test_all_memory_of_a_new_program_is_soft_dirty_but_what_the_stack_has_not_used(world: World) -> None:
    """Linux v6.8 fs/exec.c:setup_arg_pages() sets the stack's flags anew, to VM_STACK_FLAGS."""
    mm = world.execve(STATIC)
    (stack,) = (vma for vma in mm.vmas if not vma.vm_flags & VM_SOFTDIRTY)
    assert stack.start <= mm.start_stack < stack.end
    words = memoryview(read_pagemap(mm, stack.start >> 9, stack.nr_pages * 8, show_pfn=True)).cast("Q")
    assert [word & PM_SOFT_DIRTY != 0 for word in words] == [word & PM_PRESENT != 0 for word in words]
    assert 0 < sum(word & PM_PRESENT != 0 for word in words) < stack.nr_pages


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


def test_a_fresh_process(world: World) -> None:
    mm = fresh_mm(world.frames, Rlimits(), Sysctl())
    try:
        (stack,) = mm.vmas
        assert (stack.start, stack.end) == (0x7FFF_FFFD_E000, STACK_TOP)
        assert mm.start_brk == mm.brk == 0x5555_5555_9000
        assert (mm.mmap_base, mm.rss.counts, mm.page_table.table_pages) == (MMAP_TOP, [0, 0, 0, 0], 1)
        assert stack.start <= mm.start_stack < stack.end
    finally:
        exit_mmap(mm)


@pytest.mark.parametrize("pkru", [0, INIT_PKRU, 0xFFFF_FFFC])
def test_a_segment_that_is_only_executable_has_a_key(world: World, pkru: int) -> None:
    """The new program begins with PKRU as every one does, whatever the old one had, and with keys of its own."""
    processor = world.frames.processor
    world.mm.pkey_allocation_map = 0xF
    processor.wrpkru(pkru)
    only = replace(TEXT, flags=X, vaddr=0x1000)
    mm = world.execve(Elf(at(BASE, TEXT, only), entry=BASE + 0x80))
    assert [vma_pkey(vma) for vma in mm.vmas] == [0, 1, 0]
    assert world.maps()[1] == (BASE + 0x1000, BASE + 0x2000, "--x", PROGRAM)
    assert (mm.pkey_allocation_map, mm.execute_only_pkey, processor.pkru) == (3, 1, INIT_PKRU)


def test_a_program_that_cannot_be_run_leaves_pkru_and_keys(world: World) -> None:
    processor = world.frames.processor
    before = world.mm
    processor.wrpkru(0xFF00)
    before.pkey_allocation_map = 3
    only = replace(TEXT, flags=X)
    refused(world, Elf(at(BASE, only, replace(TEXT, vaddr=1 << 47)), entry=BASE + 0x80))
    assert (world.mm, processor.pkru, before.pkey_allocation_map) == (before, 0xFF00, 3)
