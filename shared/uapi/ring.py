"""The layout of a ring, the memory in which one thread's requests and answers travel: docs/abi.md, "Ring".

Word indices are of 64-bit words from the start of the ring; sizes and offsets are in bytes. Words that different sides
write are in different cache lines.
"""

from __future__ import annotations

RING_BYTES = 65_536
REQUEST_NUMBER, REQUEST_BYTES = 0, 1
"""Written by the client: the number of its last request datagram, and the size of it."""
WATCHED = 8
"""Written by the kernel: 1 while it looks at the ring all the time, else 0."""
ANSWER_NUMBER, ANSWER_BYTES = 16, 17
"""Written by the kernel: the number of the last request datagram that it has answered, and the size of the answer. Size
0 means that the answer comes by the socket."""
TAKEN_NUMBER = 18
"""Written by the kernel: the number of the last request datagram that it has begun to serve."""
CHILDREN_START, NR_CHILDREN = 192, 16
"""Where the pids of children that have not attached are, 32 bits each, and how many there is room for. The kernel
clears the field `token % NR_CHILDREN` when it gives the token of a child; the client writes the child's pid there."""
REQUESTS_START = 256
ANSWERS_START = 32_768
MOST_REQUEST_BYTES = ANSWERS_START - REQUESTS_START
MOST_ANSWER_BYTES = RING_BYTES - ANSWERS_START
