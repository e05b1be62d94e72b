"""The processor: loads, stores and touches of the running thread, through the page table that CR3 names.

Owns the retry after a fault. An access translates each of its pages. A page that cannot be translated raises the
page-fault exception, as on a real machine; then the access continues, or stops at a signal. Knows no VMA. The signal
that stopped an access is in `Thread.delivered`; the return value counts what was done before it. A range may wrap over
the end of all addresses: the access stops before, because no program may access memory above user space. An access that
meets a page which a userfaultfd has to give raises AwaitsPage; a touch in pieces waits.
"""

from __future__ import annotations

from collections.abc import Generator

from kerneld.errors import KernelBug, SysError
from kerneld.hw.paging import PF_INSTR, PF_USER, PF_WRITE
from kerneld.hw.ram import Ram
from kerneld.mm.fault.populate import fault_in_range
from kerneld.mm.fault.vm_fault import VM_FAULT_ERROR
from kerneld.mm.space.pace import Pace
from kerneld.mm.space.userfaultfd import AwaitsPage
from kerneld.mm.space.wait import Wait
from kerneld.mm.vm_flags import VM_UFFD_FLAGS
from kerneld.task.entry import irqentry_exit
from kerneld.task.task import Thread
from kerneld.task.trap import access_error, exc_general_protection, exc_page_fault, fault_error
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Vaddr, page_align

_CANONICAL_END = 1 << 47
_KERNEL_HALF = (1 << 64) - _CANONICAL_END
_PATIENCE = 8
"""The most faults of one access at the same page: stack growth, the page, its copy. More faults mean a bug in
kerneld."""


def _translate(thread: Thread, vaddr: Vaddr, access: int) -> int:
    """Return the physical address of a user access, after faults if needed; -1 if a signal has stopped the access."""
    if vaddr >= _CANONICAL_END:
        if vaddr < _KERNEL_HALF:
            exc_general_protection(thread)
        else:
            exc_page_fault(thread, PF_USER | access, vaddr)
        return -1
    rq = thread.rq
    assert rq is not None
    processor = rq.processor
    for _ in range(_PATIENCE):
        pgd = rq.pgd
        assert pgd is not None
        paddr = pgd.translate(vaddr, access, processor.pkru)
        if paddr >= 0:
            return paddr
        exc_page_fault(thread, ~paddr, vaddr)
        if thread.delivered is not None:
            return -1
    raise KernelBug(f"the fault at {vaddr:#x} (access {access:#x}) comes again and again")


def load(thread: Thread, ram: Ram, vaddr: Vaddr, length: int) -> bytes:
    """Read `length` bytes at any address. The result is shorter if a signal stopped the access."""
    if (vaddr & ~PAGE_MASK) + length <= PAGE_SIZE and length:
        paddr = _translate(thread, vaddr, 0)
        return bytes(ram.read(paddr, length)) if paddr >= 0 else b""
    parts = []
    while length > 0:
        count = min(length, PAGE_SIZE - (vaddr & ~PAGE_MASK))
        paddr = _translate(thread, vaddr, 0)
        if paddr < 0:
            break
        parts.append(bytes(ram.read(paddr, count)))
        vaddr += count
        length -= count
    return b"".join(parts)


def store(thread: Thread, ram: Ram, vaddr: Vaddr, data: bytes) -> int:
    """Write bytes at any address. Return the number of bytes written before a signal, or all."""
    length = len(data)
    if (vaddr & ~PAGE_MASK) + length <= PAGE_SIZE and length:
        paddr = _translate(thread, vaddr, PF_WRITE)
        if paddr < 0:
            return 0
        ram.write(paddr, data)
        return length
    view = memoryview(data)
    done = 0
    while done < length:
        count = min(length - done, PAGE_SIZE - (vaddr + done & ~PAGE_MASK))
        paddr = _translate(thread, vaddr + done, PF_WRITE)
        if paddr < 0:
            break
        ram.write(paddr, view[done : done + count])
        done += count
    return done


def touch(thread: Thread, ram: Ram, vaddr: Vaddr, length: int, access: int, pace: Pace | None = None) -> int:
    """Access one byte of every page of [vaddr, vaddr + length) without moving data.

    Return the number of pages accessed: less before a signal, or where `pace` is over: see `fault_in_range`.

    `access` is 0, PF_WRITE or PF_INSTR. The first access in a VMA takes the processor's way, which grows stacks and
    raises signals. The rest of the VMA is then faulted in as a range.
    """
    pages = 0
    end = page_align(vaddr + length) if length else vaddr
    while vaddr < end:
        if _translate(thread, vaddr, access) < 0:
            return pages
        pages += 1
        if pace is not None and pace.is_late():
            return pages
        vaddr = (vaddr & PAGE_MASK) + PAGE_SIZE
        done = _touch_range(thread, vaddr, end, access, pace)
        pages += done
        vaddr += done << PAGE_SHIFT
        if thread.delivered is not None or (pace is not None and pace.is_over()):
            return pages
    return pages


def touch_in_pieces(
    thread: Thread, ram: Ram, vaddr: Vaddr, length: int, access: int
) -> Generator[Wait | None, None, int]:
    """Do the same as `touch`, and yield between pages, so that other threads may run.

    The other threads may change the address space. So each page is looked up again after a yield.
    """
    pages = 0
    end = page_align(vaddr + length) if length else vaddr
    pace = Pace()
    while vaddr < end:
        fault = None
        try:
            done = touch(thread, ram, vaddr, pace.stop(vaddr, end) - vaddr, access, pace)
        except AwaitsPage as awaits:
            fault = awaits.fault
            done = (fault.vaddr >> PAGE_SHIFT) - (vaddr >> PAGE_SHIFT)
        except SysError:
            if not thread.process.live_mm.frames.take_stall():
                raise
            yield None
            pace.begin()
            continue
        if fault is not None:
            yield from fault.wait(thread.tid)
        pages += done
        if thread.delivered is not None:
            break
        vaddr = (vaddr & PAGE_MASK) + (done << PAGE_SHIFT)
        if vaddr < end and pace.is_over():
            yield None
            pace.begin()
    return pages


def _touch_range(thread: Thread, start: Vaddr, end: Vaddr, access: int, pace: Pace | None) -> int:
    """Touch the part of [start, end), page-aligned, in the VMA at `start`, if the VMA allows it. Return the pages."""
    process = thread.process
    mm = process.live_mm
    vma = mm.vmas.lookup(start)
    # A listener for faults has to see every fault: then every page takes the processor's way.
    # So does every page that a userfaultfd may have to give.
    if vma is None or process.on_page_fault is not None or access == PF_INSTR or vma.vm_flags & VM_UFFD_FLAGS:
        return 0
    if access_error(PF_USER | access, vma, mm.frames.processor.pkru):
        return 0
    end = min(end, vma.end)
    if end <= start:
        return 0
    write = access == PF_WRITE
    before, major = mm.range_faults, mm.range_major_faults
    reached, fault = fault_in_range(mm, vma, start, end, write, pace=pace)
    mm.pages.mark_accessed(start, reached, write)
    process.min_flt += mm.range_faults - before
    process.maj_flt += mm.range_major_faults - major
    if fault & VM_FAULT_ERROR:
        fault_error(thread, PF_USER | access, reached, fault)
        irqentry_exit(thread)
    return (reached - start) >> PAGE_SHIFT


def fault_ahead(thread: Thread, start: Vaddr, end: Vaddr) -> None:
    """Fault in [start, end), page-aligned, before stores to each of its pages.

    Does nothing unless the whole range is in one VMA of private anonymous memory that allows stores, and many frames
    are free. If reclaim or the OOM killer may be needed, each store takes its own fault.
    """
    process = thread.process
    mm = process.live_mm
    vma = mm.vmas.lookup(start)
    if (
        vma is None
        or process.on_page_fault is not None
        or vma.file is not None
        or vma.vm_flags & VM_UFFD_FLAGS
        or vma.end < end
        or access_error(PF_USER | PF_WRITE, vma, mm.frames.processor.pkru)
    ):
        return
    # The pages and their tables together need less than twice the number of pages.
    if mm.frames.free_pages - 2 * ((end - start) >> PAGE_SHIFT) <= mm.frames.watermark_high:
        return
    before = mm.range_faults
    fault_in_range(mm, vma, start, end, True)
    process.min_flt += mm.range_faults - before
