"""A daemon whose requests are counted: `python -m bench.counted_daemon COUNTER start …`, as `kerneld start …`.

A request with the number COUNT begins the count, and the next one ends it. Each request in between is a piece of the
counter's with the name of its kind; `bench.counted_programs` adds them up. With `all+COUNTER` the whole daemon between
the two is one piece.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from bench.handlers import stop_clock
from bench.meters import Counter, counter
from bench.pidfds import stand_in
from kerneld.cli import cli
from kerneld.hw.paging import PF_WRITE
from kerneld.server import batch, exchange
from kerneld.syscalls import dispatch
from kerneld.syscalls.table import RESTART, find_name
from shared.uapi.mman import Map
from shared.uapi.page import Vaddr
from shared.uapi.syscalls import Nr

if TYPE_CHECKING:
    from kerneld.syscalls.answer import Answer, Call, Work

ALL = "all+"
COUNT = 0xBE9C


class Counting:
    """Counts the requests that the daemon serves between two with the number COUNT."""

    def __init__(self, name: str) -> None:
        self._is_whole = name.startswith(ALL)
        self._name = name.removeprefix(ALL)
        self._counter: Counter | None = None

    def _begin_or_end(self) -> int:
        if self._counter is None:
            self._counter = counter(self._name)
            self._counter.begin()
        else:
            if self._is_whole:
                self._counter.end("all")
            self._counter = None
        return 0

    def run(self, call: Call, nr: int) -> int | Answer | Work:
        """Run a request, as `kerneld.syscalls.dispatch.run` does, and count it."""
        if nr == COUNT:
            return self._begin_or_end()
        if self._counter is None or self._is_whole:
            return dispatch.run(call, nr)
        name = kind(call, nr)
        self._counter.begin()
        try:
            return dispatch.run(call, nr)
        finally:
            self._counter.end(name)


def kind(call: Call, nr: int) -> str:
    """Return the name of a request's kind. A fault and a mapping say of which memory, a piece that it is one."""
    if nr == RESTART:
        return f"{find_name(call.nr)}__further_piece"
    name = find_name(nr)
    if nr == Nr.FAULT and call.process.mm is not None:
        vma = call.process.mm.vmas.lookup(Vaddr(call.args[0]))
        access = "write" if call.args[1] & PF_WRITE else "read"
        return f"{name}_{access}_{'file' if vma is not None and vma.file is not None else 'anonymous'}"
    if nr == Nr.MMAP:
        return f"{name}_{'anonymous' if call.args[3] & Map.ANONYMOUS else 'file'}"
    return name


def main(arguments: list[str]) -> None:
    """Start the daemon. Its command line is what follows."""
    stop_clock()
    stand_in()
    counting = Counting(arguments[0])
    for module in (exchange, batch):
        vars(module)["run"] = counting.run
    cli(arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
