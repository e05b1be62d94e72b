"""The processes as the OOM killer sees them, and the end of the process that it has chosen.

Owns the list of processes whose real processes have to be killed. Knows no socket: the server takes the list, because
it has the pidfds. Answers to Linux v6.8 mm/oom_kill.c: __oom_kill_process(),
task_will_free_mem().

If the allocation of one process kills another process, that one ends at once. A process whose own allocation kills it
cannot end at once: the allocation fails, the call returns, and the pending SIGKILL ends the process on the way back to
user mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from signal import SIGKILL

from kerneld.mm.reclaim.oom import OomTask
from kerneld.mm.space.mm import MmStruct
from kerneld.task.exit import kill_process
from kerneld.task.sched import RunQueue
from kerneld.task.signal import send_signal_locked
from kerneld.task.task import Process, Thread
from shared.uapi.page import Pid
from shared.uapi.signals import SI_KERNEL
from shared.wire import SigInfo


class OomTasks:
    """The tasks of one machine, for its OOM killer."""

    def __init__(
        self, processes: Mapping[Pid, Process], rq: RunQueue, copies: Callable[[Process], list[MmStruct]]
    ) -> None:
        """`copies` returns the copies of a process's memory that wait for a child."""
        self._processes = processes
        self._copies = copies
        self._rq = rq
        self._killed: list[Process] = []

    @property
    def current(self) -> Thread | None:
        """The thread of the current request; None while a process attaches."""
        return self._rq.curr

    def tasks(self) -> list[OomTask]:
        """Return every process, the oldest first."""
        return [
            OomTask(
                process.pid,
                process.cred.uid,
                process.comm,
                process.live_mm,
                self._copies(process),
                process.oom_score_adj,
            )
            for process in self._processes.values()
        ]

    def current_comm(self) -> str:
        """Return the name of the process of the current request; the daemon's name without a request."""
        return self.current.process.comm if self.current is not None else "kerneld"

    def current_is_dying(self) -> bool:
        """Return whether the allocating process has been chosen already.

        Then killing another process does not help it.
        """
        return self.current is not None and (self.current.is_killed or self.current.process.ended)

    def kill(self, pid: Pid) -> bool:
        """Kill a process, and return whether its memory is free now."""
        process = self._processes[pid]
        self._killed.append(process)
        if self.current is not None and self.current.process is process:
            send_signal_locked(self.current, SIGKILL, SigInfo(SI_KERNEL, False, 0))
            return False
        # A call of another process that reads or writes this memory holds it until the call returns.
        is_free = process.live_mm.users == 1
        kill_process(process, SIGKILL)
        return is_free

    def take_killed(self) -> list[Process]:
        """Return the processes that were killed since the last call. The caller kills their real processes."""
        killed, self._killed = self._killed, []
        return killed
