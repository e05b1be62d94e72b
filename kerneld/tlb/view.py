"""The threads that use an address space, as its TLB sees them, and the agent that drops pages while they run."""

from __future__ import annotations

from typing import Protocol

from shared.uapi.page import Pid
from shared.uapi.syscalls import Nr
from shared.wire import number_of


class Agent(Protocol):
    """A thread that drops pages while the program runs."""

    acknowledged: int
    """The number of the last order that it has carried out."""

    def order(self, record: bytes) -> bool:
        """Send an order, and wait a little. Return whether it is carried out, or the program cannot run any more."""

    def dismiss(self) -> None:
        """End the agent: the address space ends."""


class Viewed(Protocol):
    """What a view needs of its TLB."""

    views: set[View]
    has_left_running: bool

    def take(self) -> bytes:
        """Return the record to be sent behind the replies of a request."""

    def check_host(self, pid: Pid) -> None:
        """Check what the host maps in a process that uses the memory. Raises KernelBug."""


class View:
    """A thread that uses an address space, as its TLB sees it; see `kerneld.task.task.ThreadTlb`."""

    __slots__ = ("_tlb", "is_inside")

    def __init__(self, tlb: Viewed) -> None:
        self._tlb = tlb
        self.is_inside = True
        """Whether the thread waits for its own request: it does not run before the reply."""

    def begin(self, datagram: memoryview) -> None:
        """Note that a request of the thread has come."""
        self.is_inside = True

    def take(self) -> bytes:
        """Return the record to be sent behind the replies of a request; after that the thread runs again."""
        record = self._tlb.take()
        self.is_inside = False
        return record

    def left(self) -> None:
        """Note that the thread, which has asked for nothing, runs in the address space no more."""
        self.is_inside = True
        self.leave()

    def leave(self) -> None:
        """Note that the thread no longer uses the address space.

        One that has not asked for that may still run in the memory: its process is killed, say.
        """
        self._tlb.views.discard(self)
        self._tlb.has_left_running |= not self.is_inside


class CheckedView(View):
    """A view of a machine that checks its invariants: each request of the thread begins with the check of `pid`."""

    __slots__ = ("_pid",)

    def __init__(self, tlb: Viewed, pid: Pid) -> None:
        super().__init__(tlb)
        self._pid = pid

    def begin(self, datagram: memoryview) -> None:
        """Note that a request has come. Raises KernelBug if the host maps more than is granted."""
        super().begin(datagram)
        if number_of(datagram) != Nr.RING_BELL:
            # A thread that rings has not looked at its last answer yet, nor done what it says.
            self._tlb.check_host(self._pid)
