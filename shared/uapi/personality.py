"""The flags of personality(2) that concern memory: Linux v6.8 include/uapi/linux/personality.h."""

from __future__ import annotations

MMAP_PAGE_ZERO = 0x10_0000
ADDR_COMPAT_LAYOUT = 0x20_0000
READ_IMPLIES_EXEC = 0x40_0000
ASKS = 0xFFFF_FFFF
"""The argument that changes nothing, and asks for the personality."""
