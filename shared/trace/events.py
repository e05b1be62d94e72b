"""All events in one table: number, name, fields. A number is never used again, because files hold it.

An event that Linux v6.8 has too (include/trace/events/*.h) has Linux's name and fields. Fields that kerneld cannot fill
are left out (instruction pointers, nodes, gfp flags). The systems `pte`, `vma`, `fault`, `swap` and `shadowpt` are
kerneld's own. A field `mm` is the number of an address space, which does not change in its life.
"""

from __future__ import annotations

from enum import IntEnum

from shared.trace.event import Event, Field, Show
from shared.trace.glob import compile_glob
from shared.trace.state_events import STATE_EVENTS

D, X, P, E, T = Show.DECIMAL, Show.HEX, Show.PFN, Show.ENTRY, Show.TEXT


class Cause(IntEnum):
    """The cause of an event.

    A record's `causes` holds up to eight, four bits each; the lowest bits are the innermost.
    """

    NONE = 0
    SYSCALL = 1
    ACCESS = 2
    """A load, store or touch by the processor, for a program."""
    FAULT = 3
    AHEAD = 4
    """The next stores of a batch: the kernel takes their faults together, before the first store."""
    RECLAIM = 5
    """An allocation that waits for frames."""
    KSWAPD = 6
    """The background pass of reclaim, which a request has started because too few frames were free."""
    OOM = 7
    EXIT = 8
    ATTACH = 9
    TRUNCATE = 10
    """Another program has truncated a mapped file."""
    REFRESH = 11
    """Reading the page table of a real process of the host."""


class FaultKind(IntEnum):
    """How a fault was settled."""

    SPURIOUS = 0
    """The entry already allowed the access, or needed only an accessed or dirty bit."""
    ANONYMOUS = 1
    ZERO_PAGE = 2
    FILE = 3
    FAULT_AROUND = 4
    COW = 5
    REUSE = 6
    SHARED = 7
    """The first write to a clean page of a shared file."""
    SWAP_IN = 8
    HUGE = 9
    HUGE_ZERO_PAGE = 10


class FaultResult(IntEnum):
    """VM_FAULT_*: Linux v6.8 include/linux/mm_types.h."""

    MINOR = 0
    OOM = 1
    SIGBUS = 2
    MAJOR = 4
    SIGSEGV = 0x40


class FaultAccess(IntEnum):
    """The kind of access that faulted."""

    READ = 0
    WRITE = 1


class RssMember(IntEnum):
    """Which counter of an address space: Linux v6.8 include/linux/mm_types_task.h."""

    MM_FILEPAGES = 0
    MM_ANONPAGES = 1
    MM_SWAPENTS = 2
    MM_SHMEMPAGES = 3


def _pte(number: int, name: str, about: str) -> Event:
    return Event(
        number,
        f"pte:{name}",
        (Field("mm", "I"), Field("nr_pages", "I"), Field("vaddr", "Q", X), Field("old", "Q", E), Field("new", "Q", E)),
        about,
    )


def _vma(number: int, name: str, about: str) -> Event:
    return Event(
        number,
        f"vma:{name}",
        (
            Field("mm", "I"),
            Field("start", "Q", X),
            Field("end", "Q", X),
            Field("vm_flags", "Q", X),
            Field("pgoff", "Q"),
        ),
        about,
    )


def _task(number: int, name: str, about: str, *more: Field) -> Event:
    return Event(number, name, (Field("comm", "16s", T), Field("pid", "I"), *more), about)


_SESSION = (Field("opener", "I"), Field("target", "I"), Field("start", "Q", X), Field("end", "Q", X))
_RECLAIMED = (Field("nr_reclaimed", "Q"),)

SYS_ENTER = Event(
    16,
    "raw_syscalls:sys_enter",
    (Field("id", "q"), *(Field(f"arg{n}", "Q", X) for n in range(6)), Field("data_bytes", "Q")),
    "A call begins. data_bytes is the size of its inline data.",
)
SYS_EXIT = Event(
    17,
    "raw_syscalls:sys_exit",
    (Field("id", "q"), Field("ret", "q"), Field("signo", "i")),
    "A call ends. ret is the value that Linux would return.",
)
ACCESS_ENTER = Event(
    18,
    "machine:access_enter",
    (Field("id", "q"), Field("vaddr", "Q", X), Field("length", "Q"), Field("access", "Q")),
    "The processor begins a load, store or touch (whose access is 0 read, 1 write, 2 fetch).",
)
ACCESS_EXIT = Event(
    19,
    "machine:access_exit",
    (Field("id", "q"), Field("ret", "q"), Field("signo", "i")),
    "The load, store or touch ends. ret is the number of bytes, or of pages for a touch.",
)
PAGE_FAULT_USER = Event(
    24,
    "exceptions:page_fault_user",
    (Field("address", "Q", X), Field("error_code", "Q", X)),
    "The processor could not translate an address of user mode.",
)
MM_FAULT = Event(
    25,
    "fault:handle_mm_fault",
    (
        Field("mm", "I"), Field("access", "I", D, FaultAccess), Field("address", "Q", X), Field("nr_pages", "Q"),
        Field("kind", "I", D, FaultKind), Field("result", "I", D, FaultResult),
    ),
    "A fault, or a range of faults taken together, is settled. kind says how, nr_pages how many pages it mapped.",
)  # fmt: skip
VMA_INSERT = _vma(32, "vma_insert", "A VMA is inserted.")
VMA_REMOVE = _vma(33, "vma_remove", "A VMA is removed.")
VMA_CHANGE = Event(
    34,
    "vma:vma_change",
    (
        Field("mm", "I"), Field("old_start", "Q", X), Field("old_end", "Q", X), Field("old_flags", "Q", X),
        Field("start", "Q", X), Field("end", "Q", X), Field("vm_flags", "Q", X), Field("pgoff", "Q"),
    ),
    "A VMA gets other bounds or flags.",
)  # fmt: skip
VMA_SPLIT = Event(
    35,
    "vma:vma_split",
    (Field("mm", "I"), Field("start", "Q", X), Field("end", "Q", X), Field("at", "Q", X)),
    "A VMA will be split in two: a change and an insertion follow.",
)
VMA_MERGE = Event(
    36,
    "vma:vma_merge",
    (
        Field("mm", "I"), Field("start", "Q", X), Field("end", "Q", X), Field("vma_start", "Q", X),
        Field("vma_end", "Q", X),
    ),
    "[start, end) has become part of a neighbour, which is [vma_start, vma_end) now.",
)  # fmt: skip
EXPAND_STACK = Event(
    37,
    "vma:expand_stack",
    (Field("mm", "I"), Field("address", "Q", X), Field("old_start", "Q", X), Field("start", "Q", X)),
    "A stack has grown down to a fault below it.",
)
VM_UNMAPPED_AREA = Event(
    38,
    "mmap:vm_unmapped_area",
    (Field("addr", "Q", X), Field("total_vm", "Q"), Field("flags", "Q", X), Field("length", "Q", X)),
    "An unmapped area for a new mapping is found.",
)
PTE_SET = _pte(48, "set", "Empty entries are filled. A run shows its first entry; the others count up.")
PTE_REPLACE = _pte(49, "replace", "Entries get another frame, other rights or another state.")
PTE_CLEAR = _pte(50, "clear", "Entries are emptied.")
MM_PAGE_ALLOC = Event(
    64,
    "kmem:mm_page_alloc",
    (Field("pfn", "Q", P), Field("nr_pages", "I"), Field("order", "I"), Field("flags", "Q", X)),
    "A run of frames is allocated. flags are their PG_ flags; order is that of each block of the run.",
)
MM_PAGE_FREE = Event(
    65,
    "kmem:mm_page_free",
    (Field("pfn", "Q", P), Field("nr_pages", "I"), Field("order", "I")),
    "Frames are given back, in a run.",
)
RSS_STAT = Event(
    66,
    "kmem:rss_stat",
    (Field("mm_id", "I"), Field("curr", "I"), Field("member", "I", D, RssMember), Field("size", "Q")),
    "The value of a counter of resident pages, in bytes, at the end of the request that changed it.",
)
TASK_NEWTASK = _task(80, "task:task_newtask", "A process attaches.", Field("mm", "I"))
PROCESS_FORK = Event(
    81,
    "sched:sched_process_fork",
    (
        Field("parent_comm", "16s", T), Field("parent_pid", "I"), Field("child_comm", "16s", T),
        Field("child_pid", "I"), Field("mm", "I"),
    ),
    "A forked child attaches, and gets the copy of the memory that clone has made.",
)  # fmt: skip
PROCESS_EXEC = Event(
    82,
    "sched:sched_process_exec",
    (Field("filename", "64s", T), Field("pid", "I"), Field("old_pid", "I"), Field("mm", "I")),
    "A process gets another program, in a new address space.",
)
PROCESS_EXIT = _task(83, "sched:sched_process_exit", "A process ends.", Field("signo", "i"))
SIGNAL_GENERATE = Event(
    96,
    "signal:signal_generate",
    (
        Field("sig", "i"), Field("errno", "i"), Field("code", "i"), Field("comm", "16s", T), Field("pid", "I"),
        Field("group", "i"), Field("result", "i"),
    ),
    "A signal is raised for a thread.",
)  # fmt: skip
SIGNAL_DELIVER = Event(
    97,
    "signal:signal_deliver",
    (Field("sig", "i"), Field("errno", "i"), Field("code", "i"), Field("fatal", "i"), Field("pkey", "I")),
    "A thread takes a signal, on its way back to user mode; pkey is the protection key of a SEGV_PKUERR.",
)
DIRECT_RECLAIM_BEGIN = Event(
    112, "vmscan:mm_vmscan_direct_reclaim_begin", (Field("nr_to_reclaim", "Q"),), "An allocation starts to reclaim."
)
DIRECT_RECLAIM_END = Event(
    113, "vmscan:mm_vmscan_direct_reclaim_end", _RECLAIMED, "The allocation has freed nr_reclaimed frames."
)
KSWAPD_WAKE = Event(
    114, "vmscan:mm_vmscan_kswapd_wake", (Field("nr_free", "Q"),), "Few frames are free: the background pass starts."
)
KSWAPD_SLEEP = Event(115, "vmscan:mm_vmscan_kswapd_sleep", _RECLAIMED, "The background pass ends.")
SHRINK_INACTIVE = Event(
    116,
    "vmscan:mm_vmscan_lru_shrink_inactive",
    (Field("nr_scanned", "Q"), Field("nr_reclaimed", "Q")),
    "A batch of an inactive list has been scanned.",
)
SWAP_OUT = Event(117, "swap:swap_out", (Field("nr_pages", "Q"),), "Pages have been written to the swap file.")
SWAP_IN = Event(
    118, "swap:swap_in", (Field("slot", "Q", P), Field("pfn", "Q", P)), "A page has been read from the swap file."
)
MARK_VICTIM = Event(
    119,
    "oom:mark_victim",
    (
        Field("pid", "I"), Field("uid", "I"), Field("comm", "16s", T), Field("total_vm", "Q"), Field("anon_rss", "Q"),
        Field("file_rss", "Q"), Field("shmem_rss", "Q"), Field("pgtables", "Q"),
    ),
    "The OOM killer has chosen a process. Sizes are in KiB.",
)  # fmt: skip
SHADOWPT_OPEN = Event(
    128,
    "shadowpt:open",
    (*_SESSION, Field("ret", "q"), Field("why", "128s", T)),
    "A shadow table is opened or refused. ret is 0 or -errno; why names the cause in words.",
)
SHADOWPT_START = Event(129, "shadowpt:start", _SESSION, "The shadow table starts to follow its target.")
SHADOWPT_STOP = Event(130, "shadowpt:stop", _SESSION, "The shadow table is frozen.")
SHADOWPT_CLOSE = Event(131, "shadowpt:close", _SESSION, "The shadow table is emptied and closed.")
SPTE_UPDATE = Event(
    132,
    "shadowpt:spte_update",
    (
        Field("nr_pages", "Q"), Field("vaddr", "Q", X), Field("old_pfn", "Q", P), Field("old_flags", "Q", X),
        Field("new_pfn", "Q", P), Field("new_flags", "Q", X),
    ),
    "Entries of the shadow table change. In a run, frame numbers from 2 on count up.",
)  # fmt: skip
LAST_CONSTANT_PFN = 1
"""The frame numbers 0 (no frame) and 1 (zero page) repeat in a run of SPTE_UPDATE; all others count up."""
FUNCTION = Event(
    144,
    "ftrace:function",
    (Field("func", "64s", T), Field("parent", "64s", T)),
    "A function of the kernel is called. parent_func is its caller.",
)
FUNCGRAPH_ENTRY = Event(
    145, "ftrace:funcgraph_entry", (Field("func", "64s", T), Field("depth", "I")), "A function of the kernel begins."
)
FUNCGRAPH_EXIT = Event(
    146,
    "ftrace:funcgraph_exit",
    (
        Field("func", "64s", T), Field("depth", "I"), Field("overrun", "I"), Field("calltime", "Q"),
        Field("rettime", "Q"),
    ),
    "A function of the kernel ends. overrun is always 0: no single call is lost.",
)  # fmt: skip
FTRACE = frozenset({FUNCTION.number, FUNCGRAPH_ENTRY.number, FUNCGRAPH_EXIT.number})
"""Events of the function tracer. They are many, so only a reader that names their system gets them."""
NAMED_ONLY = FTRACE | {ACCESS_ENTER.number, ACCESS_EXIT.number, RSS_STAT.number} | {one.number for one in STATE_EVENTS}
"""Events that only a reader gets that names their system (`machine:*`, `kmem`). They cost much, and the other events
have the same information, or as much of it as people ask for."""

EVENTS: tuple[Event, ...] = (
    SYS_ENTER, SYS_EXIT, ACCESS_ENTER, ACCESS_EXIT,
    PAGE_FAULT_USER, MM_FAULT, VMA_INSERT, VMA_REMOVE, VMA_CHANGE, VMA_SPLIT, VMA_MERGE, EXPAND_STACK,
    VM_UNMAPPED_AREA, PTE_SET, PTE_REPLACE, PTE_CLEAR, MM_PAGE_ALLOC, MM_PAGE_FREE, RSS_STAT, TASK_NEWTASK,
    PROCESS_FORK, PROCESS_EXEC, PROCESS_EXIT, SIGNAL_GENERATE, SIGNAL_DELIVER, DIRECT_RECLAIM_BEGIN,
    DIRECT_RECLAIM_END, KSWAPD_WAKE, KSWAPD_SLEEP, SHRINK_INACTIVE, SWAP_OUT, SWAP_IN, MARK_VICTIM, SHADOWPT_OPEN,
    SHADOWPT_START, SHADOWPT_STOP, SHADOWPT_CLOSE, SPTE_UPDATE, FUNCTION, FUNCGRAPH_ENTRY, FUNCGRAPH_EXIT,
    *STATE_EVENTS,
)  # fmt: skip
BY_NUMBER = {event.number: event for event in EVENTS}
BY_NAME = {event.name: event for event in EVENTS}


def matching(glob: str) -> tuple[Event, ...]:
    """Return the events that match a glob. A glob without a colon matches the name of a system or of an event."""
    named = glob.partition(":")[0]
    events = [event for event in EVENTS if event.number not in NAMED_ONLY or event.system == named]
    matches = compile_glob(glob)
    if ":" in glob:
        return tuple(event for event in events if matches(event.name))
    return tuple(event for event in events if any(matches(part) for part in event.name.split(":")))
