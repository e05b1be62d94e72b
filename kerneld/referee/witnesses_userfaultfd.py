"""The witnesses of the known differences of userfaultfd."""

from __future__ import annotations

import errno

from kerneld.referee.program import At, Base, Op
from kerneld.referee.witness import Stage
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE

_AT = At(Base.ZERO, 0x7FFF_C000_0000)
_MEMORY_FILE = 0


def prepares_what_is_not_watched(stage: Stage) -> bool:
    """UFFDIO_COPY to a page of a file that is mapped privately, and not watched, fails; then a fork copies entries.

    Only a mapping with an anon_vma has its entries copied.
    """
    played = stage.play(
        Op(0, "mmap", (_AT, PAGE_SIZE, Prot.READ.value, (Map.PRIVATE | Map.FIXED).value, 0), file=_MEMORY_FILE),
        Op(0, "load", (_AT, 1)),
        Op(0, "uffdio_copy", (_AT, PAGE_SIZE, _AT, 0)),
        Op(0, "fork", (1,)),
    )
    return bool(played[-1].views[1].pages)


def keeps_what_is_soft_dirty(stage: Stage) -> bool:
    """A page that is not soft-dirty, before one that is, and watched, is watched too: both are one mapping then.

    The second page is mapped without the right to write until it is watched, or it would join the first at once.
    """
    second = At(_AT.base, _AT.offset + PAGE_SIZE)
    anon, rights = (Map.PRIVATE | Map.ANONYMOUS | Map.FIXED).value, (Prot.READ | Prot.WRITE).value
    played = stage.play(
        Op(0, "mmap", (_AT, PAGE_SIZE, rights, anon, 0)),
        Op(0, "clear_refs", (0,), data=b"4"),
        Op(0, "mmap", (second, PAGE_SIZE, Prot.READ.value, anon, 0)),
        Op(0, "uffdio_register", (second, PAGE_SIZE, 1)),
        Op(0, "mprotect", (second, PAGE_SIZE, rights)),
        Op(0, "uffdio_register", (_AT, PAGE_SIZE, 1)),
    )
    watched = [mapping.flags for mapping in played.view.mappings if "um" in mapping.flags]
    return not played.rets[-1] and len(watched) == 1 and "sd" in watched[0]


def copies_from_anywhere(stage: Stage) -> bool:
    """UFFDIO_COPY from an address that is not the user's to one where nothing is mapped: ENOENT, or EINVAL."""
    (played,) = stage.play(Op(0, "uffdio_copy", (_AT, PAGE_SIZE, At(Base.ZERO, 1 << 60), 0)))
    return played.outcome.ret == -errno.ENOENT


def takes_the_lowest_addresses(stage: Stage) -> bool:
    """UFFDIO_ZEROPAGE at address 0, where nothing is mapped: ENOENT, or EINVAL for the range."""
    (played,) = stage.play(Op(0, "uffdio_zeropage", (At(Base.ZERO, 0), PAGE_SIZE, 0)))
    return played.outcome.ret == -errno.ENOENT
