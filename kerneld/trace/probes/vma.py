"""VMAs: the few primitives of an address space that change them, and the functions for splits, merges and growth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kerneld.errors import SysError
from kerneld.mm.calls.mremap import _expand, copy_vma
from kerneld.mm.calls.stack import expand_stack
from kerneld.mm.files.file import File
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.unmapped_area import _topdown
from kerneld.mm.space.vma import Traits, Vma
from kerneld.mm.space.vma_merge import merge_into_neighbours, vma_modify
from kerneld.trace.fprobe import Function
from kerneld.trace.probe import probe
from shared.trace.events import (
    EXPAND_STACK,
    VM_UNMAPPED_AREA,
    VMA_CHANGE,
    VMA_INSERT,
    VMA_MERGE,
    VMA_REMOVE,
    VMA_SPLIT,
)
from shared.uapi.mman import Map
from shared.uapi.page import PAGE_MASK

if TYPE_CHECKING:
    from kerneld.trace.tracing import Tracing

_FIXED = Map.FIXED.value
_U64 = (1 << 64) - 1


@probe(MmStruct.insert_vma, VMA_INSERT)
def _insert_vma(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(VMA_INSERT).emit

    def insert_vma(self: MmStruct, vma: Vma) -> None:
        emit(tracing.owner(self.number), self.number, vma.start, vma.end, vma.vm_flags, vma.pgoff)
        inner(self, vma)

    return insert_vma


@probe(MmStruct.remove_vma, VMA_REMOVE)
def _remove_vma(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(VMA_REMOVE).emit

    def remove_vma(self: MmStruct, vma: Vma) -> None:
        emit(tracing.owner(self.number), self.number, vma.start, vma.end, vma.vm_flags, vma.pgoff)
        inner(self, vma)

    return remove_vma


@probe(MmStruct.move_vma_bounds, VMA_CHANGE)
def _move_vma_bounds(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(VMA_CHANGE).emit

    def move_vma_bounds(self: MmStruct, vma: Vma, start: int, end: int) -> None:
        old = vma.start, vma.end, vma.vm_flags
        inner(self, vma, start, end)
        emit(tracing.owner(self.number), self.number, *old, vma.start, vma.end, vma.vm_flags, vma.pgoff)

    return move_vma_bounds


@probe(MmStruct.set_vma_flags, VMA_CHANGE)
def _set_vma_flags(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(VMA_CHANGE).emit

    def set_vma_flags(self: MmStruct, vma: Vma, vm_flags: int) -> None:
        old = vma.start, vma.end, vma.vm_flags
        inner(self, vma, vm_flags)
        emit(tracing.owner(self.number), self.number, *old, vma.start, vma.end, vma.vm_flags, vma.pgoff)

    return set_vma_flags


@probe(MmStruct.split_vma, VMA_SPLIT)
def _split_vma(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(VMA_SPLIT).emit

    def split_vma(self: MmStruct, vma: Vma, vaddr: int) -> Vma:
        emit(tracing.owner(self.number), self.number, vma.start, vma.end, vaddr)
        upper: Vma = inner(self, vma, vaddr)
        return upper

    return split_vma


def _tell_merge(tracing: Tracing, mm: MmStruct, start: int, end: int, vma: Vma | None) -> None:
    """Record a merge: the VMA that covers the wanted range is larger than the range."""
    if vma is not None and (vma.start < start or end < vma.end):
        tracing.point(VMA_MERGE).emit(tracing.owner(mm.number), mm.number, start, end, vma.start, vma.end)


@probe(vma_modify, VMA_MERGE)
def _vma_modify(tracing: Tracing, inner: Function) -> Function:
    def vma_modify(
        mm: MmStruct,
        vma: Vma,
        start: int,
        end: int,
        vm_flags: int | None,
        traits: Traits | None = None,
    ) -> Vma:
        found: Vma = inner(mm, vma, start, end, vm_flags, traits)
        _tell_merge(tracing, mm, start, end, found)
        return found

    return vma_modify


@probe(merge_into_neighbours, VMA_MERGE)
def _merge_into_neighbours(tracing: Tracing, inner: Function) -> Function:
    def merge_into_neighbours(
        mm: MmStruct, start: int, end: int, vm_flags: int, file: File | None, pgoff: int
    ) -> Vma | None:
        found: Vma | None = inner(mm, start, end, vm_flags, file, pgoff)
        _tell_merge(tracing, mm, start, end, found)
        return found

    return merge_into_neighbours


@probe(copy_vma, VMA_MERGE)
def _copy_vma(tracing: Tracing, inner: Function) -> Function:
    def copy_vma(mm: MmStruct, vma: Vma, old_addr: int, addr: int, length: int) -> Vma:
        found: Vma = inner(mm, vma, old_addr, addr, length)
        _tell_merge(tracing, mm, addr, addr + length, found)
        return found

    return copy_vma


@probe(_expand, VMA_MERGE)
def _expand_vma(tracing: Tracing, inner: Function) -> Function:
    """mremap in place: the extension becomes a part of the extended VMA."""

    def _expand(mm: MmStruct, vma: Vma, delta: int) -> None:
        start, end = vma.end, vma.end + delta
        inner(mm, vma, delta)
        _tell_merge(tracing, mm, start, end, vma)

    return _expand


@probe(expand_stack, EXPAND_STACK)
def _expand_stack(tracing: Tracing, inner: Function) -> Function:
    emit = tracing.point(EXPAND_STACK).emit

    def expand_stack(mm: MmStruct, vma: Vma, address: int) -> None:
        old_start = vma.start
        inner(mm, vma, address)
        emit(tracing.owner(mm.number), mm.number, address, old_start, vma.start)

    return expand_stack


@probe(_topdown, VM_UNMAPPED_AREA)
def _vm_unmapped_area(tracing: Tracing, inner: Function) -> Function:
    """A free hint and a fixed address need no search: Linux does not call vm_unmapped_area() for them."""
    emit = tracing.point(VM_UNMAPPED_AREA).emit

    def _topdown(mm: MmStruct, addr: int, length: int, flags: int) -> int:
        try:
            found: int = inner(mm, addr, length, flags)
        except SysError as error:
            emit(0, -error.errno & _U64, mm.total_vm, flags, length)
            raise
        if not flags & _FIXED and (not addr or found != addr & PAGE_MASK):
            emit(0, found, mm.total_vm, flags, length)
        return found

    return _topdown
