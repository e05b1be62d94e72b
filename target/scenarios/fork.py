"""fork: two processes with the same frames, until one of them writes."""

from __future__ import annotations

from target.child import Child, describe_wait_status
from target.scenario import Beats, Note, Scenario, Step, Watch
from target.stage import Stage

_PAGES = 4


def _play(stage: Stage) -> Beats:
    page, process = stage.window.page, stage.process

    def child_frames() -> str:
        return stage.frames(page(0), _PAGES)

    def child_write() -> str:
        stage.store(page(0), "child")
        return child_frames()

    yield Step(
        f"mmap {_PAGES} pages at {page(0):#x} and write to each: {_PAGES} entries MAPPED, each with a frame of its own."
    )
    stage.map_and_write(_PAGES, "parent")
    yield Note(f"Now: {stage.frames(page(0), _PAGES)}")

    yield Step(
        "fork: a child with a copy of this memory. Copied are the VMAs and the entries, not the frames: parent and "
        "child have the same pfns, and neither may write to them. In this process's table nothing moves."
    )
    with Child(process, {"frames": child_frames, "write": child_write}) as child:
        yield Note(f"The child is process {child.pid}. Parent: {stage.frames(page(0), _PAGES)}")
        yield Note(f"Child: {child.order('frames')}")
        window = stage.window
        yield Watch(child.pid, window.start, window.end, "the child's copy of the window", also=process.pid)

        yield Step(
            f"The child writes to {page(0):#x}. It may not write to a frame that it shares: it gets a copy "
            "(copy-on-write). The child's entry has a new pfn, the parent's keeps the old one."
        )
        after = child.order("write")
        yield Note(f"Child: {after}")
        read = stage.process.mem[page(0) : page(0) + 6].decode()
        yield Note(f'Parent: {stage.frames(page(0), _PAGES)}. The parent still reads "{read}".')
        yield from _parent_writes(stage)

        yield Step(
            "The child exits: its frames are freed, those that it shared belong to the parent alone. Here nothing "
            "moves."
        )
        yield Note(describe_wait_status(child.pid, child.wait()))


def _parent_writes(stage: Stage) -> Beats:
    page = stage.window.page
    yield Step(
        f"The parent writes to {page(0):#x}. Its frame has no other user any more: the kernel lets it write "
        "without a copy. The pfn stays."
    )
    stage.store(page(0), "parent")
    yield Note(f"Parent: {stage.frames(page(0), _PAGES)}")

    yield Step(
        f"The parent writes to {page(1):#x}, which the child still shares. Now the parent gets the copy: this "
        "entry's pfn changes in its table."
    )
    stage.store(page(1), "parent")
    yield Note(f"Parent: {stage.frames(page(0), _PAGES)}")


FORK = Scenario(
    "fork",
    "fork and copy-on-write",
    "fork copies no memory: parent and child share all frames, and a page is copied by whoever writes to it first.",
    _play,
)
