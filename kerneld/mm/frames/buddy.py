"""The buddy allocator: free memory as blocks of 1, 2, 4 … 1,024 frames, split on demand and merged with their buddies.

Owns the set of free frames. Does not know the use of a frame. Answers to Linux v6.8 mm/page_alloc.c
(__rmqueue_smallest, expand, __free_one_page, and the per-cpu lists in front of them).

Invariants: `head_order[pfn] == order + 1` exactly for the first frame of each free block, 0 elsewhere; blocks are
aligned to their size and disjoint; two free buddies of one order are always merged; `nr_free` counts blocks and per-cpu
frames.

A free list is an array used as a stack. Its entries may be out of date: an entry is valid only if `head_order` agrees.
So a merge need not search the buddy's list, and numpy can free whole ranges, and drop what is out of date.
"""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from kerneld.errors import KernelBug
from kerneld.hw.distinct import distinct
from shared.uapi.page import Pfn

MAX_ORDER = 10
"""The largest block is 1 << MAX_ORDER frames, 4 MiB."""
PCP_BATCH = 64
"""The frames moved at once between the per-cpu list and the blocks: one block (Linux's zone_batchsize() is 63)."""
PCP_HIGH = 6 * PCP_BATCH
_SMALL = 16
"""Up to this number of frames a loop is faster than numpy with its fixed costs."""


class OutOfFrames(Exception):
    """No block of the wanted size is free."""


class Buddy:
    """The free frames among `nr_frames`; frames below `first` are never handed out."""

    def __init__(self, nr_frames: int, first: Pfn) -> None:
        self.head_order = np.zeros(nr_frames, dtype=np.uint8)
        self._head_order = self.head_order.data
        self._nr_frames = nr_frames
        self._lists: list[array[int]] = [array("q") for _ in range(MAX_ORDER + 1)]
        self.nr_blocks = [0] * (MAX_ORDER + 1)
        """The number of free blocks of each order, as in /proc/buddyinfo."""
        self.pcp: list[Pfn] = []
        """Single free frames for quick allocation, the last freed frame on top: Linux's per-cpu list."""
        self.nr_free = nr_frames - first
        blocks = []
        while first < nr_frames:
            order = min(MAX_ORDER, (first & -first).bit_length() - 1)
            while first + (1 << order) > nr_frames:
                order -= 1
            blocks.append((first, order))
            first += 1 << order
        for pfn, order in reversed(blocks):
            self._push(pfn, order)

    def _push(self, pfn: Pfn, order: int) -> None:
        self._head_order[pfn] = order + 1
        self._lists[order].append(pfn)
        self.nr_blocks[order] += 1
        if len(self._lists[order]) > 4 * self.nr_blocks[order] + 1024:
            self._compact(order)

    def _compact(self, order: int) -> None:
        """Drop entries that are out of date.

        Without this, a list whose entries are never popped would grow without end.
        """
        stack = np.frombuffer(self._lists[order], dtype=np.int64)
        valid = stack[self.head_order[stack] == order + 1]
        # Of equal entries the lowest stays: the last that is written here.
        place = np.empty(self._nr_frames, dtype=np.int32)
        numbers = np.arange(len(valid), dtype=np.int32)
        place[valid[::-1]] = numbers[::-1]
        self._lists[order] = array("q", valid[place[valid] == numbers].tobytes())

    def _pop(self, order: int) -> Pfn | None:
        stack = self._lists[order]
        while stack:
            pfn = stack.pop()
            if self._head_order[pfn] == order + 1:
                self._head_order[pfn] = 0
                self.nr_blocks[order] -= 1
                return pfn
        return None

    def alloc_block(self, order: int) -> Pfn:
        """Take a block of 1 << order frames and return its first frame. The old contents stay.

        Raises OutOfFrames if no block is large enough. Source: Linux v6.8 mm/page_alloc.c:__rmqueue_smallest().
        """
        for larger in range(order, MAX_ORDER + 1):
            pfn = self._pop(larger) if self.nr_blocks[larger] else None
            if pfn is not None:
                for split in range(larger - 1, order - 1, -1):
                    self._push(pfn + (1 << split), split)
                self.nr_free -= 1 << order
                return pfn
        if self.pcp:
            self.drain_pcp(len(self.pcp))
            return self.alloc_block(order)
        raise OutOfFrames

    def alloc_one(self) -> Pfn:
        """Take one frame, from the per-cpu list. Raises OutOfFrames.

        Source: Linux v6.8 mm/page_alloc.c:rmqueue_pcplist().
        """
        if not self.pcp:
            self._fill_pcp()
        self.nr_free -= 1
        return self.pcp.pop()

    def _fill_pcp(self) -> None:
        wanted = min(PCP_BATCH, self.nr_free)
        if not wanted:
            raise OutOfFrames
        frames = self._take(wanted)
        self.pcp.extend(reversed(frames.tolist()))
        self.nr_free += wanted

    def alloc_many(self, count: int) -> npt.NDArray[np.int64]:
        """Take `count` single frames, in few runs, and return them. It takes all or none.

        Raises OutOfFrames.
        """
        if count > self.nr_free:
            raise OutOfFrames
        if count > self.nr_free - len(self.pcp):
            self.drain_pcp(len(self.pcp))
        return self._take(count)

    def _take(self, count: int) -> npt.NDArray[np.int64]:
        runs = []
        left = count
        while left:
            order = min(MAX_ORDER, left.bit_length() - 1)
            while order and not any(self.nr_blocks[order:]):
                order -= 1
            runs.append(np.arange(1 << order, dtype=np.int64) + self.alloc_block(order))
            left -= 1 << order
        return np.concatenate(runs) if len(runs) != 1 else runs[0]

    def take(self, pfns: npt.NDArray[np.int64]) -> None:
        """Take these frames, which are all free: given in rising order, each once."""
        if self.pcp and len(pfns):
            self.drain_pcp(len(self.pcp))
        while len(pfns):
            head, order = self._block_of(int(pfns[0]))
            block = np.arange(head, head + (1 << order), dtype=np.int64)
            taken, pfns = np.split(pfns, [int(np.searchsorted(pfns, head + (1 << order)))])
            self._head_order[head] = 0
            self.nr_blocks[order] -= 1
            self.nr_free -= len(taken)
            self._merge(np.delete(block, taken - head))

    def _block_of(self, pfn: Pfn) -> tuple[Pfn, int]:
        """Return the first frame and the order of the free block that has a frame."""
        for order in range(MAX_ORDER + 1):
            head = pfn & -(1 << order)
            if self._head_order[head] == order + 1:
                return head, order
        raise KernelBug(f"frame {pfn:#x} is not free")

    def free_one(self, pfn: Pfn) -> None:
        """Free one frame, to the per-cpu list. Source: Linux v6.8 mm/page_alloc.c:free_unref_page()."""
        self.nr_free += 1
        self.pcp.append(pfn)
        if len(self.pcp) > PCP_HIGH:
            self.drain_pcp(PCP_BATCH)

    def free_block(self, pfn: Pfn, order: int) -> None:
        """Free a block, and merge it with its buddies as long as they are free.

        Source: Linux v6.8 mm/page_alloc.c:__free_one_page().
        """
        if self._head_order[pfn]:
            raise KernelBug(f"frame {pfn:#x} is freed twice")
        self.nr_free += 1 << order
        self._merge_one(pfn, order)

    def _merge_one(self, pfn: Pfn, order: int) -> None:
        while order < MAX_ORDER:
            buddy = pfn ^ (1 << order)
            if buddy >= self._nr_frames or self._head_order[buddy] != order + 1:
                break
            self._head_order[buddy] = 0
            self.nr_blocks[order] -= 1
            pfn &= ~(1 << order)
            order += 1
        self._push(pfn, order)

    def free_many(self, pfns: npt.NDArray[np.int64]) -> None:
        """Free single frames, each given once, in any order."""
        self.nr_free += len(pfns)
        self._merge(pfns)

    def drain_pcp(self, count: int) -> None:
        """Move the `count` frames that were freed longest ago from the per-cpu list to the blocks."""
        self._merge(np.array(self.pcp[:count], dtype=np.int64))
        del self.pcp[:count]

    def _merge(self, pfns: npt.NDArray[np.int64]) -> None:
        if len(pfns) <= _SMALL:
            for pfn in pfns.tolist():
                self._merge_one(pfn, 0)
            return
        heads = pfns if bool((pfns[1:] > pfns[:-1]).all()) else np.sort(pfns)
        if bool(self.head_order[heads].any()) or bool((heads[1:] == heads[:-1]).any()):
            raise KernelBug("a frame is freed twice")
        ends = np.flatnonzero(heads[1:] - heads[:-1] != 1) + 1
        if len(ends) * _SMALL < len(heads):
            for run in np.split(heads, ends) if len(ends) else (heads,):
                self._merge_run(int(run[0]), int(run[-1]) + 1)
            return
        for order in range(MAX_ORDER):
            if len(heads) == 0:
                return
            heads = self._merge_order(heads, order)
        self._push_many(heads, MAX_ORDER)

    def _merge_run(self, start: Pfn, end: Pfn) -> None:
        """Free the consecutive frames of [start, end) as the largest possible aligned blocks."""
        while start < end:
            order = min(MAX_ORDER, (start & -start).bit_length() - 1, (end - start).bit_length() - 1)
            self._merge_one(start, order)
            start += 1 << order

    def _merge_order(self, heads: npt.NDArray[np.int64], order: int) -> npt.NDArray[np.int64]:
        """Merge free blocks of one order with their buddies, and keep the rest.

        Return the merged blocks of the next order.
        """
        self.head_order[heads] = order + 1
        buddies = heads ^ (1 << order)
        inside = buddies < self._nr_frames
        merged = np.zeros(len(heads), dtype=bool)
        merged[inside] = self.head_order[buddies[inside]] == order + 1
        pairs = np.concatenate([heads[merged], buddies[merged]])
        self.head_order[pairs] = 0
        upper = heads[merged] & ~np.int64(1 << order)
        upper = upper[np.append(upper[1:] != upper[:-1], True)] if len(upper) else upper
        rest = heads[~merged]
        self._push_many(rest, order)
        # Both halves of a pair may be new, or one may have been free already. Only blocks free already were counted.
        self.nr_blocks[order] -= 2 * len(upper) - int(merged.sum())
        return upper

    def _push_many(self, heads: npt.NDArray[np.int64], order: int) -> None:
        self.head_order[heads] = order + 1
        stack = self._lists[order]
        stack.frombytes(heads[::-1].astype(np.int64).tobytes())
        self.nr_blocks[order] += len(heads)
        if len(stack) > 4 * self.nr_blocks[order] + 1024:
            self._compact(order)

    def is_free(self, low: Pfn = 0, high: Pfn | None = None) -> npt.NDArray[np.bool_]:
        """Return for each frame of [low, high), by default for all frames, whether it is free.

        `low` is a multiple of the largest block; `high` is one too, or beyond the last frame.
        """
        free = self._in_blocks(self.head_order[low:high])
        single = np.array(self.pcp, dtype=np.int64) - low
        free[single[(single >= 0) & (single < len(free))]] = True
        return free

    def _in_blocks(self, head_order: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        """Return for each frame whether it is in a free block: not those of the per-cpu list."""
        free = np.zeros(len(head_order), dtype=np.bool_)
        heads = np.flatnonzero(head_order != 0)
        orders = head_order[heads] - 1
        for order in distinct(orders).tolist():
            blocks = free[: len(free) >> order << order].reshape(-1, 1 << order)
            blocks[heads[orders == order] >> order] = True
        return free

    def check(self) -> None:
        """Check the allocator's own invariants. Raises KernelBug."""
        heads = np.flatnonzero(self.head_order != 0)
        orders = self.head_order[heads].astype(np.int64) - 1
        sizes = np.int64(1) << orders
        if bool((orders > MAX_ORDER).any()) or bool((heads & (sizes - 1)).any()):
            raise KernelBug("a free block is too large, or not aligned to its size")
        if bool((heads[1:] < (heads + sizes)[:-1]).any()) or int((heads + sizes).max(initial=0)) > self._nr_frames:
            raise KernelBug("free blocks overlap, or leave memory")
        if np.bincount(orders, minlength=MAX_ORDER + 1).tolist() != self.nr_blocks:
            raise KernelBug(f"free blocks by order are noted as {self.nr_blocks}")
        if int(sizes.sum()) + len(self.pcp) != self.nr_free:
            raise KernelBug(
                f"nr_free is {self.nr_free}, blocks and per-cpu list have {int(sizes.sum())}+{len(self.pcp)}"
            )
        buddies = heads ^ sizes
        whole = (orders < MAX_ORDER) & (buddies < self._nr_frames)
        if bool((self.head_order[buddies[whole]] == orders[whole] + 1).any()):
            raise KernelBug("two free buddies are not merged")
        for order in range(MAX_ORDER + 1):
            if not set(heads[orders == order].tolist()) <= set(self._lists[order]):
                raise KernelBug(f"a free block of order {order} is in no list")
        if len(set(self.pcp)) != len(self.pcp) or bool(self._in_blocks(self.head_order)[self.pcp].any()):
            raise KernelBug("a frame is on the per-cpu list twice, or free in a block as well")
