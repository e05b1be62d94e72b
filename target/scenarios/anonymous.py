"""Anonymous memory: demand paging, the shared zero page, a hole in the middle of a mapping."""

from __future__ import annotations

from shared.uapi.page import PAGE_SIZE
from target.scenario import Beats, Note, Scenario, Step
from target.stage import Stage

_PAGES = 8


def _play_demand(stage: Stage) -> Beats:
    page, mem = stage.window.page, stage.process.mem
    yield Step(
        f"mmap: {_PAGES} pages at {page(0):#x}, readable and writable, private and anonymous. "
        f"The entries {page(0):#x} to {page(_PAGES - 1):#x} become ALLOCATED and ANONYMOUS. None gets a frame: "
        "mmap only notes the range down, memory comes when it is needed (demand paging)."
    )
    stage.map_in_window(0, _PAGES)
    yield Note(f"The first pages: {stage.frames(page(0), 3)}")

    yield Step(
        f"The first write: one byte at {page(0):#x}. It faults, and the kernel gives that page a frame of zeros: the "
        "one entry becomes MAPPED and has a pfn. Its neighbours stay as they are."
    )
    mem.store_u8(page(0), 1)
    yield Note(f"Now: {stage.frames(page(0), 2)}")

    yield Step(
        f"The first read of two other pages: {page(2):#x} and {page(3):#x}. A page never written holds zeros, and all "
        "such pages can share one frame: both entries become MAPPED with the same pfn, the shared zero page's."
    )
    zeros = mem.load_u64(page(2)), mem.load_u64(page(3))
    yield Note(f"Read {zeros[0]} and {zeros[1]}. Now: {stage.frames(page(2), 2)}")

    yield Step(
        f"A write to {page(2):#x}, which has the zero page. Nobody may write to that one: the page gets a frame of "
        f"its own, the pfn of this entry changes (copy-on-write), the one of {page(3):#x} does not."
    )
    mem.store_u8(page(2), 1)
    yield Note(f"Now: {stage.frames(page(2), 2)}")

    yield Step(
        f"munmap of all {_PAGES} pages: their entries lose flags and pfn, the frames go back to the kernel (the zero "
        "page stays, it belongs to nobody)."
    )
    stage.process.munmap(page(0), _PAGES * PAGE_SIZE)


def _maps_lines(stage: Stage) -> str:
    """Return a note of the VMAs in the window."""
    return "\n".join(["/proc/self/maps has in the window:", *(f"  {line}" for line in stage.window_lines())])


def _play_hole(stage: Stage) -> Beats:
    page, process = stage.window.page, stage.process
    yield Step(
        f"mmap {_PAGES} pages at {page(0):#x} and write to each: {_PAGES} entries ALLOCATED, ANONYMOUS and MAPPED, "
        "each with a frame of its own."
    )
    stage.map_in_window(0, _PAGES)
    for index in range(_PAGES):
        process.mem.store_u8(page(index), index)
    yield Note(_maps_lines(stage))

    yield Step(
        f"munmap in the middle: [{page(3):#x}, {page(5):#x}). The kernel splits the one VMA in two and frees two "
        "frames: these two entries go to nothing, the others keep their pfn."
    )
    process.munmap(page(3), 2 * PAGE_SIZE)
    yield Note(_maps_lines(stage))

    yield Step(
        "mmap of the hole again. The new range fits both its neighbours, so that the three merge into one VMA; the "
        f"entries of {page(3):#x} and {page(4):#x} are ALLOCATED and ANONYMOUS, without a frame."
    )
    stage.map_in_window(3, 2)
    yield Note(_maps_lines(stage))


DEMAND = Scenario(
    "demand",
    "Demand paging",
    "Memory that is allocated has no frame yet: a frame comes with the first access, and a page that is only read "
    "shares one.",
    _play_demand,
)
HOLE = Scenario(
    "hole",
    "A hole in the middle",
    "What is allocated (VMAs) and what is mapped (page-table entries) are two records: munmap changes both.",
    _play_hole,
)
