"""The ordered map of the VMAs of an address space: find by address, neighbours, gaps.

Answers to the maple tree as Linux v6.8 mm/mmap.c uses it, and to mm/mmap.c:unmapped_area_topdown().

Invariants: VMAs are disjoint and sorted; each chunk of the tree is not empty (unless it is the only one); `_firsts[i]`
is 0 for the first chunk, else above the start of chunk i - 1's last VMA (the end of it may be higher) and not above
that of chunk i's first; `_gaps[i][j]` is never less than the gap in front of VMA j of chunk i, and `_max_gaps[i]` never
less than the largest of `_gaps[i]`.

The tree is a list of chunks of at most 2 * CHUNK VMAs: an insertion moves one chunk, and a search for a gap skips whole
chunks by their largest gap, so that a pair of mmap and munmap costs the same among ten VMAs and among 60,000. A gap
that becomes smaller may stay noted as it was: the search that comes to it notes what it finds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from kerneld.errors import KernelBug
from kerneld.mm.space.vma import STACK_GUARD_GAP_BYTES, Vma, vm_start_gap
from kerneld.mm.vm_flags import VM_GROWSDOWN, VM_LOCKED
from shared.uapi.page import PAGE_SIZE, Vaddr

CHUNK = 128


class VmaTree:
    """The VMAs of one address space, by address."""

    def __init__(self) -> None:
        self._chunks: list[list[Vma]] = [[]]
        self._starts: list[list[Vaddr]] = [[]]
        self._gaps: list[list[int]] = [[]]
        """The gap in front of each VMA in bytes, or more."""
        self._firsts: list[Vaddr] = [0]
        self._max_gaps: list[int] = [0]
        self.count = 0
        """How many VMAs there are (Linux: mm->map_count)."""

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Vma]:
        for chunk in self._chunks:
            yield from chunk

    def __reversed__(self) -> Iterator[Vma]:
        for chunk in reversed(self._chunks):
            yield from reversed(chunk)

    def check(self) -> None:
        """Check the tree's own invariants, those of the chunks. Raises KernelBug."""
        if not all(self._chunks) and self._chunks != [[]]:
            raise KernelBug("an empty chunk stands among others")
        lists = (self._chunks, self._starts, self._gaps, self._firsts, self._max_gaps)
        if len({len(each) for each in lists}) != 1 or list(map(len, self._gaps)) != list(map(len, self._chunks)):
            raise KernelBug("the lists of chunks differ in length")
        if self.count != sum(map(len, self._chunks)):
            raise KernelBug(f"the tree counts {self.count} VMAs and has {sum(map(len, self._chunks))}")
        if self._firsts[0] or self._firsts != sorted(self._firsts):
            raise KernelBug("the chunks do not begin at 0, or not one behind the other")
        end, last = 0, -1
        for number, chunk in enumerate(self._chunks):
            if len(chunk) > 2 * CHUNK or self._starts[number] != [vma.start for vma in chunk]:
                raise KernelBug(f"chunk {number} is too long, or its VMAs start elsewhere than noted")
            if chunk and not last < self._firsts[number] <= chunk[0].start:
                raise KernelBug(f"chunk {number} starts at {chunk[0].start:#x}, noted is {self._firsts[number]:#x}")
            last = chunk[-1].start if chunk else last
            for vma, noted in zip(chunk, self._gaps[number], strict=True):
                if not vma.start - end <= noted <= self._max_gaps[number]:
                    raise KernelBug(f"the gap below {vma} is larger than noted, or than the largest of chunk {number}")
                end = vma.end

    def _place(self, vaddr: Vaddr) -> tuple[int, int]:
        """Return chunk and position of the first VMA that starts after `vaddr`; position may be the chunk's length."""
        number = bisect_right(self._firsts, vaddr) - 1
        return number, bisect_right(self._starts[number], vaddr)

    def is_locked(self, vaddr: Vaddr) -> bool:
        """Return whether the memory at an address is locked."""
        vma = self.lookup(vaddr)
        return vma is not None and vma.vm_flags & VM_LOCKED != 0

    def lookup(self, vaddr: Vaddr) -> Vma | None:
        """Return the VMA that covers an address, or None (Linux: vma_lookup())."""
        # This is _place(), inlined because every fault calls it.
        number = bisect_right(self._firsts, vaddr) - 1
        position = bisect_right(self._starts[number], vaddr)
        if position:
            vma = self._chunks[number][position - 1]
        elif number:
            # The last VMA of the chunk before may reach over the place where this chunk once began.
            vma = self._chunks[number - 1][-1]
        else:
            return None
        return vma if vaddr < vma.end else None

    def find(self, vaddr: Vaddr) -> Vma | None:
        """Return the first VMA that ends after an address, whether it covers it or lies above (Linux: find_vma())."""
        number = bisect_right(self._firsts, vaddr) - 1  # _place(), inlined as in lookup().
        position = bisect_right(self._starts[number], vaddr)
        if position or number:
            vma = self._chunks[number][position - 1] if position else self._chunks[number - 1][-1]
            if vaddr < vma.end:
                return vma
        return self._at(number, position)

    def _at(self, number: int, position: int) -> Vma | None:
        chunk = self._chunks[number]
        if position < len(chunk):
            return chunk[position]
        return self._chunks[number + 1][0] if number + 1 < len(self._chunks) else None

    def _before(self, number: int, position: int) -> Vma | None:
        if position:
            return self._chunks[number][position - 1]
        return self._chunks[number - 1][-1] if number else None

    def find_intersection(self, start: Vaddr, end: Vaddr) -> Vma | None:
        """Return the first VMA that shares an address with [start, end) (Linux: find_vma_intersection()), or None."""
        vma = self.find(start)
        return vma if vma is not None and vma.start < end else None

    def following(self, vma: Vma) -> Vma | None:
        """Return the next VMA above one in the tree, or None."""
        number, position = self._place(vma.start)
        return self._at(number, position)

    def previous(self, vma: Vma) -> Vma | None:
        """Return the next VMA below one in the tree, or None."""
        number, position = self._place(vma.start)
        return self._before(number, position - 1)

    def neighbours(self, vma: Vma) -> tuple[Vma | None, Vma | None]:
        """Return the VMAs right below and right above one in the tree; None where there is none."""
        number, position = self._place(vma.start)
        return self._before(number, position - 1), self._at(number, position)

    def preceding(self, vaddr: Vaddr) -> Vma | None:
        """Return the last VMA that starts below an address, or None."""
        number, position = self._place(vaddr - 1) if vaddr else (0, 0)
        return self._before(number, position)

    def around(self, vaddr: Vaddr) -> tuple[Vma | None, Vma | None]:
        """Return the VMAs below and above an address that no VMA covers; None where there is none."""
        number, position = self._place(vaddr)
        return self._before(number, position), self._at(number, position)

    def overlapping(self, start: Vaddr, end: Vaddr) -> Iterator[Vma]:
        """Yield the VMAs that share an address with [start, end), in order. The tree must not change meanwhile."""
        number, position = self._place(start)
        before = self._before(number, position)
        if before is not None and before.end > start and before.start < end:
            yield before
        while number < len(self._chunks):
            chunk = self._chunks[number]
            while position < len(chunk):
                vma = chunk[position]
                if vma.start >= end:
                    return
                yield vma
                position += 1
            number, position = number + 1, 0

    def insert(self, vma: Vma) -> None:
        """Add a VMA that overlaps none."""
        number, position = self._place(vma.start)
        chunk, gaps = self._chunks[number], self._gaps[number]
        if position < len(chunk):
            # Two gaps and the new VMA are what the gap in front of the next VMA was.
            after = chunk[position].start - vma.end
            gaps.insert(position, gaps[position] - after - (vma.end - vma.start))
            gaps[position + 1] = after
            chunk.insert(position, vma)
        elif position:
            # The new VMA takes a part of the gap in front of the next VMA, which another chunk notes, or no chunk.
            gap = vma.start - chunk[-1].end
            gaps.append(gap)
            if gap > self._max_gaps[number]:
                self._max_gaps[number] = gap
            chunk.append(vma)
        else:
            gaps.append(0)
            chunk.append(vma)
            self._note_gap(number, position)
        self._starts[number].insert(position, vma.start)
        self.count += 1
        if len(chunk) > 2 * CHUNK:
            self._split_chunk(number)

    def remove(self, vma: Vma) -> None:
        """Take a VMA out of the tree."""
        number, position = self._place(vma.start)
        position -= 1
        gaps = self._gaps[number]
        wider = gaps.pop(position) + vma.end - vma.start
        del self._chunks[number][position]
        del self._starts[number][position]
        self.count -= 1
        if position < len(gaps):
            gaps[position] += wider
            if gaps[position] > self._max_gaps[number]:
                self._max_gaps[number] = gaps[position]
            return
        if not gaps and len(self._chunks) > 1:
            # The next chunk becomes the first, which begins at 0, if it was the first.
            del self._chunks[number], self._starts[number], self._gaps[number], self._max_gaps[number]
            del self._firsts[number or 1]
            number, position = min(number, len(self._chunks) - 1), 0
        self._note_gap(number, position)

    def move(self, vma: Vma, start: Vaddr, end: Vaddr) -> None:
        """Give a VMA of the tree other bounds that keep its place in the order."""
        old_start, old_end = vma.start, vma.end
        if start == old_start and end >= old_end:
            vma.end = end
            return
        number, position = self._place(old_start)
        position -= 1
        vma.start, vma.end = start, end
        self._starts[number][position] = start
        if start < self._firsts[number]:
            self._firsts[number] = start
        if start > old_start:
            self._note_gap(number, position)
            if number + 1 < len(self._firsts) and start >= self._firsts[number + 1]:
                # The VMA has grown over the place of one that was the first of the next chunk.
                self._firsts[number + 1] = self._starts[number + 1][0]
        if end < old_end:
            self._note_gap(number, position + 1)

    def _note_gap(self, number: int, position: int) -> None:
        """Note the gap in front of the VMA at this position (or the next chunk's first). It may have grown."""
        chunk = self._chunks[number]
        if position >= len(chunk):
            number, position = number + 1, 0
            if number >= len(self._chunks):
                return
            chunk = self._chunks[number]
        if chunk:
            before = chunk[position - 1] if position else self._before(number, 0)
            gap = chunk[position].start - (before.end if before is not None else 0)
            self._gaps[number][position] = gap
            if gap > self._max_gaps[number]:
                self._max_gaps[number] = gap

    def _split_chunk(self, number: int) -> None:
        vmas, starts, gaps = self._chunks[number], self._starts[number], self._gaps[number]
        self._chunks[number : number + 1] = [vmas[:CHUNK], vmas[CHUNK:]]
        self._starts[number : number + 1] = [starts[:CHUNK], starts[CHUNK:]]
        self._gaps[number : number + 1] = [gaps[:CHUNK], gaps[CHUNK:]]
        self._firsts.insert(number + 1, self._starts[number + 1][0])
        self._max_gaps.insert(number + 1, self._max_gaps[number])

    def find_gap_below(self, low: Vaddr, high: Vaddr, length: int) -> Vaddr | None:
        """Return the start of the highest free range of `length` bytes in [low, high), or None.

        A gap in front of a VMA that grows down is shorter by the guard gap. If it would be long enough without the
        guard gap, the search continues below the guard gap, even if other VMAs lie in the guard gap.
        Source: Linux v6.8 mm/mmap.c:unmapped_area_topdown(), its retry with a lower high_limit.
        """
        place: tuple[int, int] | None = self._place(high - 1)
        while place is not None:
            number, position = place
            before, after = self._before(number, position), self._at(number, position)
            end = before.end if before is not None else 0
            bottom = end if end > low else low
            top = high if after is None else min(high, vm_start_gap(after))
            if top - bottom >= length:
                return top - length
            if end <= low:
                return None
            if after is not None and after.vm_flags & VM_GROWSDOWN and min(high, after.start) - bottom >= length:
                high = top
            if position < len(self._gaps[number]):
                self._gaps[number][position] = self._chunks[number][position].start - end
            place = self._place_of_gap(number, position, length)
        return None

    def _place_of_gap(self, number: int, position: int, length: int) -> tuple[int, int] | None:
        """Return chunk and position of the last VMA before a place that may have so long a gap in front; or None."""
        while True:
            gaps = self._gaps[number]
            for index in range(position - 1, -1, -1):
                if gaps[index] >= length:
                    return number, index
            if position == len(gaps):
                self._max_gaps[number] = max(gaps, default=0)
            number -= 1
            while number >= 0 and self._max_gaps[number] < length:
                number -= 1
            if number < 0:
                return None
            position = len(self._gaps[number])

    def find_gap_above(self, low: Vaddr, high: Vaddr, length: int) -> Vaddr | None:
        """Return the start of the lowest free range of `length` bytes in [low, high), or None.

        It is called rarely (MAP_32BIT, and if no space is left below mmap_base), so it goes from VMA to VMA.
        Source: Linux v6.8 mm/mmap.c:unmapped_area().
        """
        bottom = low
        for vma in self.overlapping(max(0, low - PAGE_SIZE), high + STACK_GUARD_GAP_BYTES):
            if min(high, vm_start_gap(vma)) - bottom >= length:
                return bottom
            bottom = max(bottom, vma.end)
        return bottom if high - bottom >= length else None
