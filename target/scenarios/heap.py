"""The heap: malloc and free by moving the program break, and a malloc so large that it is an mmap."""

from __future__ import annotations

from shared.uapi.page import PAGE_MASK, PAGE_SIZE, page_align
from target.proc_maps import find_mapping, read_maps
from target.scenario import Beats, Note, Scenario, Step, Watch
from target.stage import Stage

_WATCHED_PAGES = 96
_SMALL_BYTES = 1000
_MEDIUM_BYTES = 100 << 10
_LARGE_BYTES = 1 << 20


def _play_heap(stage: Stage) -> Beats:
    process = stage.process
    heap = find_mapping(read_maps(process), "[heap]")
    start = heap.start if heap else page_align(process.sbrk(0))
    yield Watch(process.pid, start, start + _WATCHED_PAGES * PAGE_SIZE, "the heap: it begins here and grows up")

    yield Step(
        f"malloc({_SMALL_BYTES}). The program break stands at {process.sbrk(0):#x}. Where the heap has no room, malloc "
        "asks the kernel for more with brk, for many pages at once: their entries become ALLOCATED and ANONYMOUS, and "
        "the page that is written first gets a frame."
    )
    small = process.malloc(_SMALL_BYTES)
    process.mem.store_u64(small, 1)
    yield Note(f"malloc returned {small:#x}. {_break_words(stage)}")

    yield Step(
        f"malloc({_MEDIUM_BYTES}) twice, and writes to all of both blocks: under 128 KiB, still from the heap. The "
        "heap grows again where it has to; the pages of the blocks become MAPPED, each at its first write."
    )
    blocks = [process.malloc(_MEDIUM_BYTES) for _ in range(2)]
    for block in blocks:
        process.mem[block : block + _MEDIUM_BYTES] = b"m" * _MEDIUM_BYTES
    yield Note(f"malloc returned {blocks[0]:#x} and {blocks[1]:#x}. {_break_words(stage)}")

    yield Step(
        f"free({small:#x}): the block goes back to malloc's list, not to the kernel. Nothing changes in the table: a "
        "heap shrinks from its top alone, and there are blocks in use above."
    )
    process.free(small)
    yield Note(_break_words(stage))

    yield Step(
        f"free({blocks[1]:#x}) and free({blocks[0]:#x}): now the top of the heap is free. malloc trims it: brk moves "
        "the break down, and the entries above it lose flags and pfn. Some is kept for the next malloc."
    )
    for block in reversed(blocks):
        process.free(block)
    yield Note(_break_words(stage))


def _break_words(stage: Stage) -> str:
    return f"The break stands at {stage.process.sbrk(0):#x}."


def _play_large(stage: Stage) -> Beats:
    process = stage.process
    before = process.sbrk(0)
    yield Step(
        f"malloc({_LARGE_BYTES}): 128 KiB and more do not come from the heap. malloc calls mmap, the kernel picks the "
        "place, top down. Where that is we know when it returns."
    )
    block = process.malloc(_LARGE_BYTES)
    start, end = block & PAGE_MASK, page_align(block + _LARGE_BYTES)
    yield Note(f"malloc returned {block:#x}; the break stands where it stood: {before:#x}.")
    yield Watch(process.pid, start, end, "the large block")

    middle = (start + (end - start) // 2) & PAGE_MASK
    yield Step(
        f"Writes to four pages in its middle, from {middle:#x}: {(end - start) // PAGE_SIZE} entries are ALLOCATED "
        "and ANONYMOUS, these four become MAPPED."
    )
    process.mem[middle : middle + 4 * PAGE_SIZE] = b"l" * (4 * PAGE_SIZE)
    yield Note(f"Now: {stage.frames(middle, 4)}")

    yield Step(f"free({block:#x}): malloc calls munmap. The whole range goes at once: no entry is ALLOCATED any more.")
    process.free(block)


HEAP = Scenario(
    "heap",
    "malloc and free on the heap",
    "malloc is no system call: it hands out pieces of a heap, and moves the program break when the heap is too small "
    "or too big.",
    _play_heap,
    in_window=False,
)
LARGE = Scenario(
    "large",
    "A large malloc",
    "From 128 KiB on (M_MMAP_THRESHOLD) a block is a mapping of its own, and free gives it back to the kernel at once.",
    _play_large,
    in_window=False,
)
