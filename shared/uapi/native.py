"""The protocol of a native program's stub, beside the system calls: docs/abi.md, "Native programs"."""

from __future__ import annotations

STUB_START, STUB_END = 0x6A00_0000_0000, 0x6A80_0000_0000
"""The range of addresses that a native program's stub has for itself (native.h)."""
NATIVE_THREAD = 1
"""First argument of native: a further thread of a native process."""
NATIVE_PKEYS = 2
"""First argument of native: the real process has all protection keys of its processor, and asks kerneld which of them
the program has. The second argument is the thread's PKRU."""
FAULT_FOR_KERNEL = 1
"""Third argument of fault: the access is for a system call. It fails with EFAULT and raises no signal."""
FAULT_FUTEX = 2
"""Third argument of fault, with FAULT_FOR_KERNEL: the word there is a shared futex, and cannot be written. Anonymous
memory is then EFAULT too."""
FAULT_MAY_WAIT = 4
"""Third argument of fault: if a userfaultfd has to give the page, the reply comes when it has. The next request on the
connection ends the wait."""
FAULT_WAITS = 1
"""Result of fault without FAULT_MAY_WAIT, if a userfaultfd has to give the page."""
CLONE_SHARE = 1
"""First argument of clone: the child is to share the memory of its parent, which is native."""
CLONE_CANCEL = 2
"""First argument of clone: the real fork has failed. The second argument is the token, which is not valid any more."""
CLONE_LEFT = 4
"""First argument of clone: the child of a vfork runs no more in the memory that it has shared. The second argument is
its pid."""
FILE_SYNC_WRITTEN = 1
"""First argument of file_sync: the call has been made, and has written."""
FILE_SYNC_WRITE = 2
"""First argument of file_sync: kerneld is to write the data of the request, at the descriptor's position."""
FILE_SYNC_AT = 4
"""First argument of file_sync, with FILE_SYNC_WRITE: write at the offset, as pwrite(2)."""
FILE_SYNC_TRUNCATE = 8
"""First argument of file_sync: kerneld is to give the file the size that the offset says, as ftruncate(2)."""
MMAP_SAME_FILE = 1 << 32
"""In the fd of an mmap without a descriptor: the lower half is the client's number of the file that it mapped last."""

ADVANCES_BYTES = 2 * 4096 + 16 * 4096 + 4096
"""The memory behind the ring of a native thread (`shared.uapi.ring`), for the pages that it may take by itself:
docs/abi.md, "Advances"."""
NR_ADVANCES, ADVANCE_WORDS, ADVANCE_PAGES_MOST = 8, 8, 64
"""The most advances of a thread, the 64-bit words of each from the start of that memory, and the most pages of each."""
ADVANCE_START, ADVANCE_PAGES, ADVANCE_RIGHTS, ADVANCE_RECALLED = range(4)
"""Words that the kernel writes: the address of the first page, or 0; a bit for each page that may be taken; PROT_ bits
and ADVANCE_COPY; whether no more may be taken."""
ADVANCE_TAKEN, ADVANCE_BUSY = 4, 5
"""Words that the client writes: a bit for each page that it has taken; whether it is taking one."""
NR_ROWS, ROW_PAGES, WINDOW_PAGES = 16, 512, 16
"""Behind the advances stand as many rows of windows, of the same words: the windows of a row have so many pages
together, and a bit of ADVANCE_PAGES and ADVANCE_TAKEN stands for a window, of so many pages."""
ADVANCES_COUNT = (NR_ADVANCES + NR_ROWS) * ADVANCE_WORDS
ADVANCES_COMING = ADVANCES_COUNT + 1
"""The word in which the client counts the pages that it has taken. The kernel's word that is 1 while it writes advances
after an answer."""
ADVANCE_OFFSETS = 512
"""From this word on the offset of the frame of each page in the RAM's file: 64 for each advance."""
ROW_OFFSETS = 1024
"""The same for the pages of the rows: 512 for each row. An offset that is no multiple of a page: the page's window does
not map it."""
SOURCE_OFFSETS = ROW_OFFSETS + NR_ROWS * ROW_PAGES
"""The same for the frames that are to be copied, 64 for each advance: with ADVANCE_FROM."""
ADVANCE_COPY, ADVANCE_FROM = 8, 256
"""In the rights of an advance: each page has to become a copy of what is mapped there; or nothing is mapped there, and
it has to become a copy of another frame."""
