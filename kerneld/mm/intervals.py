"""Things that cover ranges of page indexes, and a search for those that cover given pages.

Knows only bounds. One process may map a file 65,530 times, or cut one mapping into as many, and fork. Each VMA may
come, move or go between two searches. So neither may look at all. Answers to Linux v6.8 mm/interval_tree.c.

Differs from Linux: there is no tree. Items of the same length, to the next power of two, are in buckets by their first
page: an item of up to 2^k pages that begins in bucket b, of 2^k pages, ends in bucket b or b + 1.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TypeVar

FEW = 32
"""Up to this number of items, a loop over all of them is as fast as a search in buckets, and there are none."""
Item = TypeVar("Item")
Value = TypeVar("Value")


class Intervals(dict[Item, Value]):
    """Items, each with a value. A subclass says what pages an item covers."""

    _by_shift: dict[int, dict[int, Item | dict[Item, None]]] | None = None
    """The buckets of 2^shift pages each, by their numbers; None while there are few items. Very often a bucket has
    one item, which then stands for itself."""

    def bounds(self, item: Item) -> tuple[int, int]:
        """Return the first page that an item covers, and the page behind its last one."""
        raise NotImplementedError

    def __setitem__(self, item: Item, value: Value) -> None:
        dict.__setitem__(self, item, value)
        if self._by_shift is not None:
            self.insert(item)
        elif len(self) > FEW:
            self._by_shift = {}
            for each in self:
                self.insert(each)

    def __delitem__(self, item: Item) -> None:
        dict.__delitem__(self, item)
        if self._by_shift is not None:
            self.remove(item)
            if len(self) <= FEW // 2:
                self._by_shift = None

    def insert(self, item: Item) -> None:
        """Put an item of this dict into its bucket: after its bounds have changed."""
        if self._by_shift is None:
            return
        shift, number = self._bucket(item)
        buckets = self._by_shift.get(shift)
        if buckets is None:
            buckets = self._by_shift[shift] = {}
        there = buckets.setdefault(number, item)
        if there is item:
            return
        if isinstance(there, dict):
            there[item] = None
        else:
            buckets[number] = {there: None, item: None}

    def remove(self, item: Item) -> None:
        """Take an item out of its bucket: before its bounds change."""
        if self._by_shift is None:
            return
        shift, number = self._bucket(item)
        buckets = self._by_shift[shift]
        there = buckets[number]
        if isinstance(there, dict) and len(there) > 1:
            del there[item]
        else:
            del buckets[number]
            if not buckets:
                del self._by_shift[shift]

    def overlapping(self, first: int, last: int) -> list[Item]:
        """Return the items that cover a page of [first, last), in no order."""
        if self._by_shift is None:
            return self._those_in(self, first, last)
        found: list[Item] = []
        for items, is_inside in self._buckets_of(first, last):
            found += items if is_inside else self._those_in(items, first, last)
        return found

    def has_more(self, first: int, last: int, most: int) -> bool:
        """Return whether more than `most` items may cover a page of [first, last): by buckets, some beside it count."""
        if self._by_shift is None:
            return len(self) > most
        number = 0
        for items, _ in self._buckets_of(first, last):
            number += len(items)
            if number > most:
                return True
        return False

    def overlapping_in_parts(self, first: int, last: int, most: int) -> Iterator[list[Item]]:
        """Yield the same, some at a time: no part has been looked for in more than `most` items.

        Items may come, go and change their bounds between two parts. Those that were there at the beginning and have
        kept their bounds are found; of the others some are.
        """
        if self._by_shift is None:
            yield self._those_in(self, first, last)
            return
        for items, is_inside in self._buckets_of(first, last):
            these = list(items)
            these.reverse()
            while these:
                # To let go of hundreds of thousands at once takes tens of milliseconds.
                part = these[: -most - 1 : -1]
                del these[-most:]
                yield part if is_inside else self._those_in(part, first, last)

    def _buckets_of(self, first: int, last: int) -> Iterator[tuple[Collection[Item], bool]]:
        """Yield the items of each bucket that may have some in [first, last), and whether all of them must be."""
        assert self._by_shift is not None
        for shift, buckets in list(self._by_shift.items()):
            low, high = (first >> shift) - 1, (last - 1) >> shift
            few = high - low < len(buckets)
            for number in range(low, high + 1) if few else list(buckets):
                there = buckets.get(number)
                if there is not None:
                    is_inside = first <= number << shift and (number + 1) << shift <= last
                    yield there if isinstance(there, dict) else (there,), is_inside

    def _bucket(self, item: Item) -> tuple[int, int]:
        """Return the shift of an item's bucket, and the bucket's number."""
        first, last = self.bounds(item)
        shift = (last - first - 1).bit_length()
        return shift, first >> shift

    def _those_in(self, items: Iterable[Item], first: int, last: int) -> list[Item]:
        found = []
        for item in items:
            start, end = self.bounds(item)
            if start < last and first < end:
                found.append(item)
        return found
