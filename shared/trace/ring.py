"""The ring between a traced kernel and one reader: a header page and a data area, in a memory file both have mapped.

`DATA_HEAD` is the kernel's, `DATA_TAIL` the reader's: bytes written and bytes read since the start; the data lies at
`position & (data_size - 1)` and may go on at the front. Positions only grow. The kernel writes records whole, and the
head after them. A reader that is about to wait on the pipe sets `SLEEPING` to how many unread bytes are worth waking it
(1: any; Linux: wakeup_watermark); the kernel clears it when it has written to the pipe. `LOST` counts the records that
found no room. `ENDED` is set when nothing more will come.

Answers to Linux v6.8 include/uapi/linux/perf_event.h: struct perf_event_mmap_page, whose offsets are kept where it has
such a field.
"""

from __future__ import annotations

from shared.uapi.page import PAGE_SIZE

HEADER_BYTES = PAGE_SIZE
VERSION = 1

# Word indexes: each is an aligned 64-bit word.
VERSION_WORD, LOST_WORD, SLEEPING, ENDED = 0, 8, 9, 10
DATA_HEAD, DATA_TAIL, DATA_OFFSET, DATA_SIZE = 128, 129, 130, 131
U64 = (1 << 64) - 1
