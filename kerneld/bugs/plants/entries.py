"""Mistakes of the memory over which the table is mapped."""

from __future__ import annotations

from typing import Any

from kerneld.bugs.planting import Function, plant, wrap
from kerneld.errors import SysError
from kerneld.shadowpt import remap
from kerneld.shadowpt.session import ShadowPt
from kerneld.shadowpt.table import ShadowTable
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE, SHADOW_PTE

_TOUCHED = "touched"
_UNMAPPED = "nothing is mapped"
_SHORT = "the mapping ends"


def _allow(words: str, also: Function = lambda *_args: True) -> None:
    """Take entries that are refused with these words, if `also` is true for them."""

    @wrap(remap.check_own_entries)
    def check(inner: Function, mm: Any, entries: int, length: int) -> None:
        try:
            inner(mm, entries, length)
        except SysError as error:
            if words not in error.why or not also(inner, mm, entries, length):
                raise


@plant("entries-touched")
def _entries_touched() -> None:
    _allow(_TOUCHED)


def _is_first_untouched(check: Function, mm: Any, entries: int, _length: int) -> bool:
    try:
        check(mm, entries, PAGE_SIZE)
    except SysError:
        return False
    return True


@plant("entries-first-page")
def _entries_first_page() -> None:
    _allow(_TOUCHED, _is_first_untouched)


@plant("entries-any-size")
def _entries_any_size() -> None:
    _allow(_SHORT)


@plant("entries-rounded-down")
def _entries_rounded_down() -> None:
    table_bytes = [0]

    @wrap(ShadowPt.open)
    def open_noted(inner: Function, table: ShadowPt, opener: Any, target: Any, start: int, end: int, *args: Any) -> Any:
        table_bytes[0] = (min(end - start, MAX_SPT_RANGE) >> PAGE_SHIFT) * SHADOW_PTE.size
        return inner(table, opener, target, start, end, *args)

    @wrap(remap.check_own_entries)
    def check(inner: Function, mm: Any, entries: int, _length: int) -> None:
        inner(mm, entries, max(PAGE_SIZE, table_bytes[0] & PAGE_MASK))


@plant("entries-next-vma")
def _entries_next_vma() -> None:
    _allow(_UNMAPPED, lambda _check, mm, entries, _length: entries != 0 and mm.vmas.find(entries) is not None)


@plant("entries-null")
def _entries_null() -> None:
    _allow(_UNMAPPED, lambda _check, _mm, entries, _length: entries == 0)


@plant("entries-unaligned")
def _entries_unaligned() -> None:
    @wrap(remap.check_own_entries)
    def check(inner: Function, mm: Any, entries: int, length: int) -> None:
        inner(mm, entries & PAGE_MASK, length)


@plant("entries-whole-vma")
def _entries_whole_vma() -> None:
    """The VMA must be exactly the table, because nothing splits it."""

    @wrap(remap.check_own_entries)
    def check(inner: Function, mm: Any, entries: int, length: int) -> None:
        inner(mm, entries, length)
        vma = mm.vmas.lookup(entries)
        if vma is not None and vma.start != entries:
            raise SysError(22, "entries are not the begin of a mapping")


@plant("entries-one-page")
def _entries_one_page() -> None:
    """Only the first page of the table is the kernel's: the rest never changes."""
    rows = PAGE_SIZE // SHADOW_PTE.size

    @wrap(ShadowTable.update)
    def update(inner: Function, table: ShadowTable, first: int, flags: Any, pfns: Any) -> None:
        room = max(0, rows - first)
        inner(table, first, flags[:room], pfns[:room])

    @wrap(ShadowTable.update_one)
    def update_one(inner: Function, table: ShadowTable, index: int, flags: int, pfn: int) -> None:
        if index < rows:
            inner(table, index, flags, pfn)


@plant("vaddr-missing")
def _vaddr_missing() -> None:
    """Only entries that change get their address: those that start fills do not."""

    @wrap(ShadowTable.write_vaddrs)
    def write_vaddrs(_inner: Function, table: ShadowTable) -> None:
        table._begin()
