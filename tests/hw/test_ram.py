"""Physical memory: views of the same bytes, frames that nobody wrote, and a file that nobody else can change."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import resource
from collections.abc import Iterator

import numpy as np
import pytest

from kerneld.hw.ram import WORDS_SHIFT, Ram
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE


@pytest.fixture
def ram() -> Iterator[Ram]:
    made = Ram(1 << 20)
    yield made
    made.close()


def test_all_views_show_the_same_bytes(ram: Ram) -> None:
    ram.write(5 << PAGE_SHIFT | 8, (0x1122_3344_5566_7788).to_bytes(8, "little"))
    assert ram.words[5 << WORDS_SHIFT | 1] == 0x1122_3344_5566_7788
    assert ram.words_np[5 << WORDS_SHIFT | 1] == 0x1122_3344_5566_7788
    assert ram.frames_np[5, 1] == 0x1122_3344_5566_7788
    assert bytes(ram.read(5 << PAGE_SHIFT | 8, 2)) == b"\x88\x77"
    assert bytes(ram.page(5)[8:10]) == b"\x88\x77"


def test_views_for_readers_cannot_be_written(ram: Ram) -> None:
    assert ram.page(1).readonly
    assert ram.read(0, 8).readonly


def test_a_write_is_noted_and_a_clear_forgets_it(ram: Ram) -> None:
    assert not ram.written.any()
    ram.write(7 << PAGE_SHIFT, b"x")
    assert np.flatnonzero(ram.written).tolist() == [7]
    ram.clear_page(7)
    assert not ram.written.any()
    assert bytes(ram.page(7)) == bytes(PAGE_SIZE)


@pytest.mark.parametrize("pfns", [[4, 5, 6, 7], [9, 4, 7], [4], [], [7, 6, 5, 4]])
def test_clearing_many_frames_leaves_the_others(ram: Ram, pfns: list[int]) -> None:
    for pfn in range(16):
        ram.write(pfn << PAGE_SHIFT | 100, b"data")
    ram.clear_pages(np.array(pfns, dtype=np.int64))
    assert [pfn for pfn in range(16) if not ram.page(pfn)[100]] == sorted(pfns)
    assert np.flatnonzero(~ram.written[:16]).tolist() == sorted(pfns)


@pytest.mark.parametrize("pfns", [[4, 5, 6, 7], [9, 4, 7, 12]], ids=["consecutive", "scattered"])
@pytest.mark.parametrize("zeros", [[], [1], [0, 1, 2, 3]])
@pytest.mark.parametrize("pages", [[0, 1, 2, 3], [0, 1, 4, 6]], ids=["all", "some"])
@pytest.mark.parametrize("missing", [0, 100, PAGE_SIZE, 3 * PAGE_SIZE + 1])
def test_filling_frames(ram: Ram, pfns: list[int], zeros: list[int], pages: list[int], missing: int) -> None:
    """Zero pages and what is behind the end of the data are zeros in the frames, which nobody has written then."""
    for pfn in range(16):
        ram.write(pfn << PAGE_SHIFT, b"old" * 100)
    whole = [
        bytes(PAGE_SIZE) if page in zeros else bytes(8) + bytes([page + 1]) * 4088 for page in range(pages[-1] + 1)
    ]
    whole[0] = bytes(PAGE_SIZE) if 0 in zeros else b"first" * 819 + b"!"
    data = b"".join(whole)
    data = data[: len(data) - missing]
    ram.fill_pages(np.array(pfns, dtype=np.int64), data, pages)
    for pfn, page in zip(pfns, pages, strict=True):
        expected = data[page << PAGE_SHIFT : page + 1 << PAGE_SHIFT].ljust(PAGE_SIZE, b"\0")
        assert bytes(ram.page(pfn)) == expected
        assert bool(ram.written[pfn]) == any(expected)
    others = [pfn for pfn in range(16) if pfn not in pfns]
    assert all(bytes(ram.page(pfn)[:3]) == b"old" and ram.written[pfn] for pfn in others)


@pytest.mark.parametrize(("is_shared", "before", "by_file"), [
    (True, b"", True),
    # These have memory of the host already: a store is quicker.
    (True, b"old", False),
    # The seal of a file that only its owner may write is against write(2) by anybody.
    (False, b"", False),
])  # fmt: skip
def test_filling_consecutive_frames_with_pages_that_begin_with_data(
    monkeypatch: pytest.MonkeyPatch, is_shared: bool, before: bytes, by_file: bool
) -> None:
    written: list[int] = []
    pwrite = os.pwrite

    def note(fd: int, words: memoryview, at: int) -> int:
        written.append(at)
        return pwrite(fd, words, at)

    monkeypatch.setattr(os, "pwrite", note)
    data = b"".join(bytes([number]) * PAGE_SIZE for number in range(1, 5))
    with contextlib.closing(Ram(1 << 20, is_shared=is_shared)) as ram:
        if before:
            ram.write(4 << PAGE_SHIFT, before)
        ram.fill_pages(np.array([4, 5, 6, 7], dtype=np.int64), data, [0, 1, 2, 3])
        assert bytes(ram.read(4 << PAGE_SHIFT, 4 * PAGE_SIZE)) == data
        assert np.flatnonzero(ram.written).tolist() == [4, 5, 6, 7]
    assert written == ([4 << PAGE_SHIFT] if by_file else [])


def test_frames_beyond_the_limit_of_files_are_filled_by_stores() -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    data = b"".join(bytes([number]) * PAGE_SIZE for number in range(1, 5))
    with contextlib.closing(Ram(1 << 20, is_shared=True)) as ram:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6 << PAGE_SHIFT, limits[1]))
        try:
            # The first two pages may be written to the file, and no more; then none.
            for first in (4, 8):
                pfns = np.arange(first, first + 4, dtype=np.int64)
                ram.fill_pages(pfns, data, [0, 1, 2, 3])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert bytes(ram.read(4 << PAGE_SHIFT, 8 * PAGE_SIZE)) == 2 * data


def test_clearing_frames_of_which_some_were_never_written(ram: Ram) -> None:
    ram.write(4 << PAGE_SHIFT, b"a")
    ram.write(6 << PAGE_SHIFT, b"a")
    ram.clear_pages(np.array([4, 5, 6], dtype=np.int64))
    assert not ram.frames_np[4:7].any()
    assert not ram.written.any()


def test_a_copy_takes_contents_and_note(ram: Ram) -> None:
    ram.write(3 << PAGE_SHIFT | 4000, b"there")
    ram.copy_page(8, 3)
    assert bytes(ram.page(8)) == bytes(ram.page(3))
    assert ram.written[8]
    ram.copy_page(8, 9)
    assert bytes(ram.page(8)) == bytes(PAGE_SIZE)
    assert not ram.written[8]


def test_a_descriptor_for_others_reads_and_never_writes(ram: Ram) -> None:
    ram.write(3 << PAGE_SHIFT, b"seen")
    fd = ram.open_readonly()
    try:
        assert os.pread(fd, 4, 3 << PAGE_SHIFT) == b"seen"
        with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
            os.pwrite(fd, b"x", 0)
        with pytest.raises(PermissionError):
            mmap.mmap(fd, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        with mmap.mmap(fd, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=3 << PAGE_SHIFT) as view:
            assert view[:4] == b"seen"
            ram.write(3 << PAGE_SHIFT, b"live")
            assert view[:4] == b"live"
    finally:
        os.close(fd)


def test_even_its_owner_cannot_reopen_it_for_writing_nor_resize_it(ram: Ram) -> None:
    fd = ram.open_readonly()
    try:
        try:
            writable = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
        except PermissionError:
            return
        try:
            with pytest.raises(PermissionError):
                os.pwrite(writable, b"x", 0)
            with pytest.raises(PermissionError):
                os.ftruncate(writable, 0)
            with pytest.raises(PermissionError):
                mmap.mmap(writable, PAGE_SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        finally:
            os.close(writable)
    finally:
        os.close(fd)


def test_memory_is_given_back_although_a_view_is_still_held() -> None:
    ram = Ram(1 << 20)
    fd, view = ram.open_readonly(), ram.words_np
    ram.close()
    assert len(view) == 1 << 17
    os.close(fd)
