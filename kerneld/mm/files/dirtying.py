"""Pages of a file that become dirty through page-table entries.

The page of a file on a disk is dirty as soon as an entry may write to it. Nothing writes a file in memory back, so its
page is dirty only when a dirty entry goes. But its real file needs the page, and is told of it at the first write.
Answers to Linux v6.8 mm/memory.c:fault_dirty_shared_page(), zap_pte_range() and mm/mmap.c:vma_wants_writenotify().
"""

from __future__ import annotations

import errno

from kerneld.errors import SysError
from kerneld.mm.files.filemap import AddressSpace
from shared.uapi.page import Pfn


def do_page_mkwrite(mapping: AddressSpace, index: int) -> None:
    """Let the file system prepare for the first write to a page: a hole gets blocks.

    Raises SysError(ENOSPC), or EDQUOT: the fault is SIGBUS. Differs from Linux: a page of a tmpfs gets its place here,
    and not when it is first read (mm/shmem.c:shmem_fault()). Source: Linux v6.8 mm/memory.c:do_page_mkwrite(),
    fs/ext4/inode.c:ext4_page_mkwrite().
    """
    if mapping.backing is not None:
        try:
            mapping.backing.fill_hole(index)
        except OSError as error:
            raise SysError(error.errno or errno.ENOSPC) from None


def note_write(mapping: AddressSpace, index: int) -> None:
    """Note that an entry, which is dirty, may write to a page of a file in memory from now on. Linux takes no fault."""
    mapping.unsaved.add(index)
    mapping.tell_dirtying(index)


def keep_dirty(mapping: AddressSpace, index: int, pfn: Pfn) -> None:
    """Mark a cached page as dirty: a dirty entry of it goes. What the real file lacks was noted by `note_write`."""
    if mapping.is_shmem:
        mapping.set_dirty(index, pfn)
    else:
        mapping.mark_dirty(index, pfn)
