"""The OOM killer: it kills a process when nothing can be reclaimed.

Owns the choice of the process, and the log messages. The caller provides the tasks, and a function that kills one.
Answers to Linux v6.8 mm/oom_kill.c, on a machine without cgroups, cpusets and more nodes than one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog

from kerneld.mm.frames.frames import Frames
from kerneld.mm.frames.kernel_objects import VMA_BYTES
from kerneld.mm.frames.lru import LruList, lru_sizes
from kerneld.mm.space.mm import MmStruct
from kerneld.mm.space.rss import Rss
from kerneld.ratelimit import RateLimit
from shared.uapi.page import PAGE_SHIFT, PAGE_SIZE, Pid

_log = structlog.get_logger("kerneld.mm")
_KBYTES_SHIFT = PAGE_SHIFT - 10
_GFP = "gfp_mask=0x140cca(GFP_HIGHUSER_MOVABLE|__GFP_COMP), order=0"
_MOST_TASKS = 64
OOM_SCORE_ADJ_MIN = -1000
_FEW_MAPPINGS = 1000
_HEADER = (
    "[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name"
)


class OomTask(NamedTuple):
    """A process as the OOM killer sees it."""

    pid: Pid
    uid: int
    comm: str
    mm: MmStruct
    copies: Sequence[MmStruct] = ()
    """The copies of its memory that wait for children. They have no task of their own, and are freed with it."""
    oom_score_adj: int = 0
    """From OOM_SCORE_ADJ_MIN, which is never killed, to 1,000."""


def pgtables_bytes(mm: MmStruct) -> int:
    """Return the size of the page tables in bytes, without the root (Linux: mm_pgtables_bytes())."""
    return (mm.page_table.table_pages - 1) * PAGE_SIZE


def oom_badness(mm: MmStruct) -> int:
    """Return the pages that a kill would free: resident and swapped pages, and page tables (Linux: oom_badness()).

    Differs from Linux: for a process with very many mappings, the daemon's own memory for them counts too. In Linux
    this memory belongs to the machine, and counts for no process.
    """
    nr_maps = len(mm.vmas)
    mappings = nr_maps * VMA_BYTES // PAGE_SIZE if nr_maps > _FEW_MAPPINGS else 0
    return mm.rss.resident_pages + mm.rss.counts[Rss.SWAP] + pgtables_bytes(mm) // PAGE_SIZE + mappings


def total_of(frames: Frames) -> int:
    """Return the pages of RAM and swap (Linux: oc->totalpages)."""
    return frames.total_pages + frames.swap.total_pages


def select_bad_process(tasks: Sequence[OomTask]) -> OomTask | None:
    """Return the task with the highest badness, the last one of equals, or None without one that may be killed.

    A unit of oom_score_adj counts as a thousandth of all memory.
    Source: Linux v6.8 mm/oom_kill.c:select_bad_process() and oom_evaluate_task(). Differs from Linux: a copy that waits
    for a child counts for the parent; else a process could hide memory in it. In Linux it would be a separate task.
    """
    chosen, most = None, 0
    for task in tasks:
        if task.oom_score_adj == OOM_SCORE_ADJ_MIN:
            continue
        points = oom_badness(task.mm) + sum(map(oom_badness, task.copies))
        points += task.oom_score_adj * (total_of(task.mm.frames) // 1000)
        if chosen is None or points >= most:
            chosen, most = task, points
    return chosen


class OomKiller:
    """The OOM killer of one machine."""

    def __init__(
        self,
        frames: Frames,
        tasks: Callable[[], Sequence[OomTask]],
        current: Callable[[], str],
        kill: Callable[[Pid], bool],
    ) -> None:
        """`tasks` returns every process that is not dying, `current` the name of the allocating process.

        `kill` kills a process, and returns whether its memory is free now. It is not free if the allocating call uses
        it.
        """
        self._frames = frames
        self._tasks = tasks
        self._current = current
        self._kill = kill
        self._ratelimit = RateLimit()

    def out_of_memory(self) -> bool:
        """Kill the process with the highest badness. Return whether that has made room at once.

        Source: Linux v6.8 mm/oom_kill.c:out_of_memory() and oom_kill_process().
        """
        tasks = self._tasks()
        victim = select_bad_process(tasks)
        if victim is None:
            _log.critical("Out of memory and no killable processes...")
            return False
        if self._ratelimit.allows():
            self._dump_header(tasks, victim)
        mm = victim.mm
        # This line has no rate limit, as in Linux: each such line has cost a large process.
        _log.error(
            f"Out of memory: Killed process {victim.pid} ({victim.comm}) total-vm:{_kb(mm.total_vm)}, "
            f"anon-rss:{_kb(mm.rss.counts[Rss.ANON])}, file-rss:{_kb(mm.rss.counts[Rss.FILE])}, "
            f"shmem-rss:{_kb(mm.rss.counts[Rss.SHMEM])}, UID:{victim.uid} pgtables:{pgtables_bytes(mm) >> 10}kB "
            f"oom_score_adj:{victim.oom_score_adj}",
            whole=True,
        )
        self._frames.vmstat["oom_kill"] += 1
        return self._kill(victim.pid)

    def _dump_header(self, tasks: Sequence[OomTask], victim: OomTask) -> None:
        """Source: Linux v6.8 mm/oom_kill.c:dump_header(), dump_tasks() and dump_oom_summary().

        Differs from Linux: of many tasks only the youngest are listed.
        """
        sizes, frames = lru_sizes(self._frames), self._frames
        missed = self._ratelimit.take_missed()
        if missed:
            _log.warning(f"oom_kill_process: {missed} callbacks suppressed", whole=True)
        _log.warning(f"{self._current()} invoked oom-killer: {_GFP}, oom_score_adj=0", whole=True)
        _log.warning("Mem-Info:", whole=True)
        _log.warning(
            f"active_anon:{sizes[LruList.ACTIVE_ANON]} inactive_anon:{sizes[LruList.INACTIVE_ANON]} "
            f"active_file:{sizes[LruList.ACTIVE_FILE]} inactive_file:{sizes[LruList.INACTIVE_FILE]} "
            f"unevictable:{sizes[-1]} free:{frames.free_pages}",
            whole=True,
        )
        _log.warning(f"Free swap  = {_kb(frames.swap.nr_free)}", whole=True)
        _log.warning(f"Total swap = {_kb(frames.swap.total_pages)}", whole=True)
        _log.info("Tasks state (memory values in pages):", whole=True)
        _log.info(_HEADER, whole=True)
        for task in tasks[-_MOST_TASKS:]:
            _log.info(_task_line(task), whole=True)
        _log.info(
            "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/,"
            f"task={victim.comm},pid={victim.pid},uid={victim.uid}",
            whole=True,
        )


def _kb(pages: int) -> str:
    return f"{pages << _KBYTES_SHIFT}kB"


def _task_line(task: OomTask) -> str:
    """Source: Linux v6.8 mm/oom_kill.c:dump_task()."""
    mm, rss = task.mm, task.mm.rss.counts
    return (
        f"[{task.pid:7d}] {task.uid:5d} {task.pid:5d} {mm.total_vm:8d} {mm.rss.resident_pages:8d} {rss[Rss.ANON]:8d} "
        f"{rss[Rss.FILE]:8d} {rss[Rss.SHMEM]:9d} {pgtables_bytes(mm):8d} {rss[Rss.SWAP]:8d} "
        f"{'':8}{task.oom_score_adj:5d} {task.comm}"
    )
