"""The registers of the one processor that memory management asks for: PKRU, and whether there is one.

Owns their values; knows no thread. Who switches threads saves and loads them (`kerneld.task.sched`). Answers to the
Intel SDM, volume 3, 2.7 and 4.6.2, and Linux v6.8 arch/x86/include/asm/pkru.h.
"""

from __future__ import annotations

PKRU_AD, PKRU_WD = 0x1, 0x2
"""A key's two bits in PKRU: no access to data, and no write (Linux: PKRU_AD_BIT, PKRU_WD_BIT)."""
PKRU_BITS_PER_PKEY = 2
NR_PKEYS = 16
INIT_PKRU = sum(PKRU_AD << PKRU_BITS_PER_PKEY * key for key in range(1, NR_PKEYS))
"""What a program starts with, 0x55555554: key 0 may be used, the others not (Linux: init_pkru_value)."""
_U32 = (1 << 32) - 1


class Processor:
    """The registers, as they are for whoever runs."""

    __slots__ = ("init_pkru", "ospke", "pkru")

    def __init__(self, *, ospke: bool = True) -> None:
        """`ospke`: it has protection keys, and they are switched on (CR4.PKE)."""
        self.ospke = ospke
        self.init_pkru = INIT_PKRU if ospke else 0
        """What PKRU is set to for a new program and for a signal's handler; without keys it is 0 for ever."""
        self.pkru = self.init_pkru

    def set_pkru_bits(self, key: int, bits: int) -> None:
        """Give a key these PKRU_ bits; the others' stay."""
        shift = PKRU_BITS_PER_PKEY * key
        self.wrpkru(self.pkru & ~((PKRU_AD | PKRU_WD) << shift) | bits << shift)

    def wrpkru(self, value: int) -> None:
        """Set PKRU: the lower 32 bits of `value`."""
        self.pkru = value & _U32


def pkru_allows(pkru: int, key: int, write: bool) -> bool:
    """Tell whether PKRU lets data with this key be read, or written.

    Source: Linux v6.8 arch/x86/include/asm/pkru.h:__pkru_allows_read(), __pkru_allows_write().
    """
    return not pkru >> PKRU_BITS_PER_PKEY * key & (PKRU_AD | PKRU_WD if write else PKRU_AD)
