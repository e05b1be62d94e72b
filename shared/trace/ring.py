"""The ring between a traced kernel and one reader: a header page and a data area, in a memory file that both map.

The kernel writes `DATA_HEAD`, the number of bytes written since the start. The reader writes `DATA_TAIL`, the number of
bytes read. Both only grow. The data of a position lies at `position & (data_size - 1)`; a record may continue at the
front. The kernel writes a whole record, and then the head. A reader that will wait on the pipe sets `SLEEPING` to the
number of unread bytes that shall wake it (1: any; Linux: wakeup_watermark). The kernel clears it when it has written to
the pipe. `LOST` counts the records that found no room. `ENDED` is set when no more records will come.

Answers to Linux v6.8 include/uapi/linux/perf_event.h: struct perf_event_mmap_page. A field that Linux has too has
Linux's offset.
"""

from __future__ import annotations

from shared.uapi.page import PAGE_SIZE

HEADER_BYTES = PAGE_SIZE
VERSION = 1

# Word indexes: each is an aligned 64-bit word.
VERSION_WORD, LOST_WORD, SLEEPING, ENDED = 0, 8, 9, 10
DATA_HEAD, DATA_TAIL, DATA_OFFSET, DATA_SIZE = 128, 129, 130, 131
U64 = (1 << 64) - 1
