"""Protection keys in later kernels, and in stable kernels with later changes: rules made from kerneld's own."""

from __future__ import annotations

import errno
from collections.abc import Callable

from kerneld.errors import SysError
from kerneld.mm.files.file import File
from kerneld.mm.space import pkeys
from kerneld.mm.space.mm import MmStruct
from shared.uapi.mman import Prot
from shared.uapi.page import PAGE_SHIFT, Vaddr, page_align

PkeyAlloc = Callable[[MmStruct, int, int], int]


def takes_a_key_before_a_place(earlier: Callable[..., Vaddr]) -> Callable[..., Vaddr]:
    """The key of execute-only memory is allocated before the search for an address, which may then fail.

    Source: Linux v6.10 mm/mmap.c:do_mmap().
    """

    def do_mmap(
        mm: MmStruct,
        addr: Vaddr,
        length: int,
        prot: int,
        flags: int,
        file: File | None,
        pgoff: int,
        *,
        privileged: bool,
    ) -> Vaddr:
        pages = page_align(length) >> PAGE_SHIFT
        fits = 0 < pages < 1 << 52 and pgoff + pages < 1 << 64
        if prot == Prot.EXEC and fits and mm.map_count <= mm.sysctl.max_map_count:
            pkeys.execute_only_pkey(mm)
        return earlier(mm, addr, length, prot, flags, file, pgoff, privileged=privileged)

    return do_mmap


def has_no_key_to_give(earlier: PkeyAlloc) -> PkeyAlloc:
    """On a processor without keys pkey_alloc fails with ENOSPC from the first call on.

    Source: later arch/x86/include/asm/pkeys.h:mm_pkey_alloc().
    """

    def pkey_alloc(mm: MmStruct, flags: int, rights: int) -> int:
        try:
            return earlier(mm, flags, rights)
        except SysError:
            is_known = not flags and not rights & ~3
            raise SysError(errno.ENOSPC if is_known else errno.EINVAL) from None

    return pkey_alloc
