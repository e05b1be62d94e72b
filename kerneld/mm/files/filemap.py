"""The page cache: a file's pages in frames.

Owns `AddressSpace`, the cached pages of one inode. Reads and writes by a `Backing`. Knows neither descriptors nor
sockets. Answers to Linux v6.8 mm/filemap.c, mm/page-writeback.c and, for files in memory, mm/shmem.c. Files in memory
are shared anonymous memory, which has no backing, and memory files and files of a tmpfs, whose backing is the real
file.

Invariants: the cache holds one reference of each cached frame; `frames.mapping` and `frames.index` of the frame lead
back here; `dirty` is exactly the set of cached indexes whose frame has PG_DIRTY; an index is in at most one of `pages`,
`swapped` and `shadows`. The pages that the real file does not have yet are `dirty` for a file on a disk, and `unsaved`
for a file in memory: there a page stays dirty after it is written, and it may be in the swap file.

Differs from Linux: when its last mapping goes, the pages of an inode are dropped if its backing does not keep them
(`kerneld.fs.kept_files`). Writes of other programs to the mapped file are seen only in pages that are not cached yet.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kerneld.errors import SysError
from kerneld.mm.files.backing import Backing
from kerneld.mm.files.host_cache import HostCache
from kerneld.mm.files.i_mmap import IMmap
from kerneld.mm.files.index_ranges import MAX_INDEX
from kerneld.mm.files.page_indexes import IndexMap, IndexSet
from kerneld.mm.files.readahead import read_in
from kerneld.mm.files.shmem import shmem_free_swapped
from kerneld.mm.frames.frames import PG_DIRTY, Frames, Pfns
from kerneld.mm.frames.workingset import workingset_refault
from kerneld.mm.vm_flags import is_shared_maywrite
from shared.uapi.page import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Pfn

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct
    from kerneld.mm.space.vma import Vma

EVICTED_AT_ONCE = 4096
"""The number of cached pages that are dropped in one piece: this takes about a millisecond."""
FAULT_AROUND_PAGES = 16
"""The pages around a read fault that are mapped with it if they are cached (Linux: fault_around_pages, 64 KiB)."""
READ_AROUND_PAGES = 32
"""The pages that a fault of an uncached page reads in (Linux: ra_pages, 128 KiB)."""


class AddressSpace:
    """The cached pages of one inode (Linux: struct address_space)."""

    def __init__(self, frames: Frames, backing: Backing | None, size_bytes: int = 0, *, is_shmem: bool = False) -> None:
        """`backing` is None for shared anonymous memory, whose size, in bytes, is then fixed.

        `is_shmem`: a file with a backing is in memory, as a memory file or a file of a tmpfs.
        """
        self.frames = frames
        self.backing = backing
        self._size_bytes = size_bytes
        self.number = frames.register_mapping(self)
        self.pages = IndexMap()
        """The frame of each cached page, by index."""
        self.dirty = IndexSet()
        self.unsaved = IndexSet()
        """For a file in memory with a backing: the pages, cached or swapped, that differ from the real file."""
        self.swapped = IndexMap()
        """For a file in memory: the swap slot of each page that is swapped out; each counts once."""
        self.shadows = IndexMap()
        """The shadows of pages that reclaim has dropped: see `kerneld.mm.frames.workingset`."""
        self.accounted_pages = 0
        """The pages that a file in memory adds to `Frames.committed_as` (Linux: shmem_acct_size(),
        shmem_acct_block())."""
        self.accounts_blocks = is_shmem
        """Whether pages are charged one by one, at their first use. Shared anonymous memory without MAP_NORESERVE is
        charged as a whole."""
        self.i_mmap = IMmap()
        """The VMAs that map the inode, each with its address space (Linux: mapping->i_mmap)."""
        self.nr_holds = 0
        """The calls that need it although no VMA may map it meanwhile (Linux: get_file())."""
        self.on_evict: Callable[[], None] | None = None
        """Who is told once that nothing maps or holds the inode any more."""
        self.i_mmap_writable = 0
        """The number of shared VMAs that are writable or may become writable (Linux: mapping->i_mmap_writable)."""
        self.host = HostCache(self._lacks)
        """The pages that the host's cache is assumed to hold; all pages of a file in memory."""
        self.is_shmem = is_shmem or backing is None
        """Whether the file is in memory only: shared anonymous memory, a memory file, a file of a tmpfs (Linux:
        shmem_mapping())."""
        self._noted: list[tuple[int, list[int]]] = []
        """By `note_dirtying`: a page's index, and the list that is told."""
        self.error = 0
        """The errno of a failed write-back that no msync has reported yet (Linux: mapping->wb_err)."""

    def size_bytes(self) -> int:
        """Return the file's size in bytes (Linux: i_size_read())."""
        return self._size_bytes if self.backing is None else self.backing.size_bytes()

    def find_page(self, index: int) -> Pfn | None:
        """Return the frame of a cached page, or None."""
        return self.pages.get(index)

    def find_contents(self, index: int) -> memoryview | None:
        """Return the cached contents of a page, from a frame or from the swap file, or None. Raises OSError."""
        pfn, slot = self.pages.get(index), self.swapped.get(index)
        if pfn is not None:
            return self.frames.ram.page(pfn)
        return None if slot is None else memoryview(self.frames.swap.read_page(slot))

    def _lacks(self, first: int, count: int) -> npt.NDArray[np.bool_]:
        """Return for each of `count` pages from `first` of a file on a disk whether neither the host nor we have it.

        What reclaim has dropped here does not count: the shadows know it.
        Source: Linux v6.8 mm/mincore.c:mincore_page().
        """
        if self.backing is None or self.is_shmem:
            return np.zeros(count, dtype=np.bool_)
        lacks: npt.NDArray[np.bool_] = np.frombuffer(self.backing.mincore(first, count), dtype=np.uint8) == 0
        lacks[max(self.last_index() - first, 0) :] = False
        if lacks.any():
            for known in (self.pages, self.shadows):
                lacks[[index - first for index in known.between(first, first + count)]] = False
        return lacks

    def has_page(self, index: int) -> bool:
        """Return whether a file in memory has this page: in a frame, in the swap file, or in the host's file."""
        if index in self.pages or index in self.swapped:
            return True
        return self.backing is not None and self.backing.mincore(index, 1)[0] & 1 != 0

    def ensure_page(self, index: int) -> Pfn:
        """Return the frame of a page inside the file. The page is read in if it is not cached.

        Raises SysError(ENOMEM) without a free frame, and SysError(EIO) if the file cannot be read.
        """
        pfn = self.pages.get(index)
        if pfn is None:
            read_in(self, [index])
            pfn = self.pages[index]
        return pfn

    def must_read(self, index: int) -> bool:
        """Return whether a page was reclaimed. A fault of such a page has to wait for it: a major fault."""
        return index in self.shadows or (index in self.swapped and not self.frames.swap.cache_at[self.swapped[index]])

    def add_page(self, index: int, pfn: Pfn) -> None:
        """Put a frame with the contents of a page that is not cached into the cache, which takes the reference.

        Source: Linux v6.8 mm/filemap.c:filemap_add_folio().
        """
        frames = self.frames
        frames.mapping_at[pfn] = self.number
        frames.index_at[pfn] = index
        self.pages[index] = pfn
        self.frames.nr_shmem += self.is_shmem
        if self.shadows:
            self._take_shadow(index, pfn)

    def _take_shadow(self, index: int, pfn: Pfn) -> None:
        """Note that a page comes back which reclaim had dropped, if it is one."""
        if index in self.shadows:
            workingset_refault(self.frames, pfn, self.shadows.pop(index), is_file=True)

    def add_pages(self, indexes: list[int], pfns: Pfns) -> None:
        """Do the same as `add_page` for several pages."""
        self.frames.mapping[pfns] = self.number
        self.frames.index[pfns] = indexes
        numbers = pfns.tolist()
        self.pages.update(indexes, numbers)
        self.frames.nr_shmem += self.is_shmem * len(numbers)
        if self.shadows:
            for index, pfn in zip(indexes, numbers, strict=True):
                self._take_shadow(index, pfn)

    def account(self, pages: int) -> None:
        """Charge more pages of a file in memory. The caller checks the limit of promised memory."""
        self.accounted_pages += pages
        self.frames.committed_as += pages

    def drop_pages(self, indexes: list[int]) -> None:
        """Drop cached pages that nothing maps, dirty or not (Linux: delete_from_page_cache_batch())."""
        self._forget(indexes, [self.pages.pop(index) for index in indexes])

    def _forget(self, indexes: list[int], pfns: list[Pfn]) -> None:
        """Pages are not in the cache any more."""
        self.frames.nr_shmem -= self.is_shmem * len(pfns)
        self.frames.put_pages(np.array(pfns, dtype=np.int64))
        self.dirty.difference_update(indexes)
        self.unsaved.difference_update(indexes)
        self.host.forget_reclaim(indexes)
        if self.accounts_blocks:
            self.account(-len(indexes))

    def forget_shadows(self, indexes: list[int]) -> None:
        """Forget that reclaim has dropped these pages."""
        for index in indexes:
            del self.shadows[index]

    def zero_page_from(self, pfn: Pfn, offset: int) -> None:
        """Clear a cached frame's bytes from `offset` on (Linux: folio_zero_segment())."""
        self.frames.ram.write((pfn << PAGE_SHIFT) + offset, bytes(PAGE_SIZE - offset))

    def mark_dirty(self, index: int, pfn: Pfn) -> None:
        """Note that a cached page differs from the file (Linux: folio_mark_dirty())."""
        self.set_dirty(index, pfn)
        self.host.clear_reclaim(index)
        self.mark_unsaved(index)

    def mark_unsaved(self, index: int) -> None:
        """Note that the file does not have a cached page as it is: the page is dirty, or as yet only an entry is."""
        if self.is_shmem and self.backing is not None:
            self.unsaved.add(index)
        if self._noted:
            self.tell_dirtying(index)

    @contextlib.contextmanager
    def note_dirtying(self, index: int) -> Iterator[list[int]]:
        """Yield a list which is not empty any more once a page has been made dirty (again) during the with block."""
        noted = (index, list[int]())
        self._noted.append(noted)
        try:
            yield noted[1]
        finally:
            # Another's may be equal, and its list not the same.
            self._noted = [each for each in self._noted if each is not noted]

    def tell_dirtying(self, index: int) -> None:
        """Tell those who note it that a page has been made dirty."""
        for noted, dirtied in self._noted:
            if noted == index:
                dirtied.append(index)

    def set_dirty(self, index: int, pfn: Pfn) -> None:
        """Mark a cached page as dirty, so that it is not dropped. The real file may have the same contents."""
        self.frames.flags_at[pfn] |= PG_DIRTY
        self.dirty.add(index)

    def writeback(self, first: int = 0, last: int = MAX_INDEX) -> None:
        """Write the dirty pages of [first, last) to the file and mark them clean. Nothing is written beyond its end.

        A failure is kept in `error`, and the page stays clean, as in Linux. Shared anonymous memory has no file, so its
        pages stay dirty. The pages of a memory file also stay dirty, but they are written to the real file.
        Source: Linux v6.8 mm/page-writeback.c:write_cache_pages().
        """
        if self.backing is not None and self.unwritten:
            size = self.size_bytes()
            for index in self.unwritten.between(first, last):
                self.write_page(index, size)

    @property
    def unwritten(self) -> IndexSet:
        """Return the pages that the real file does not have yet."""
        return self.unsaved if self.is_shmem else self.dirty

    def write_page(self, index: int, size: int, *, stays_dirty: bool = False) -> None:
        """Write one dirty page to the file, which is `size` bytes long, as `writeback` does.

        With `stays_dirty` it counts as not written: an entry may write to it without a fault.
        """
        assert self.backing is not None
        pfn = self.pages.get(index)
        if not stays_dirty:
            self.unsaved.discard(index)
        if not stays_dirty and not self.is_shmem and pfn is not None:
            self.dirty.discard(index)
            self.host.clear_reclaim(index)
            self.frames.flags_at[pfn] &= ~PG_DIRTY
        offset = index << PAGE_SHIFT
        length = min(PAGE_SIZE, size - offset)
        if length > 0:
            self.host.write_back(index)
            try:
                data = self.find_contents(index)
                assert data is not None
                self.backing.write_at(offset, data[:length])
            except OSError as error:
                self.error = error.errno or errno.EIO

    def take_error(self) -> int:
        """Return the errno of a failed write-back since the last call, 0 for none.

        Source: Linux v6.8 mm/filemap.c:file_check_and_advance_wb_err().
        """
        error, self.error = self.error, 0
        return error

    def link_vma(self, vma: Vma, mm: MmStruct) -> None:
        """Note that a VMA maps the inode. Source: Linux v6.8 mm/mmap.c:vma_link_file()."""
        self.i_mmap[vma] = mm
        self.i_mmap.may_get_entries(vma)
        if is_shared_maywrite(vma.vm_flags):
            self.map_writable()

    def map_writable(self) -> None:
        """Count one more writable shared VMA: the file cannot be sealed against writing (Linux:

        mapping_map_writable()).

        Raises SysError(EPERM) if the file is sealed.
        """
        if not self.i_mmap_writable and self.backing is not None:
            try:
                self.backing.map_writable()
            except OSError as error:
                raise SysError(error.errno or errno.EPERM) from None
        self.i_mmap_writable += 1

    def unmap_writable(self) -> None:
        """Count one writable shared VMA less.

        After the last one the file may be sealed, so unsaved pages are written now.
        """
        self.i_mmap_writable -= 1
        if not self.i_mmap_writable and self.backing is not None:
            if self.is_shmem:
                self.writeback()
            self.backing.unmap_writable()

    def unlink_vma(self, vma: Vma) -> None:
        """Note that a VMA does not map the inode any more."""
        del self.i_mmap[vma]
        if is_shared_maywrite(vma.vm_flags):
            self.unmap_writable()
        self.evict_unused()

    def evict_unused(self) -> None:
        """If nothing maps the inode or holds its cache: write dirty pages back; drop all, or keep them for an open."""
        if not self.i_mmap and not self.nr_holds:
            self.evict()

    def evict(self) -> None:
        """Write dirty pages back and drop the cache, if its backing does not keep it: nothing maps the inode.

        Then nobody can find this object any more: a new open of the file makes another one. Many pages are dropped in
        pieces (`kerneld.mm.space.dying`). Source: Linux v6.8 fs/inode.c: iput_final(), evict().
        """
        if self.on_evict is not None:
            on_evict, self.on_evict = self.on_evict, None
            on_evict()
        self.writeback()
        if self.backing is not None and self.backing.release():
            return
        self.account(-self.accounted_pages)
        self.accounts_blocks = False
        self.shadows.clear()
        self.host.clear()
        if len(self.pages) + len(self.swapped) > EVICTED_AT_ONCE and self.frames.dying is not None:
            self.frames.dying.begin_eviction(self)
        else:
            while self.evict_some():
                pass

    def evict_some(self) -> bool:
        """Drop some pages, cached or swapped out, of a file that nobody can find. Return whether any are left."""
        self._forget(*self.pages.pop_some(EVICTED_AT_ONCE))
        shmem_free_swapped(self.frames, self, list(itertools.islice(self.swapped, EVICTED_AT_ONCE)))
        return bool(self.pages or self.swapped)

    def last_index(self) -> int:
        """Return the number of pages of the file; the last page may be partial."""
        return (self.size_bytes() + PAGE_SIZE - 1 & PAGE_MASK) >> PAGE_SHIFT
