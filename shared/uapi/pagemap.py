"""/proc/PID/pagemap: bits of its entries and its one ioctl: include/uapi/linux/fs.h of Linux v6.7 and newer."""

from __future__ import annotations

import struct

PM_ENTRY_BYTES = 8
PM_PFRAME_MASK = (1 << 55) - 1
"""The frame number. It is 0 for a reader without CAP_SYS_ADMIN."""
PM_MMAP_EXCLUSIVE = 1 << 56
PM_FILE = 1 << 61
"""A page of a file, or of shared memory."""
PM_SWAP = 1 << 62
PM_PRESENT = 1 << 63

PAGEMAP_SCAN = 0xC060_6610
"""_IOWR('f', 16, struct pm_scan_arg)."""
PM_SCAN_ARG = struct.Struct("<12Q")
"""size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, _mask, _anyof_mask, return_mask."""
PAGE_REGION = struct.Struct("<3Q")
"""struct page_region: start, end, categories."""
PAGE_IS_PRESENT = 1 << 3
