"""Two moments compared; when a page got its frame, when a frame changed hands."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from shared.recording.compare import How, compare_pages, compare_vmas
from shared.recording.reader import Recording
from shared.recording.search import entry_changes, frame_history
from shared.trace.events import MM_PAGE_ALLOC, MM_PAGE_FREE, PTE_CLEAR, PTE_SET, Cause
from shared.uapi.mman import Madv, Mremap
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Access, Nr
from tests.support.programs import READ, Program, page
from tests.support.recorded import Recorded, recorded
from tests.support.traced import TracedWorld


class Scene:
    """A recorded program, and marks in its record."""

    def __init__(self, program: Program, record: Recorded) -> None:
        self.program = program
        self.record = record

    def mark(self) -> int:
        self.record.read()
        return self.record.recorder.events

    def recording(self) -> Recording:
        return self.record.recording()

    def compared(self, first: int, second: int) -> list[tuple[How, int, int]]:
        recording, number = self.recording(), self.program.mm.number
        before, after = recording.machine(first).mms[number], recording.machine(second).mms[number]
        return [(one.how, one.vaddr, one.nr_pages) for one in compare_pages(before, after)]


@pytest.fixture
def scene() -> Iterator[Scene]:
    world = TracedWorld()
    with recorded(world) as record:
        program = world.attach(pid=os.getpid())
        program.mmap(16, at=page(0))
        yield Scene(program, record)
    world.close()


def test_pages_come_change_and_go(scene: Scene) -> None:
    start = scene.mark()
    scene.program.touch(0, 8)
    touched = scene.mark()
    assert scene.compared(start, touched)[0][:2] == (How.CAME, page(0))
    assert sum(pages for how, _, pages in scene.compared(start, touched) if how is How.CAME) == 8
    scene.program.call(Nr.MPROTECT, page(0), 4 * PAGE_SIZE, READ)
    scene.program.call(Nr.MADVISE, page(6), 2 * PAGE_SIZE, Madv.DONTNEED)
    end = scene.mark()
    found = scene.compared(touched, end)
    assert {how for how, _, _ in found} == {How.CHANGED, How.WENT}
    assert sum(pages for how, vaddr, pages in found if how is How.CHANGED and vaddr < page(4)) == 4
    assert sum(pages for how, vaddr, pages in found if how is How.WENT and vaddr >= page(6)) == 2
    assert scene.compared(end, end) == []


def test_a_page_that_was_moved_is_not_a_new_one(scene: Scene) -> None:
    scene.program.touch(0, 4)
    before = scene.mark()
    scene.program.call(Nr.MREMAP, page(0), 4 * PAGE_SIZE, 4 * PAGE_SIZE, Mremap.MAYMOVE | Mremap.FIXED, page(100))
    found = scene.compared(before, scene.mark())
    assert sum(pages for how, vaddr, pages in found if how is How.MOVED and vaddr >= page(100)) == 4
    assert sum(pages for how, vaddr, pages in found if how is How.WENT and vaddr < page(4)) == 4
    recording, number = scene.recording(), scene.program.mm.number
    was, now = (recording.machine(moment).mms[number] for moment in (before, recording.nr_events))
    moved = [one for one in compare_pages(was, now) if one.how is How.MOVED]
    assert moved[0].came_from == page(0)


def test_mappings_come_change_and_go(scene: Scene) -> None:
    before = scene.mark()
    scene.program.mmap(2, at=page(50))
    scene.program.call(Nr.MUNMAP, page(8), 8 * PAGE_SIZE)
    middle = scene.mark()
    scene.program.call(Nr.MUNMAP, page(50), 2 * PAGE_SIZE)
    end = scene.mark()
    recording, number = scene.recording(), scene.program.mm.number
    first, second, third = (recording.machine(moment).mms[number] for moment in (before, middle, end))
    changed, came = compare_vmas(first, second)
    assert (changed.how, came.how) == (How.CHANGED, How.CAME)
    assert came.after is not None
    assert came.after.start == page(50)
    (went,) = compare_vmas(second, third)
    assert (went.how, went.before) == (How.WENT, came.after)


def test_when_a_page_got_its_frame(scene: Scene) -> None:
    scene.program.touch(3, 1, Access.READ)
    scene.program.store(page(3), b"x")
    scene.program.call(Nr.MADVISE, page(0), 16 * PAGE_SIZE, Madv.DONTNEED)
    scene.mark()
    changes = list(entry_changes(scene.recording(), scene.program.mm.number, page(3), page(4)))
    zero_page, copied, gone = changes
    assert (zero_page.old, zero_page.new >> 12 & 0xFF_FFFF) == (0, 1)
    assert copied.record.causes == (Cause.ACCESS, Cause.FAULT)
    assert (copied.old, copied.vaddr) == (zero_page.new, page(3))
    assert (gone.old, gone.new) == (copied.new, 0)
    assert not list(entry_changes(scene.recording(), scene.program.mm.number, page(4), page(5)))


def test_when_a_frame_changed_hands(scene: Scene) -> None:
    scene.program.touch(0, 1)
    scene.mark()
    pfn = scene.program.mm.page_table.walk.entries(page(0), page(1))[0] >> 12 & 0xFF_FFFF
    scene.program.call(Nr.MUNMAP, page(0), PAGE_SIZE)
    scene.mark()
    told = [record.event for _number, record in frame_history(scene.recording(), int(pfn))]
    assert [event for event in told if event in (MM_PAGE_ALLOC, PTE_SET, PTE_CLEAR, MM_PAGE_FREE)] == [
        MM_PAGE_ALLOC, PTE_SET, PTE_CLEAR, MM_PAGE_FREE,
    ]  # fmt: skip
