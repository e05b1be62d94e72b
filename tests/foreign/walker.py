"""A foreign page-table walker: volatility3's, which investigators use on the memory images of real machines.

It knows no rights, but names the frame, and finds all that an address space maps from nothing but RAM and CR3.
"""

from __future__ import annotations

import mmap
from typing import Any

from volatility3.framework.contexts import Context
from volatility3.framework.exceptions import InvalidAddressException
from volatility3.framework.layers.intel import Intel32e
from volatility3.framework.layers.physical import BufferDataLayer

from shared.uapi.page import PAGE_SIZE
from tests.foreign.processor import NO_ADDRESS

_USER_END = 1 << 47


class _Layer(Intel32e):  # type: ignore[misc]
    """The walk itself, without two of its short cuts.

    A table of 512 equal entries counts as empty there, for the sake of speed on Windows; 2 MiB of the zero page are
    one. And its caches would keep every layer, and its memory, for ever: here a layer has a cache of its own.
    """

    _translate_entry = Intel32e._translate_entry.__wrapped__

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._tables: dict[int, Any] = {}

    def _get_valid_table(self, base_address: int) -> Any:
        table = self._tables.get(base_address)
        if table is None:
            table = self._context.layers.read(self._base_layer, base_address, self.page_size)
            self._tables[base_address] = table
        return table


class Walker:
    """Volatility's view of one address space."""

    def __init__(self, ram_fd: int, ram_bytes: int, cr3: int) -> None:
        context = Context()
        self._memory = mmap.mmap(ram_fd, ram_bytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        context.layers.add_layer(BufferDataLayer(context, "ram", "ram", self._memory))
        context.config["process.memory_layer"] = "ram"
        context.config["process.page_map_offset"] = cr3
        self._layer = _Layer(context, "process", "process")

    def translate(self, vaddr: int) -> int:
        """Return the physical address, or NO_ADDRESS where nothing is mapped."""
        try:
            return int(self._layer.translate(vaddr)[0])
        except InvalidAddressException:
            return NO_ADDRESS

    def mapped_pages(self) -> dict[int, int]:
        """Return every page that is mapped in the whole of user space, with its physical address."""
        pages = {}
        for vaddr, length, paddr, _, _ in self._layer.mapping(0, _USER_END, ignore_errors=True):
            for offset in range(0, length, PAGE_SIZE):
                pages[vaddr + offset] = paddr + offset
        return pages
