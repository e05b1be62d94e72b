"""prctl: mergeable memory, names, and memory that does not become executable."""

from __future__ import annotations

import errno

from kerneld.mm.vm_flags import VM_MERGEABLE
from shared.uapi.mman import PR_MDWE_NO_INHERIT, PR_MDWE_REFUSE_EXEC_GAIN, Pr, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.support.programs import ANON, BASE, FIXED, PRIVATE, RW, SHARED, SHARED_ANON, WRITE, Program, page


def mmap(program: Program, addr: int, prot: int, flags: int, fd: int | None = None) -> int:
    """Map a page."""
    return program.call(Nr.MMAP, addr, PAGE_SIZE, prot, flags, 0, 0, fds=[] if fd is None else [fd])


def test_memory_that_is_merged(program: Program) -> None:
    program.mmap(1, at=BASE)
    top = 1 << 32
    assert program.call(Nr.PRCTL, Pr.GET_MEMORY_MERGE + top) == 0
    assert program.call(Nr.PRCTL, Pr.SET_MEMORY_MERGE + top, top) == 0
    assert program.call(Nr.PRCTL, Pr.GET_MEMORY_MERGE) == 1
    assert all(vma.vm_flags & VM_MERGEABLE for vma in program.mm.vmas)
    for args in ((Pr.SET_MEMORY_MERGE, 0, 1), (Pr.SET_MEMORY_MERGE, 0, 0, 0, 1), (Pr.GET_MEMORY_MERGE, 1), (1,)):
        assert program.call(Nr.PRCTL, *args) == -errno.EINVAL
    assert program.call(Nr.PRCTL, Pr.SET_MEMORY_MERGE, 0) == 0
    assert program.call(Nr.PRCTL, Pr.GET_MEMORY_MERGE) == 0


def test_names_of_memory(program: Program) -> None:
    program.mmap(2, at=BASE)

    def name(data: bytes = b"", pointer: int = 1, option: int = 0, start: int = BASE) -> int:
        return program.call(Nr.PRCTL, Pr.SET_VMA, option, start, 1, pointer, data=data)

    def names() -> list[str]:
        return [vma.anon_name for vma in program.mm.vmas.overlapping(BASE, page(2))]

    assert name(b"a name: 1~") == 0
    assert names() == ["[anon:a name: 1~]", ""]
    assert name(b"n" * 79 + b"\0behind it") == 0
    assert names() == [f"[anon:{'n' * 79}]", ""]
    for wrong in (b"n" * 80, b"\\", b"`", b"$", b"[", b"]", b"\x1f", b"\x7f", b"\xc3\xa4"):
        assert name(wrong) == -errno.EINVAL
    assert name(b"") == -errno.EFAULT
    assert name(b"x", option=1) == name(b"x", start=BASE + 1) == -errno.EINVAL
    assert name(b"x", start=page(7)) == -errno.ENOMEM
    assert name(b"\0") == 0
    assert names() == ["[anon:]", ""]
    assert name(pointer=0) == 0
    assert names() == [""]


def test_memory_that_does_not_become_executable(program: Program) -> None:
    """Only a mapping that merges is not looked at: Linux v6.8 mm/mmap.c:mmap_region()."""
    wx, denied = WRITE | Prot.EXEC.value, -errno.EACCES
    program.mmap(1, wx, at=page(1))
    assert program.call(Nr.PRCTL, Pr.SET_MDWE, PR_MDWE_NO_INHERIT) == -errno.EINVAL
    assert program.call(Nr.PRCTL, Pr.SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN) == 0
    assert program.call(Nr.PRCTL, Pr.SET_MDWE, 0) == -errno.EPERM
    program.mmap(1, RW, at=page(3))
    for flags in (ANON, SHARED_ANON):
        assert mmap(program, page(3), wx, flags | FIXED) == denied
        assert program.mm.vmas.find_intersection(page(3), page(4)) is None
    assert mmap(program, page(2), wx, ANON | FIXED) == page(2)
    with open("/dev/zero", "r+b") as zero:
        assert mmap(program, page(5), wx, SHARED | FIXED, fd=zero.fileno()) == denied
        assert mmap(program, page(5), wx, PRIVATE | FIXED, fd=zero.fileno()) == denied
    assert program.call(Nr.MPROTECT, page(1), PAGE_SIZE, wx) == denied
