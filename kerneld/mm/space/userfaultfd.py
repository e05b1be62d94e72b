"""A userfaultfd without its descriptor: which address space it watches, and which accesses wait for it.

Owns the contexts' waits. Knows no page table and no descriptor: who has the descriptor is told of each message
(`Messages`). Answers to Linux v6.8 fs/userfaultfd.c: struct userfaultfd_ctx, handle_userfault(), wake_userfault().

Invariant: the waits of a context have not ended; an ended one is in no list.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Protocol

from kerneld.mm.space.wait import Wait
from shared.uapi.page import PAGE_MASK, Vaddr
from shared.uapi.userfaultfd import UFFD_USER_MODE_ONLY, Feature, PagefaultFlag, pack_pagefault

if TYPE_CHECKING:
    from kerneld.mm.space.mm import MmStruct


class UserfaultWait(Wait):
    """An access that waits for its page (Linux: struct userfaultfd_wait_queue)."""

    __slots__ = ("message", "vaddr")

    def __init__(self, vaddr: Vaddr, message: bytes) -> None:
        """`vaddr` is the address by which it is woken; `message` is what the reader of the descriptor gets."""
        super().__init__()
        self.vaddr = vaddr
        self.message = message


class Messages(Protocol):
    """The descriptor's end at which messages are put."""

    def send(self, wait: UserfaultWait) -> None:
        """Put the message of a wait where the reader finds it."""

    def take_back(self) -> None:
        """Take the messages of ended waits away, unless they have been read."""


class UserfaultfdCtx:
    """One userfaultfd (Linux: struct userfaultfd_ctx)."""

    __slots__ = ("features", "flags", "is_initialized", "messages", "mm", "released", "waits")

    def __init__(self, mm: MmStruct, flags: int) -> None:
        """`flags` are those of userfaultfd(2). `messages` must be set before a VMA is registered."""
        self.mm = mm
        self.flags = flags
        self.features = Feature(0)
        self.is_initialized = False
        """Whether UFFDIO_API has succeeded: no other ioctl may come before (Linux: UFFD_FEATURE_INITIALIZED)."""
        self.released = False
        """Whether the last descriptor is closed."""
        self.messages: Messages
        self.waits: list[UserfaultWait] = []
        """The accesses that wait, in the order in which they came."""

    @property
    def is_user_mode_only(self) -> bool:
        """Whether the kernel's own accesses fail instead of waiting."""
        return self.flags & UFFD_USER_MODE_ONLY != 0

    def wake(self, start: Vaddr, length: int) -> None:
        """End the waits for addresses in [start, start + length); with length 0, all.

        Source: Linux v6.8 fs/userfaultfd.c:wake_userfault(), userfaultfd_wake_function().
        """
        woken = [wait for wait in self.waits if not length or start <= wait.vaddr < start + length]
        if not woken:
            return
        ended = set(woken)
        self.waits = [wait for wait in self.waits if wait not in ended]
        for wait in woken:
            wait.end()
        self.messages.take_back()

    def forget(self, wait: UserfaultWait) -> None:
        """Give up a wait, because its thread does not wait any more."""
        if wait in self.waits:
            self.waits.remove(wait)
            wait.is_over = True
            self.messages.take_back()


class Userfault:
    """An access that has met a page which a userfaultfd has to give: it must wait, and be made again."""

    __slots__ = ("ctx", "flags", "is_major", "vaddr")

    def __init__(self, ctx: UserfaultfdCtx, vaddr: Vaddr, flags: PagefaultFlag, is_major: bool) -> None:
        self.ctx = ctx
        self.vaddr = vaddr
        """The address of the access. Without UFFD_FEATURE_EXACT_ADDRESS the message has that of the page."""
        self.flags = flags
        self.is_major = is_major
        """Whether it counts as a major fault: see `kerneld.mm.fault.userfaultfd`."""

    def wait(self, tid: int = 0) -> Generator[Wait, None, None]:
        """Tell the reader of the descriptor, and yield as long as the access has to wait; `tid` is its thread's.

        Who closes the generator waits no more. Source: Linux v6.8 fs/userfaultfd.c:handle_userfault().
        """
        ctx = self.ctx
        if ctx.released:
            return
        exact = Feature.EXACT_ADDRESS in ctx.features
        address = self.vaddr if exact else self.vaddr & PAGE_MASK
        ptid = tid if Feature.THREAD_ID in ctx.features else 0
        wait = UserfaultWait(address, pack_pagefault(self.flags, address, ptid))
        ctx.waits.append(wait)
        ctx.messages.send(wait)
        try:
            while not wait.is_over:
                yield wait
        finally:
            ctx.forget(wait)


class AwaitsPage(Exception):
    """An access cannot go on: what it has done must be done again after its wait. It has changed nothing yet.

    Raised above mm, where an access can wait: mm itself returns VM_FAULT_RETRY.
    """

    def __init__(self, fault: Userfault) -> None:
        super().__init__(f"userfault at {fault.vaddr:#x}")
        self.fault = fault
