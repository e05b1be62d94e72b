"""The stack: a VMA that grows down by itself when the page below it is touched."""

from __future__ import annotations

from shared.uapi.page import PAGE_SIZE
from target.proc_maps import Mapping, find_mapping, read_maps
from target.scenario import Beats, Note, Scenario, Step, Watch
from target.stage import Stage

_WATCHED_BELOW_PAGES = 16
_WATCHED_ABOVE_PAGES = 8
_JUMP_PAGES = 8


def _get_stack(stage: Stage) -> Mapping:
    """Return the mapping `[stack]`. Raises LookupError where the process has none."""
    stack = find_mapping(read_maps(stage.process), "[stack]")
    if stack is None:
        raise LookupError("the process has no [stack]")
    return stack


def _play(stage: Stage) -> Beats:
    process = stage.process
    first = _get_stack(stage)
    below = first.start - PAGE_SIZE
    far = first.start - _JUMP_PAGES * PAGE_SIZE
    watch_end = min(first.end, first.start + _WATCHED_ABOVE_PAGES * PAGE_SIZE)
    yield Watch(process.pid, first.start - _WATCHED_BELOW_PAGES * PAGE_SIZE, watch_end, "the stack's lower end")

    yield Step(
        f"A write at {below:#x}, in the page just below [stack], which starts at {first.start:#x}. Nothing is "
        "allocated there, but the stack is a VMA that may grow down: the kernel moves its start. That one entry "
        "becomes ALLOCATED, ANONYMOUS and MAPPED at once."
    )
    process.mem.store_u64(below, 1)
    yield Note(f"[stack] starts at {_get_stack(stage).start:#x} now: {stage.frames(below, 1)}")

    yield Step(
        f"A write {_JUMP_PAGES} pages below the old start, at {far:#x}, as a function with large local variables "
        "does. The stack grows over all the pages between: their entries become ALLOCATED and ANONYMOUS, only the "
        "written one is MAPPED."
    )
    process.mem.store_u64(far, 1)
    yield Note(f"[stack] starts at {_get_stack(stage).start:#x} now: {stage.frames(far, 2)}")

    yield Step(
        f"munmap of [{far:#x}, {first.start:#x}): what the stack has grown is given back, which a real program hardly "
        "ever does. These entries go to nothing; the stack could grow into them again."
    )
    process.munmap(far, first.start - far)
    yield Note(f"[stack] starts at {_get_stack(stage).start:#x} now.")


STACK = Scenario(
    "stack",
    "Stack growth",
    "The stack is the one mapping that grows without a system call: a fault just below it is taken as a wish for more.",
    _play,
    in_window=False,
)
