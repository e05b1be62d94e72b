"""The table of `strace -c`: the calls, by their time. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kerneld.commands.trace.calls.printer import Tally
from shared.trace.text import call_name

_RULE = "------ ----------- ----------- --------- --------- ----------------"


def summary(tallies: Mapping[int, Tally]) -> Iterator[str]:
    """Yield the lines, the longest time first."""
    total = Tally()
    for tally in tallies.values():
        total.calls += tally.calls
        total.errors += tally.errors
        total.nanoseconds += tally.nanoseconds
    yield "% time     seconds  usecs/call     calls    errors syscall"
    yield _RULE
    for nr, tally in sorted(tallies.items(), key=lambda item: (-item[1].nanoseconds, item[0])):
        yield _row(tally, total.nanoseconds, call_name(nr))
    yield _RULE
    yield _row(total, total.nanoseconds, "total")


def _row(tally: Tally, all_nanoseconds: int, name: str) -> str:
    share = 100 * tally.nanoseconds / all_nanoseconds if all_nanoseconds else 0.0
    each = tally.nanoseconds // 1000 // tally.calls if tally.calls else 0
    errors = str(tally.errors) if tally.errors else ""
    return f"{share:6.2f} {tally.nanoseconds / 1e9:11.6f} {each:11} {tally.calls:9} {errors:>9} {name}"
