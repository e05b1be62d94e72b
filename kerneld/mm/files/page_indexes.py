"""Maps and sets of the page indexes of a file, for files with millions of pages.

A dict or set of Python moves all of its entries when it has no more room, and a set also when it has lost many. With
three million pages, one page more may take 200 ms. So the entries lie in nodes, each for `NODE_INDEXES` indexes in a
row, and only one node is moved at a time. The indexes of a range are found without a look at all others. A node of a
set is a number with a bit for each index: Python's collector of garbage goes through all that a set has, and for the
sets of 4 GiB of memory, young at the same time, it took 80 ms. It passes over a number. Answers to
Linux v6.8 include/linux/xarray.h, as address_space.i_pages and its marks use it. Knows nothing about pages.

Invariant: no node is empty.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby, repeat
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

_NODE_SHIFT = 12
NODE_INDEXES = 1 << _NODE_SHIFT
_IN_NODE = NODE_INDEXES - 1
_NODE_BYTES = NODE_INDEXES // 8
_FEW = 24
"""Up to so many indexes of a node are taken one by one, more with numpy."""
_MOST_FOUND = 64
"""The most ranges whose numbers are kept."""
_NOT_FOUND = -1, np.zeros(0, dtype=np.int64)
_Node = TypeVar("_Node", dict[int, int], int)


class _Indexes(Generic[_Node]):
    """What maps and sets have in common."""

    __slots__ = ("_nodes",)

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {}

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def clear(self) -> None:
        """Remove all."""
        self._nodes.clear()

    def spans(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the parts of [first, last) that have a node each, in order."""
        low, high, nodes = first >> _NODE_SHIFT, last - 1 >> _NODE_SHIFT, self._nodes
        if high - low < len(nodes):
            numbers = [number for number in range(low, high + 1) if number in nodes]
        else:
            numbers = sorted(number for number in nodes if low <= number <= high)
        return [(max(first, number << _NODE_SHIFT), min(last, number + 1 << _NODE_SHIFT)) for number in numbers]

    def between(self, first: int, last: int) -> Iterator[int]:
        """Yield the indexes of [first, last) in order. Others may be added or removed meanwhile."""
        for low, high in self.spans(first, last):
            node = self._nodes.get(low >> _NODE_SHIFT)
            if node is not None:
                yield from self._sorted(node, low, high)

    def _sorted(self, node: _Node, low: int, high: int) -> list[int]:
        """Return the indexes of a node that are in [low, high), which is a part of the node's, in order."""
        raise NotImplementedError


class IndexMap(_Indexes[dict[int, int]]):
    """A number for each index."""

    __slots__ = ("_found", "version")

    def __init__(self) -> None:
        super().__init__()
        self.version = 0
        """It is another one after each change."""
        self._found: dict[tuple[int, int], tuple[int, npt.NDArray[np.int64]]] = {}
        """What `numbers` has found, with the version."""

    def clear(self) -> None:
        """Remove all."""
        super().clear()
        self.version += 1

    def __len__(self) -> int:
        return sum(map(len, self._nodes.values()))

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._nodes.values())

    def __contains__(self, index: int) -> bool:
        node = self._nodes.get(index >> _NODE_SHIFT)
        return node is not None and index in node

    def _sorted(self, node: dict[int, int], low: int, high: int) -> list[int]:
        return sorted(node if high - low == NODE_INDEXES else (i for i in node if low <= i < high))

    def get(self, index: int) -> int | None:
        """Return the number of an index, or None."""
        node = self._nodes.get(index >> _NODE_SHIFT)
        return None if node is None else node.get(index)

    def run(self, first: int, last: int) -> list[int | None]:
        """Return the number of each index of [first, last), or None."""
        if first >> _NODE_SHIFT != last - 1 >> _NODE_SHIFT:
            return list(map(self.get, range(first, last)))
        node = self._nodes.get(first >> _NODE_SHIFT)
        return [None] * (last - first) if node is None else list(map(node.get, range(first, last)))

    def numbers(self, first: int, last: int) -> npt.NDArray[np.int64]:
        """Return the number of each index of [first, last), or -1. The array is not to be changed."""
        version, found = self._found.get((first, last), _NOT_FOUND)
        if version == self.version:
            return found
        found = np.full(last - first, -1, dtype=np.int64)
        for key in range(first >> _NODE_SHIFT, (last - 1 >> _NODE_SHIFT) + 1):
            node = self._nodes.get(key)
            if node is not None:
                low, high = max(first, key << _NODE_SHIFT), min(last, key + 1 << _NODE_SHIFT)
                found[low - first : high - first] = list(map(node.get, range(low, high), repeat(-1)))
        if len(self._found) >= _MOST_FOUND:
            self._found.clear()
        self._found[first, last] = self.version, found
        return found

    def __getitem__(self, index: int) -> int:
        return self._nodes[index >> _NODE_SHIFT][index]

    def __setitem__(self, index: int, number: int) -> None:
        self.version += 1
        node = self._nodes.get(index >> _NODE_SHIFT)
        if node is None:
            self._nodes[index >> _NODE_SHIFT] = {index: number}
        else:
            node[index] = number

    def __delitem__(self, index: int) -> None:
        self.pop(index)

    def pop(self, index: int) -> int:
        """Remove an index, and return its number. Raises KeyError."""
        self.version += 1
        node = self._nodes[index >> _NODE_SHIFT]
        number = node.pop(index)
        if not node:
            del self._nodes[index >> _NODE_SHIFT]
        return number

    def pop_some(self, count: int) -> tuple[list[int], list[int]]:
        """Remove `count` indexes, or all if there are fewer. Return them and their numbers."""
        self.version += 1
        taken: list[tuple[int, int]] = []
        while self._nodes and len(taken) < count:
            key, node = self._nodes.popitem()
            taken += [node.popitem() for _ in range(min(count - len(taken), len(node)))]
            if node:
                self._nodes[key] = node
        return [index for index, _ in taken], [number for _, number in taken]

    def values(self) -> Iterator[int]:
        """Yield all numbers, in the order of `__iter__`."""
        return chain.from_iterable(node.values() for node in self._nodes.values())

    def items(self) -> Iterator[tuple[int, int]]:
        """Yield each index with its number."""
        return chain.from_iterable(node.items() for node in self._nodes.values())

    def update(self, indexes: list[int], numbers: list[int]) -> None:
        """Set the numbers of these indexes, at least one."""
        self.version += 1
        items, node = zip(indexes, numbers, strict=True), min(indexes) >> _NODE_SHIFT
        if node == max(indexes) >> _NODE_SHIFT:
            self._nodes.setdefault(node, {}).update(items)
            return
        for index, number in items:
            self[index] = number


class IndexSet(_Indexes[int]):
    """A set of indexes."""

    __slots__ = ()

    def __len__(self) -> int:
        return sum(map(int.bit_count, self._nodes.values()))

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(_members(node, number << _NODE_SHIFT) for number, node in self._nodes.items())

    def __contains__(self, index: int) -> bool:
        return self._nodes.get(index >> _NODE_SHIFT, 0) >> (index & _IN_NODE) & 1 != 0

    def _sorted(self, node: int, low: int, high: int) -> list[int]:
        return _members(node >> (low & _IN_NODE) & (1 << high - low) - 1, low)

    def add(self, index: int) -> None:
        """Add an index."""
        number = index >> _NODE_SHIFT
        self._nodes[number] = self._nodes.get(number, 0) | 1 << (index & _IN_NODE)

    def discard(self, index: int) -> None:
        """Remove an index, if it is there."""
        node = self._nodes.get(index >> _NODE_SHIFT, 0)
        if node >> (index & _IN_NODE) & 1:
            self._replace(index >> _NODE_SHIFT, node ^ 1 << (index & _IN_NODE))

    def difference_update(self, indexes: Iterable[int]) -> None:
        """Remove those of these indexes that are there."""
        if not self._nodes:
            return
        for number, group in groupby(indexes, _node_of):
            node = self._nodes.get(number)
            if node is not None:
                self._replace(number, node & ~_bits(list(group)))

    def _replace(self, number: int, node: int) -> None:
        """Let a node that is there be this one, or none if it is empty."""
        if node:
            self._nodes[number] = node
        else:
            del self._nodes[number]


def _node_of(index: int) -> int:
    return index >> _NODE_SHIFT


def _members(node: int, first: int) -> list[int]:
    """Return the indexes whose bits are set, in order; bit 0 is for the index `first`."""
    if node.bit_count() > _FEW:
        bits = np.frombuffer(node.to_bytes(_NODE_BYTES, "little"), dtype=np.uint8)
        found: list[int] = (np.flatnonzero(np.unpackbits(bits, bitorder="little")) + first).tolist()
        return found
    members = []
    while node:
        lowest = node & -node
        members.append(first + lowest.bit_length() - 1)
        node ^= lowest
    return members


def _bits(indexes: list[int]) -> int:
    """Return a number with the bits of these indexes of one node."""
    if len(indexes) > _FEW:
        flags = np.zeros(NODE_INDEXES, dtype=np.uint8)
        flags[np.array(indexes) & _IN_NODE] = 1
        return int.from_bytes(np.packbits(flags, bitorder="little"), "little")
    bits = 0
    for index in indexes:
        bits |= 1 << (index & _IN_NODE)
    return bits


def runs_of(indexes: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield ranges [low, high), of at most `most` indexes each, that together are the sorted indexes."""
    low = high = -1
    for index in indexes:
        if index == high and high - low < most:
            high += 1
            continue
        if high >= 0:
            yield low, high
        low, high = index, index + 1
    if high >= 0:
        yield low, high
