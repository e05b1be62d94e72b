"""Physical memory: views of the same bytes, frames that nobody wrote, and a file that nobody else can change."""

from __future__ import annotations

import errno
import mmap
import os
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


def test_filling_consecutive_frames_with_pages_that_begin_with_data(ram: Ram) -> None:
    data = b"".join(bytes([number]) * PAGE_SIZE for number in range(1, 5))
    ram.fill_pages(np.array([4, 5, 6, 7], dtype=np.int64), data, [0, 1, 2, 3])
    assert bytes(ram.read(4 << PAGE_SHIFT, 4 * PAGE_SIZE)) == data
    assert np.flatnonzero(ram.written).tolist() == [4, 5, 6, 7]


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
