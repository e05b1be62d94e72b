"""Where the window of `--follow` goes, from records and a model alone."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.address import Span
from inspector.places import MOST_PENDING, ROUNDING, Places, changed_span, window_of
from shared.recording.address_space import AddressSpace, Vma
from shared.recording.machine import File, Machine, Task
from shared.trace import events as ev
from shared.trace.event import Event
from shared.trace.record import Record
from shared.uapi.page import PAGE_SIZE, TASK_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE

PID, MM, BASE = 42, 7, 0x7F00_0000_0000
FRAME, OTHER_FRAME, SLOT = 0x25_067, 0x31_067, 0x7FFF_FFFF_FFFF_FE00


def record(event: Event, **fields: Any) -> Record:
    return Record(event, 0, PID, PID, PID, (), 0, 0, {"mm": MM, **fields})


def pte(old: int, new: int, vaddr: int = BASE, pages: int = 1) -> Record:
    return record(ev.PTE_REPLACE, vaddr=vaddr, nr_pages=pages, old=old, new=new)


def inserted(start: int, pages: int) -> Record:
    return record(ev.VMA_INSERT, start=start, end=start + pages * PAGE_SIZE, vm_flags=3, pgoff=0)


def machine(*vmas: Vma) -> Machine:
    found = Machine()
    mm = found.mms[MM] = AddressSpace(MM, PID, {vma.start: vma for vma in vmas})
    mm.start_stack = BASE
    found.tasks[PID] = Task(PID, mm=MM)
    return found


def vma(start: int, pages: int, mapping: int = 0) -> Vma:
    return Vma(start, start + pages * PAGE_SIZE, 3, 0, mapping)


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        (0, FRAME, True),
        (FRAME, OTHER_FRAME, True),
        (FRAME, SLOT, True),
        (SLOT, FRAME, True),
        (FRAME, FRAME & ~2, False),
        (SLOT, 0, False),
        (0, SLOT, False),
    ],
)
def test_an_entry_changes_the_table_with_its_frame(old: int, new: int, counts: bool) -> None:
    """fork makes entries read-only: nothing in the table changes. Nor does it if a swapped page goes."""
    assert (changed_span(pte(old, new)) is not None) is counts


def test_a_vma_changes_the_table_where_its_bounds_move() -> None:
    same = {"old_start": BASE, "old_end": BASE + 0x4000, "old_flags": 3, "vm_flags": 1, "pgoff": 0}
    assert changed_span(record(ev.VMA_CHANGE, start=BASE, end=BASE + 0x4000, **same)) is None
    assert changed_span(record(ev.VMA_CHANGE, start=BASE, end=BASE + 0x6000, **same)) == (BASE + 0x4000, BASE + 0x6000)
    assert changed_span(record(ev.VMA_CHANGE, start=BASE - 0x1000, end=BASE + 0x4000, **same)) == (BASE - 0x1000, BASE)
    assert changed_span(record(ev.SYS_ENTER)) is None


def test_a_window_is_a_mapping_with_room() -> None:
    mm = machine(vma(BASE + PAGE_SIZE, 2), vma(BASE + 3 * PAGE_SIZE, 1), vma(BASE + 4 * PAGE_SIZE, 30, 5)).mms[MM]
    # Neighbours without a file are one: mprotect splits what was one mapping.
    assert window_of(mm, Span(BASE + PAGE_SIZE, BASE + 2 * PAGE_SIZE)) == (BASE, BASE + ROUNDING)
    assert window_of(mm, Span(BASE + 9 * PAGE_SIZE, BASE + 10 * PAGE_SIZE)) == (BASE, BASE + 3 * ROUNDING)


def test_a_window_fits_into_a_table() -> None:
    start = TASK_SIZE - 5000 * PAGE_SIZE
    mm = machine(vma(start, 5000)).mms[MM]
    for at in (start, start + 2500 * PAGE_SIZE, TASK_SIZE - PAGE_SIZE):
        window = window_of(mm, Span(at, at + PAGE_SIZE))
        assert window.start <= at < window.end <= TASK_SIZE
        assert window.end - window.start <= MAX_SPT_RANGE


def test_the_window_stays_while_it_has_the_changes() -> None:
    now = machine(vma(BASE, 4))
    places = Places(now, machine(), PID, Span(BASE, BASE + ROUNDING))
    places.take([pte(0, FRAME), pte(FRAME, 0, BASE + PAGE_SIZE)])
    assert [place.span for place in places.next(4)[0]] == [(BASE, BASE + ROUNDING)]
    # Nothing has changed: the same place again.
    (again,), left = places.next(4)
    assert (again.span, left) == ((BASE, BASE + ROUNDING), 0)


def test_only_the_last_places_are_shown_and_the_others_counted() -> None:
    far = [BASE + number * 0x100_0000 for number in range(MOST_PENDING + 10)]
    places = Places(machine(*(vma(start, 1) for start in far)), machine(), PID, Span(BASE, BASE + ROUNDING))
    places.take(inserted(start, 1) for start in far)
    shown, left = places.next(4)
    assert [place.span.start for place in shown] == far[-4:]
    assert left == len(far) - 4


def test_an_address_space_before_execve_is_not_followed() -> None:
    places = Places(machine(vma(BASE, 1)), machine(), PID, Span(BASE, BASE + ROUNDING))
    places.take([inserted(BASE + 0x100_0000, 1)._replace(fields={"mm": MM + 1, "start": 0, "end": PAGE_SIZE})])
    assert [place.span.start for place in places.next(4)[0]] == [BASE]


def test_execve_looks_at_the_image_by_its_name() -> None:
    image = 0x5555_5555_4000
    now = machine(vma(0x40_0000, 1, 8), vma(image, 4, 9), vma(BASE, 1))
    now.files = {8: File(1, 1, "/lib/other"), 9: File(1, 2, "/usr/bin/true")}
    places = Places(now, machine(), PID, Span(BASE, BASE + ROUNDING))
    places.take([record(ev.PROCESS_EXEC, filename="/bin/true", pid=PID, old_pid=PID)])
    before, after = places.next(4)[0]
    assert (before.span.start, before.is_told) == (BASE, True)
    assert after.span.start <= image < after.span.end


def test_what_an_execve_fills_is_not_followed_before_it() -> None:
    """The machine has all records, those after the execve too."""
    now = machine(vma(BASE, 1))
    places = Places(now, machine(), PID, Span(BASE, BASE + ROUNDING))
    now.tasks[PID].mm = MM + 1
    stack = inserted(TASK_SIZE - 0x100_0000, 1)
    executed = record(ev.PROCESS_EXEC, filename="/bin/true", pid=PID, old_pid=PID)
    new = [one._replace(fields={**one.fields, "mm": MM + 1}) for one in (stack, executed)]
    places.take(new)
    assert places.next(4)[0][0].span.start == BASE
