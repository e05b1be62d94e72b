"""The heap: glibc's behaviour at its thresholds, and any sequence of calls against a model and the words in memory."""

from __future__ import annotations

import errno
import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from shared.client import Process
from shared.uapi.page import PAGE_SIZE
from shared.uapi.syscalls import Nr
from tests.shared.attached import Attached
from tests.shared.fake_kerneld import FakeKerneld
from tests.shared.fake_memory import HEAP, FakeMemory

pytestmark = pytest.mark.slow

KIB = 1024


def test_the_first_chunk_grows_the_heap_by_glibcs_132_kib(attached: Attached) -> None:
    memory = FakeMemory()
    _fake, process = attached(memory)
    ptr = process.malloc(24)
    assert (ptr, memory.brk) == (HEAP + 16, HEAP + 132 * KIB)
    assert process.mem.load_u64(ptr - 8) == 32 | 1
    assert process.mem.load_u64(ptr - 8 + 32) == (132 * KIB - 32) | 1
    assert memory.written == {HEAP // PAGE_SIZE}


def test_a_chunk_touches_the_page_of_the_next_header_and_none_between(attached: Attached) -> None:
    memory = FakeMemory()
    _fake, process = attached(memory)
    process.malloc(5 * PAGE_SIZE)
    assert memory.written == {HEAP // PAGE_SIZE, HEAP // PAGE_SIZE + 5}


@pytest.mark.parametrize(("size", "chunk"), [(0, 32), (1, 32), (24, 32), (25, 48), (40, 48), (41, 64), (1000, 1008)])
def test_chunks_are_as_large_as_glibcs(attached: Attached, size: int, chunk: int) -> None:
    _fake, process = attached(FakeMemory())
    first, second = process.malloc(size), process.malloc(size)
    assert second - first == chunk
    assert process.malloc_usable_size(first) == chunk - 8


def test_128_kib_are_mapped_and_unmapped(attached: Attached) -> None:
    memory = FakeMemory()
    fake, process = attached(memory)
    small = process.malloc(128 * KIB - 1)
    assert memory.heap < small < memory.brk
    assert memory.mapped == {}
    large = process.malloc(128 * KIB)
    assert large % PAGE_SIZE == 16
    assert {start: len(content) for start, content in memory.mapped.items()} == {large - 16: 132 * KIB}
    assert process.mem.load_u64(large - 8) == 132 * KIB | 2
    process.free(large)
    assert memory.mapped == {}
    assert fake.requests[-1].nr == Nr.MUNMAP


def test_the_top_is_trimmed_to_the_pad(attached: Attached) -> None:
    memory = FakeMemory()
    _fake, process = attached(memory)
    blocks = [process.malloc(100 * KIB) for _block in range(4)]
    grown = memory.brk
    for ptr in blocks[:3]:
        process.free(ptr)
    assert memory.brk == grown
    process.free(blocks[3])
    assert memory.brk == HEAP + 132 * KIB
    assert process.mem.load_u64(HEAP + 8) == 132 * KIB | 1


def test_a_small_free_at_the_top_keeps_the_break(attached: Attached) -> None:
    memory = FakeMemory()
    _fake, process = attached(memory)
    ptr = process.malloc(100)
    before = memory.brk
    process.free(ptr)
    assert memory.brk == before
    assert process.malloc(100) == ptr


def test_freed_neighbours_become_one_and_the_best_fit_is_taken(attached: Attached) -> None:
    _fake, process = attached(FakeMemory())
    a, b, c, fence1, d, _fence2 = (process.malloc(size) for size in (100, 100, 100, 24, 200, 24))
    for ptr in (a, c, b, d):
        process.free(ptr)
    assert process.mem.load_u64(a - 8) == (fence1 - a) | 1
    assert process.mem.load_u64(fence1 - 16) == fence1 - a
    assert process.mem.load_u64(fence1 - 8) == 32
    assert process.malloc(200) == d
    assert process.malloc(300) == a
    assert process.mem.load_u64(fence1 - 8) == 32 | 1


def test_invalid_and_double_frees_are_named_as_glibc_does(attached: Attached) -> None:
    _fake, process = attached(FakeMemory())
    a, b, _fence, top = (process.malloc(100) for _block in range(4))
    process.free(0)
    process.free(a)
    with pytest.raises(ValueError, match=r"double free or corruption \(!prev\)"):
        process.free(a)
    process.free(b)
    with pytest.raises(ValueError, match=r"double free or corruption \(!prev\)"):
        process.free(b)
    process.free(top)
    with pytest.raises(ValueError, match=r"double free or corruption \(top\)"):
        process.free(top)
    for wrong in (8, _fence + 16, HEAP - 4096):
        with pytest.raises(ValueError, match=r"free\(\): invalid pointer"):
            process.free(wrong)
    with pytest.raises(ValueError, match=r"realloc\(\): invalid pointer"):
        process.realloc(a, 5)


def test_no_memory_is_enomem_and_leaves_the_heap_usable(attached: Attached) -> None:
    _fake, process = attached(FakeMemory(heap_limit=200 * KIB))
    process.malloc(60 * KIB)
    process.malloc(60 * KIB)
    for size in (100 * KIB, 1 << 63):
        with pytest.raises(OSError, match="Cannot allocate memory") as caught:
            process.malloc(size)
        assert caught.value.errno == errno.ENOMEM
    process.free(process.malloc(1000))
    with pytest.raises(ValueError, match="negative"):
        process.malloc(-1)
    with pytest.raises(ValueError, match="negative"):
        process.calloc(-1, 1)


def test_calloc_clears_used_memory_and_leaves_fresh_pages_untouched(attached: Attached) -> None:
    memory = FakeMemory()
    _fake, process = attached(memory)
    dirty = process.malloc(1000)
    process.malloc(10)
    process.mem.store(dirty, b"x" * 1000)
    process.free(dirty)
    assert process.calloc(10, 100) == dirty
    assert process.mem.load(dirty, 1000) == bytes(1000)
    memory.written.clear()
    mapped = process.calloc(1, 1 << 20)
    assert memory.written == {mapped // PAGE_SIZE}
    process.malloc(100 * KIB)
    old_end = memory.brk
    memory.written.clear()
    ptr = process.calloc(1, 120 * KIB)
    next_header = (ptr + 120 * KIB) // PAGE_SIZE
    assert next_header > old_end // PAGE_SIZE + 10
    assert {page for page in memory.written if page >= old_end // PAGE_SIZE} == {next_header}


def test_realloc_keeps_the_bytes_and_the_place_where_it_can(attached: Attached) -> None:
    _fake, process = attached(FakeMemory())
    ptr = process.realloc(0, 100)
    process.mem.store(ptr, bytes(range(100)))
    assert process.realloc(ptr, 5000) == ptr
    after = process.malloc(10)
    assert process.realloc(ptr, 50) == ptr
    assert process.malloc(1000) == ptr + 64
    moved = process.realloc(ptr, 9000)
    assert moved > after
    assert process.mem.load(moved, 50) == bytes(range(50))
    assert process.realloc(moved, 0) == 0
    with pytest.raises(ValueError, match="invalid pointer"):
        process.realloc(moved, 1)


@pytest.mark.parametrize("mremaps", [True, False])
def test_realloc_of_a_mapped_block_works_with_and_without_mremap(attached: Attached, mremaps: bool) -> None:
    memory = FakeMemory(mremaps=mremaps)
    _fake, process = attached(memory)
    ptr = process.malloc(200 * KIB)
    process.mem.store(ptr, b"begin")
    process.mem.store(ptr + 200 * KIB - 3, b"end")
    grown = process.realloc(ptr, 900 * KIB)
    assert process.mem.load(grown, 5) == b"begin"
    assert process.mem.load(grown + 200 * KIB - 3, 3) == b"end"
    assert len(memory.mapped) == 1
    shrunk = process.realloc(grown, 300 * KIB)
    assert process.mem.load(shrunk, 5) == b"begin"
    process.free(shrunk)
    assert memory.mapped == {}


def test_somebody_elses_sbrk_is_left_alone(attached: Attached) -> None:
    memory = FakeMemory()
    _fake, process = attached(memory)
    first = process.malloc(100)
    theirs = process.sbrk(100)
    process.mem.store(theirs, b"t" * 100)
    blocks = [process.malloc(60 * KIB) for _block in range(4)]
    assert all(not ptr - 16 < theirs + 100 < ptr + 60 * KIB for ptr in blocks)
    for ptr in (first, *blocks):
        process.free(ptr)
    assert process.mem.load(theirs, 100) == b"t" * 100
    assert process.malloc(120 * KIB) == first


def test_a_heap_need_not_start_at_a_page(attached: Attached) -> None:
    memory = FakeMemory(heap=HEAP + 0x123)
    _fake, process = attached(memory)
    assert process.malloc(1) == HEAP + 0x130 + 16
    assert memory.brk % PAGE_SIZE == 0


class Heap(RuleBasedStateMachine):
    """Blocks keep their bytes, and the words in memory describe the heap from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.memory = FakeMemory(heap_limit=2 << 20)
        self.serving = FakeKerneld(Path(self.directory.name) / "s", self.memory).in_thread()
        self.process = Process.attach(self.serving.__enter__().path)
        self.blocks: dict[int, bytes] = {}
        self.count = 0

    def teardown(self) -> None:
        self.process.close()
        self.serving.__exit__(None, None, None)
        self.directory.cleanup()

    def _fill(self, ptr: int, size: int) -> None:
        self.count += 1
        content = bytes([self.count & 0xFF]) * size
        self.process.mem.store(ptr, content)
        self.blocks[ptr] = content

    @rule(size=st.one_of(st.integers(0, 300), st.integers(0, 150 * KIB)), clear=st.booleans())
    def allocate(self, size: int, clear: bool) -> None:
        try:
            ptr = self.process.calloc(1, size) if clear else self.process.malloc(size)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return
        assert ptr % 16 == 0
        assert ptr not in self.blocks
        if clear:
            assert self.process.mem.load(ptr, size) == bytes(size)
        self._fill(ptr, size)

    @rule(which=st.integers(0))
    def release(self, which: int) -> None:
        if self.blocks:
            ptr = sorted(self.blocks)[which % len(self.blocks)]
            assert self.process.mem.load(ptr, len(self.blocks[ptr])) == self.blocks.pop(ptr)
            self.process.free(ptr)

    @rule(which=st.integers(0), size=st.one_of(st.integers(1, 300), st.integers(1, 150 * KIB)))
    def resize(self, which: int, size: int) -> None:
        if not self.blocks:
            return
        ptr = sorted(self.blocks)[which % len(self.blocks)]
        try:
            moved = self.process.realloc(ptr, size)
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return
        kept = self.blocks.pop(ptr)[:size]
        assert self.process.mem.load(moved, len(kept)) == kept
        self._fill(moved, size)

    @rule(size=st.integers(1, 200))
    def move_the_break(self, size: int) -> None:
        self.process.sbrk(size)

    @invariant()
    def every_block_has_its_bytes(self) -> None:
        for ptr, content in self.blocks.items():
            assert self.process.mem.load(ptr, len(content)) == content

    @invariant()
    def the_words_in_memory_walk_the_heap(self) -> None:
        used = {ptr - 16 for ptr in self.blocks if ptr < self.memory.brk}
        book = self.process._malloc
        assert set(book._used) == used
        for chunk, size in book._used.items():
            word = self.process.mem.load_u64(chunk + 8)
            assert word & ~7 == size
            assert word & 1 == (chunk not in book._free_by_end)
        for size, chunk in book._free:
            assert self.process.mem.load_u64(chunk + 8) == size | 1
            assert self.process.mem.load_u64(chunk + size) == size
            assert chunk + size != book._top
            assert chunk + size not in book._free_sizes
        if book._top:
            assert self.process.mem.load_u64(book._top + 8) == book._top_bytes | 1
        pieces = sorted([*book._used.items(), *book._free_sizes.items(), (book._top, book._top_bytes)])
        assert all(start + size <= after for (start, size), (after, _) in itertools.pairwise(pieces))


TestHeap = Heap.TestCase
TestHeap.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
