"""PROCMAP_QUERY: returns one mapping of a process, by an address. Source: Linux v6.11 include/uapi/linux/fs.h."""

from __future__ import annotations

import struct

PROCMAP_QUERY = 0xC068_6611
"""_IOWR('f', 17, struct procmap_query), on a descriptor of /proc/PID/maps."""
PROCMAP_QUERY_ARG = struct.Struct("<9Q4I2Q")
"""size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode, dev_major, dev_minor,
vma_name_size, build_id_size, vma_name_addr, build_id_addr."""

PROCMAP_QUERY_VMA_READABLE = 0x01
PROCMAP_QUERY_VMA_WRITABLE = 0x02
PROCMAP_QUERY_VMA_EXECUTABLE = 0x04
PROCMAP_QUERY_VMA_SHARED = 0x08
PROCMAP_QUERY_COVERING_OR_NEXT_VMA = 0x10
