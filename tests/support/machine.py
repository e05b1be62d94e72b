"""A machine with address spaces, a processor of a few lines, and files that are byte arrays: what these tests share."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from signal import SIGBUS, SIGKILL, SIGSEGV
from typing import TypeVar

import numpy as np
import pytest

from kerneld.errors import SysError
from kerneld.hw.paging import PF_INSTR, PF_WRITE, pte_pfn, translate
from kerneld.hw.ram import Ram
from kerneld.mm.calls.fork import dup_mmap
from kerneld.mm.calls.madvise import do_madvise
from kerneld.mm.calls.mmap import do_mmap, wants_populate
from kerneld.mm.calls.stack import expand_stack
from kerneld.mm.check.invariants import check_machine
from kerneld.mm.fault.fault import handle_mm_fault
from kerneld.mm.fault.populate import mm_populate
from kerneld.mm.fault.vm_fault import VM_FAULT_ERROR, VM_FAULT_OOM, VM_FAULT_SIGBUS
from kerneld.mm.files.file import File
from kerneld.mm.files.filemap import AddressSpace
from kerneld.mm.frames.frames import PG_LRU, PG_UNEVICTABLE, Frames
from kerneld.mm.frames.swap import SwapFile
from kerneld.mm.limits import Rlimits, Sysctl
from kerneld.mm.reclaim.page_alloc import PageAlloc
from kerneld.mm.reclaim.shrink import reclaim_pages
from kerneld.mm.reclaim.vmscan import Vmscan
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.munmap import exit_mmap
from kerneld.mm.space.vma import Vma
from kerneld.mm.vm_flags import VM_ACCESS_FLAGS, VM_GROWSDOWN, VM_WRITE
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Pfn, Vaddr

BASE: Vaddr = 0x10_0000_0000
"""Where tests put fixed mappings: far from mmap_base, at the start of a leaf table."""
READ, WRITE, EXEC, NONE = Prot.READ.value, Prot.WRITE.value, Prot.EXEC.value, Prot.NONE.value
RW = READ | WRITE
PRIVATE, SHARED, FIXED = Map.PRIVATE.value, Map.SHARED.value, Map.FIXED.value
ANON = Map.PRIVATE.value | Map.ANONYMOUS.value
SHARED_ANON = Map.SHARED.value | Map.ANONYMOUS.value


class Signal(Exception):
    """The access was stopped by a signal."""

    def __init__(self, signo: int) -> None:
        super().__init__(signo)
        self.signo = signo


class Machine:
    """RAM, frames, and the address spaces in it; `close` takes all down and counts the frames and the swap slots."""

    def __init__(self, ram_bytes: int = 8 << 20, swap_bytes: int = 0, *, reclaims: bool = False) -> None:
        """With `reclaims` an allocation reclaims where it would go below the minimum; nobody is killed."""
        self.ram = Ram(ram_bytes)
        self.frames = Frames(self.ram, SwapFile(swap_bytes))
        self.sysctl = Sysctl()
        self.vmscan = Vmscan(self.frames, self.sysctl)
        if reclaims:
            PageAlloc(self.frames, self.sysctl, self.vmscan, lambda: False)
        self.mms: list[MmStruct] = []

    def new_mm(self) -> MmStruct:
        mm = MmStruct(self.frames, Rlimits(), self.sysctl)
        self.mms.append(mm)
        return mm

    def fork(self, mm: MmStruct) -> MmStruct:
        child = dup_mmap(mm)
        self.mms.append(child)
        return child

    def exit(self, mm: MmStruct) -> None:
        self.mms.remove(mm)
        exit_mmap(mm)

    def new_file(
        self, data: bytes, *, readable: bool = True, writable: bool = True, is_shmem: bool = False
    ) -> tuple[File, FakeBacking]:
        backing = FakeBacking(data)
        mapping = AddressSpace(self.frames, backing, is_shmem=is_shmem)
        return File(mapping, "/f", readable=readable, writable=writable), backing

    def reclaim_all(self) -> int:
        """Reclaim every frame that can be, used or not; returns how many were freed."""
        evictable = (self.frames.flags & np.uint32(PG_LRU | PG_UNEVICTABLE)) == np.uint32(PG_LRU)
        return reclaim_pages(self.frames, np.flatnonzero(evictable))

    def check(self) -> None:
        check_machine(self.frames, self.mms)

    @contextmanager
    def failing_allocation(self, number: int) -> Iterator[list[int]]:
        """Let the allocation of this number, and all after it, fail; yields a list that gets one item a failure."""
        failed: list[int] = []
        seen = 0

        def hook(count: int) -> None:
            nonlocal seen
            seen += 1
            if seen > number:
                failed.append(count)
                raise SysError(errno.ENOMEM)

        self.frames.alloc_hook = hook
        try:
            yield failed
        finally:
            self.frames.alloc_hook = None

    def close(self) -> None:
        for mm in list(self.mms):
            self.exit(mm)
        self.check()
        assert self.frames.free_pages == self.frames.total_pages
        assert self.frames.swap.nr_free == self.frames.swap.total_pages
        assert self.frames.committed_as == 0
        self.frames.swap.close()
        self.ram.close()


AnyMachine = TypeVar("AnyMachine", bound=Machine)


def checked(made: AnyMachine) -> Iterator[AnyMachine]:
    """Yield a machine, for a fixture; check and count it when the test is over."""
    yield made
    made.check()
    made.close()


class FakeBacking:
    """A file that is a byte array; it notes what is read and written, and can fail."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []
        self.fail = 0
        self.is_sealed = self.is_mapped_writable = False
        self.holes: set[int] = set()
        """Of a file in memory: the pages that nobody has written to."""
        self.without_room: set[int] = set()
        """The pages that the file system, which is full, has no blocks for."""
        self.releases = 0

    def size_bytes(self) -> int:
        return len(self.data)

    def read_at(self, offset: int, length: int) -> bytes:
        if self.fail:
            raise OSError(self.fail, "read")
        self.reads.append((offset, length))
        return bytes(self.data[offset : offset + length])

    def write_at(self, offset: int, data: memoryview) -> None:
        if self.fail:
            raise OSError(self.fail, "write")
        self.writes.append((offset, len(data)))
        self.data[offset : offset + len(data)] = data

    def punch_hole(self, offset: int, length: int) -> None:
        if self.fail:
            raise OSError(self.fail, "punch_hole")
        end = min(offset + length, len(self.data))
        self.data[offset:end] = bytes(max(0, end - offset))

    def fill_hole(self, index: int) -> None:
        if index in self.without_room:
            raise OSError(errno.ENOSPC, "full")

    def map_writable(self) -> None:
        if self.is_sealed:
            raise PermissionError(errno.EPERM, "sealed")
        self.is_mapped_writable = True

    def unmap_writable(self) -> None:
        self.is_mapped_writable = False

    def mincore(self, first: int, count: int) -> bytes:
        return bytes(index not in self.holes for index in range(first, first + count))

    def release(self) -> bool:
        self.releases += 1
        return False


def mmap(
    mm: MmStruct,
    pages: int,
    prot: int = RW,
    flags: int = ANON,
    *,
    at: Vaddr | None = None,
    file: File | None = None,
    pgoff: int = 0,
    privileged: bool = False,
) -> Vaddr:
    """Make a mapping; fixed where `at` is given."""
    flags |= FIXED if at is not None else 0
    addr = do_mmap(mm, at or 0, pages * PAGE_SIZE, prot, flags, file, pgoff, privileged=privileged)
    if wants_populate(mm, flags):
        mm_populate(mm, addr, addr + pages * PAGE_SIZE)
    return addr


def _fault(mm: MmStruct, vaddr: Vaddr, access: int) -> None:
    """The page-fault exception, in brief (kerneld.task.trap is the real one)."""
    vma = mm.vmas.find(vaddr)
    if vma is not None and vaddr < vma.start:
        try:
            expand_stack(mm, vma, vaddr)
        except SysError:
            vma = None
    needed = VM_WRITE if access == PF_WRITE else VM_ACCESS_FLAGS
    if vma is None or not vma.vm_flags & needed:
        raise Signal(SIGSEGV)
    result = handle_mm_fault(mm, vma, vaddr, access == PF_WRITE)
    if result & VM_FAULT_ERROR:
        raise Signal({VM_FAULT_OOM: SIGKILL, VM_FAULT_SIGBUS: SIGBUS}[result & VM_FAULT_ERROR])


def access(mm: MmStruct, vaddr: Vaddr, kind: int = 0) -> int:
    """Return the physical address of a user access after the faults that it takes. Raises Signal."""
    for _ in range(4):
        paddr = translate(mm.frames.ram.words, mm.page_table.root, vaddr, kind)
        if paddr >= 0:
            return paddr
        if kind == PF_INSTR and ~paddr & 1:
            raise Signal(SIGSEGV)
        _fault(mm, vaddr, kind)
    raise AssertionError(f"the fault at {vaddr:#x} never ends")


def load(mm: MmStruct, vaddr: Vaddr, length: int = 1) -> bytes:
    """Read bytes that lie within one page. Raises Signal."""
    return bytes(mm.frames.ram.read(access(mm, vaddr), length))


def store(mm: MmStruct, vaddr: Vaddr, data: bytes) -> None:
    """Write bytes that lie within one page. Raises Signal."""
    mm.frames.ram.write(access(mm, vaddr, PF_WRITE), data)


def signal_of(call: Callable[[], object]) -> int:
    """Return the signal that an access ends in."""
    with pytest.raises(Signal) as caught:
        call()
    return caught.value.signo


def errno_of(call: Callable[[], object]) -> int:
    """Return the errno that a call fails with."""
    with pytest.raises(SysError) as caught:
        call()
    return caught.value.errno


def failure(call: Callable[[], object]) -> int:
    """Return the errno or the signal that a call or an access ends in, 0 for none."""
    try:
        call()
    except SysError as error:
        return error.errno
    except Signal as signal:
        return signal.signo
    return 0


def entry(mm: MmStruct, vaddr: Vaddr) -> int:
    """Return the page-table entry of an address, 0 where none is."""
    return int(mm.page_table.walk.entries(vaddr & PAGE_MASK, (vaddr & PAGE_MASK) + PAGE_SIZE)[0])


def pfn_of(mm: MmStruct, vaddr: Vaddr) -> Pfn:
    """Return the frame that an address is mapped to, 0 where none is."""
    return pte_pfn(entry(mm, vaddr))


def layout(mm: MmStruct) -> list[tuple[int, int, int]]:
    """Return each VMA as (first page from BASE, pages, PROT_ bits)."""
    return [((vma.start - BASE) >> PAGE_SHIFT, vma.nr_pages, vma.vm_flags & VM_ACCESS_FLAGS) for vma in mm.vmas]


def vma_at(mm: MmStruct, vaddr: Vaddr) -> Vma:
    """Return the VMA that covers an address."""
    vma = mm.vmas.lookup(vaddr)
    assert vma is not None
    return vma


def page(number: int) -> Vaddr:
    """Return the address of a page counted from BASE."""
    return BASE + number * PAGE_SIZE


def advise(mm: MmStruct, first: int, count: int, advice: int) -> None:
    """Call madvise for `count` pages from page `first`, counted from BASE."""
    do_madvise(mm, page(first), count * PAGE_SIZE, advice)


def grows_down(mm: MmStruct, at: Vaddr, pages: int) -> Vma:
    """Make a stack of so many pages at an address."""
    mmap(mm, pages, RW, ANON | Map.GROWSDOWN.value, at=at)
    vma = vma_at(mm, at)
    assert vma.vm_flags & VM_GROWSDOWN
    return vma
