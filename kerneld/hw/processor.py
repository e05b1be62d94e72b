"""The registers of the one processor that memory management needs: PKRU, and whether the processor has it.

Owns their values. Knows no thread: `kerneld.task.sched` saves and loads them at a switch. Answers to the
Intel SDM, volume 3, 2.7 and 4.6.2, and Linux v6.8 arch/x86/include/asm/pkru.h.
"""

from __future__ import annotations

PKRU_AD, PKRU_WD = 0x1, 0x2
"""The two bits of a key in PKRU: access disable and write disable (Linux: PKRU_AD_BIT, PKRU_WD_BIT)."""
PKRU_BITS_PER_PKEY = 2
NR_PKEYS = 16
INIT_PKRU = sum(PKRU_AD << PKRU_BITS_PER_PKEY * key for key in range(1, NR_PKEYS))
"""PKRU of a new program, 0x55555554: key 0 is open, the others are closed (Linux: init_pkru_value)."""
_U32 = (1 << 32) - 1


class Processor:
    """The registers, with the values of the running thread."""

    __slots__ = ("init_pkru", "ospke", "pkru")

    def __init__(self, *, ospke: bool = True) -> None:
        """`ospke`: the processor has protection keys, and they are enabled (CR4.PKE)."""
        self.ospke = ospke
        self.init_pkru = INIT_PKRU if ospke else 0
        """PKRU for a new program and for a signal handler; always 0 without protection keys."""
        self.pkru = self.init_pkru

    def set_pkru_bits(self, key: int, bits: int) -> None:
        """Set the PKRU_ bits of a key. The bits of the other keys stay."""
        shift = PKRU_BITS_PER_PKEY * key
        self.wrpkru(self.pkru & ~((PKRU_AD | PKRU_WD) << shift) | bits << shift)

    def wrpkru(self, value: int) -> None:
        """Set PKRU: the lower 32 bits of `value`."""
        self.pkru = value & _U32


def pkru_allows(pkru: int, key: int, write: bool) -> bool:
    """Return whether PKRU allows reading, or writing, of data with this key.

    Source: Linux v6.8 arch/x86/include/asm/pkru.h:__pkru_allows_read(), __pkru_allows_write().
    """
    return not pkru >> PKRU_BITS_PER_PKEY * key & (PKRU_AD | PKRU_WD if write else PKRU_AD)
