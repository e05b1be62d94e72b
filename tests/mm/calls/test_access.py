"""Reading and writing another address space: each row of the table in mm.calls.access, and what it leaves."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PTE_DIRTY, PTE_RW
from kerneld.mm.calls.access import read_remote_vm, write_remote_vm
from kerneld.mm.calls.mprotect import do_mprotect
from kerneld.mm.frames.frames import ZERO_PFN
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from tests.support.machine import (
    BASE,
    EXEC,
    NONE,
    PRIVATE,
    READ,
    RW,
    SHARED,
    WRITE,
    Machine,
    entry,
    grows_down,
    load,
    mmap,
    page,
    pfn_of,
    store,
    vma_at,
)


def code_of(call: Callable[[], object]) -> int:
    """Return the errno of a call, 0 for none. Keeps no traceback: that would keep the machine's memory."""
    try:
        call()
    except SysError as error:
        return error.errno
    return 0


def test_bytes_over_several_pages_at_any_address(mm: MmStruct) -> None:
    mmap(mm, 4, at=BASE)
    data = bytes(range(256)) * 40
    write_remote_vm(mm, BASE + 123, data)
    assert read_remote_vm(mm, BASE + 123, len(data)) == data
    assert read_remote_vm(mm, BASE, 123) == bytes(123)
    assert load(mm, page(1), 5) == data[PAGE_SIZE - 123 :][:5]
    assert not entry(mm, page(3))


def test_nothing_is_nothing(mm: MmStruct) -> None:
    write_remote_vm(mm, TASK_SIZE, b"")
    assert read_remote_vm(mm, TASK_SIZE, 0) == b""


def test_a_read_of_untouched_memory_takes_no_frame(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    assert read_remote_vm(mm, BASE, PAGE_SIZE) == bytes(PAGE_SIZE)
    assert (pfn_of(mm, BASE), mm.rss.counts) == (ZERO_PFN, [0, 0, 0, 0])
    write_remote_vm(mm, BASE, b"x")
    assert pfn_of(mm, BASE) != ZERO_PFN
    machine.check()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("vaddr", [BASE - 1, BASE + PAGE_SIZE, TASK_SIZE, 1 << 47, (1 << 64) - 1])
def test_where_nothing_is_mapped(mm: MmStruct, vaddr: int, force: bool) -> None:
    mmap(mm, 1, at=BASE)
    assert code_of(lambda: read_remote_vm(mm, vaddr, 2, force=force)) == errno.EFAULT
    assert code_of(lambda: write_remote_vm(mm, vaddr, b"xx", force=force)) == errno.EFAULT


def test_what_lies_before_a_hole_is_written(mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    assert code_of(lambda: write_remote_vm(mm, page(1) - 2, b"abcd")) == errno.EFAULT
    assert load(mm, page(1) - 2, 2) == b"ab"


@pytest.mark.parametrize(
    ("prot", "flags", "read", "write", "forced_read", "forced_write"),
    [
        (RW, PRIVATE, 0, 0, 0, 0),
        (READ, PRIVATE, 0, errno.EFAULT, 0, 0),
        (NONE, PRIVATE, errno.EFAULT, errno.EFAULT, 0, 0),
        (EXEC, PRIVATE, errno.EFAULT, errno.EFAULT, 0, 0),
        (WRITE, PRIVATE, errno.EFAULT, 0, 0, 0),
        (RW, SHARED, 0, 0, 0, 0),
        (READ, SHARED, 0, errno.EFAULT, 0, errno.EFAULT),
        (NONE, SHARED, errno.EFAULT, errno.EFAULT, 0, errno.EFAULT),
    ],
)
@pytest.mark.parametrize("of_file", [False, True])
def test_rights(
    machine: Machine,
    mm: MmStruct,
    prot: int,
    flags: int,
    read: int,
    write: int,
    forced_read: int,
    forced_write: int,
    of_file: bool,
) -> None:
    file = machine.new_file(bytes(PAGE_SIZE))[0] if of_file else None
    mmap(mm, 1, prot, flags if of_file else flags | Map.ANONYMOUS.value, at=BASE, file=file)
    assert code_of(lambda: read_remote_vm(mm, BASE, 1)) == read
    assert code_of(lambda: write_remote_vm(mm, BASE, b"x")) == write
    assert code_of(lambda: read_remote_vm(mm, BASE, 1, force=True)) == forced_read
    assert code_of(lambda: write_remote_vm(mm, BASE, b"y", force=True)) == forced_write
    if not forced_write:
        assert read_remote_vm(mm, BASE, 1, force=True) == b"y"
    machine.check()


def test_a_forced_write_makes_a_copy_that_the_program_cannot_write(machine: Machine, mm: MmStruct) -> None:
    file, backing = machine.new_file(b"f" * PAGE_SIZE)
    mmap(mm, 1, READ, PRIVATE, at=BASE, file=file)
    assert read_remote_vm(mm, BASE, 2) == b"ff"
    cached = pfn_of(mm, BASE)
    write_remote_vm(mm, BASE, b"x", force=True)
    copy = pfn_of(mm, BASE)
    write_remote_vm(mm, BASE + 2, b"y", force=True)
    assert (load(mm, BASE, 4), pfn_of(mm, BASE)) == (b"xfyf", copy)
    assert copy != cached
    assert not entry(mm, BASE) & PTE_RW
    assert bytes(backing.data) == b"f" * PAGE_SIZE


def test_a_write_after_fork_reaches_one_side_alone(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    store(mm, BASE, b"old")
    do_mprotect(mm, BASE, PAGE_SIZE, READ)
    child = machine.fork(mm)
    write_remote_vm(child, BASE, b"new", force=True)
    assert (load(mm, BASE, 3), load(child, BASE, 3)) == (b"old", b"new")
    machine.check()


def test_a_shared_file_gets_what_is_written(machine: Machine, mm: MmStruct) -> None:
    file, backing = machine.new_file(b"f" * PAGE_SIZE)
    mmap(mm, 1, RW, SHARED, at=BASE, file=file)
    write_remote_vm(mm, BASE, b"x")
    assert entry(mm, BASE) & PTE_DIRTY
    machine.exit(mm)
    assert bytes(backing.data[:2]) == b"xf"


def test_past_the_end_of_a_file(machine: Machine, mm: MmStruct) -> None:
    file, backing = machine.new_file(b"f")
    mmap(mm, 2, RW, PRIVATE, at=BASE, file=file)
    assert read_remote_vm(mm, BASE, 2) == b"f\0"
    assert code_of(lambda: read_remote_vm(mm, page(1), 1)) == errno.EFAULT
    assert code_of(lambda: write_remote_vm(mm, page(1), b"x", force=True)) == errno.EFAULT
    assert bytes(backing.data) == b"f"


def test_a_stack_grows_down_to_what_is_written(mm: MmStruct) -> None:
    grows_down(mm, page(64), 1)
    write_remote_vm(mm, page(60) + 10, b"deep")
    assert vma_at(mm, page(60)).start == page(60)
    assert load(mm, page(60) + 10, 4) == b"deep"
    limit = mm.sysctl.mmap_min_addr - PAGE_SIZE
    assert code_of(lambda: read_remote_vm(mm, limit, 1)) == errno.EFAULT


def test_without_a_frame(machine: Machine, mm: MmStruct) -> None:
    mmap(mm, 1, at=BASE)
    with machine.failing_allocation(0) as failed:
        assert code_of(lambda: write_remote_vm(mm, BASE, b"x")) == errno.ENOMEM
        assert failed
    write_remote_vm(mm, BASE, b"x")
    assert load(mm, BASE) == b"x"
