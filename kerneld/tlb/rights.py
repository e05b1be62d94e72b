"""The rights that a TLB entry may grant for a page-table entry: pure functions on words.

A TLB word is a frame's physical address, with the PROT_ bits of its mapping in the low bits; 0 is no mapping. Reading
needs P, U and A. Writing needs RW and D too, so that the first write faults and sets D, as a real processor's walk
does.
NX forbids execution. Bits 4 to 7 have the entry's protection key: the real processor then asks PKRU itself.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from kerneld.hw.distinct import distinct
from kerneld.hw.paging import (
    PTE_ACCESSED,
    PTE_DIRTY,
    PTE_NX,
    PTE_PFN_MASK,
    PTE_PKEY_SHIFT,
    PTE_PRESENT,
    PTE_RW,
    PTE_USER,
)
from kerneld.hw.scalars import u64
from shared.uapi.page import PAGE_SHIFT

READ, WRITE, EXEC = 1, 2, 4
"""PROT_READ, PROT_WRITE, PROT_EXEC."""
RIGHTS = READ | WRITE | EXEC
KEY_SHIFT = 4
"""The position of the protection key in a TLB word."""
KEY_MASK = 15 << KEY_SHIFT
PAGE_BITS = RIGHTS | KEY_MASK
"""All of a TLB word but the address."""
_KEY_DOWN = PTE_PKEY_SHIFT - KEY_SHIFT
_READABLE = PTE_PRESENT | PTE_USER | PTE_ACCESSED
_WRITABLE = PTE_RW | PTE_DIRTY
TlbWords = npt.NDArray[np.uint64]


_bits_of: dict[int, int] = {}
"""By the bits of an entry without its frame, the bits of its TLB word. There are few: each costs ten operations on
numbers of 64 bits, which Python makes one digit at a time."""


def tlb_word(entry: int) -> int:
    """Return the TLB word with all rights that a TLB may grant for an entry of 4 KiB."""
    address = entry & PTE_PFN_MASK
    bits = _bits_of.get(entry ^ address)
    if bits is None:
        bits = _bits_of[entry ^ address] = _page_bits(entry)
    return address | bits if bits else 0


def _page_bits(entry: int) -> int:
    """Return the bits of an entry's TLB word below the address; 0 if nothing may be granted."""
    if entry & _READABLE != _READABLE:
        return 0
    bits = entry >> _KEY_DOWN & KEY_MASK | READ
    if entry & _WRITABLE == _WRITABLE:
        bits |= WRITE
    return bits if entry & PTE_NX else bits | EXEC


def tlb_words(entries: TlbWords) -> TlbWords:
    """Return `tlb_word` of each entry."""
    words = (entries & u64(PTE_PFN_MASK)) | u64(READ)
    words |= entries >> u64(_KEY_DOWN) & u64(KEY_MASK)
    words |= ((entries & u64(_WRITABLE)) == u64(_WRITABLE)).astype(np.uint64) << u64(1)
    words |= ((entries & u64(PTE_NX)) == u64(0)).astype(np.uint64) << u64(2)
    readable = (entries & u64(_READABLE)) == u64(_READABLE)
    return np.where(readable, words, u64(0))


def exceeds(granted: TlbWords, allowed: TlbWords) -> npt.NDArray[np.bool_]:
    """Return for each granted word whether it grants more than its entry allows now, another frame or by another
    key."""
    other = granted & u64(~RIGHTS) != allowed & u64(~RIGHTS)
    more = granted & ~allowed & u64(RIGHTS) != u64(0)
    return cast("npt.NDArray[np.bool_]", (granted != u64(0)) & (other | more))


def frames_of(words: TlbWords) -> npt.NDArray[np.int64]:
    """Return the frames of some TLB words, in rising order and each once."""
    return distinct(words >> u64(PAGE_SHIFT)).astype(np.int64)


def word_exceeds(word: int, allowed: int) -> bool:
    """Do the same as `exceeds` for one word that is not 0."""
    return bool((word ^ allowed) & ~RIGHTS or word & ~allowed & RIGHTS)
