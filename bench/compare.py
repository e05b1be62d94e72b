"""Compare the instructions of the small calls with those of another revision: `python -m bench.compare REV`.

Counts both here and now, each by the handlers of this working tree, and says which call became dearer. Exit status 1:
a call became dearer by `DEARER` or more; 2: they could not be counted.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.counting import Counts, count, find_counter
from bench.machine import ROOT
from shared.interrupts import ending_by_signals

DEARER = 0.05


@contextlib.contextmanager
def worktree(revision: str, repository: Path = ROOT) -> Iterator[Path]:
    """Check a revision out into a temporary directory, which is gone at the end. Raises OSError for none."""
    git = ["git", "-C", str(repository), "worktree"]
    with tempfile.TemporaryDirectory(prefix="kerneld-bench-") as directory:
        tree = Path(directory) / "tree"
        # What looks like an option is no revision.
        added = subprocess.run(
            [*git, "add", "--detach", "--quiet", str(tree), f"{revision}^{{commit}}"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if added.returncode:
            raise OSError(f"no revision '{revision}': {added.stderr.strip()}")
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=False)


def lines(before: Counts, after: Counts) -> Iterator[str]:
    """Yield a line for each call of both: the instructions before and after, and the change; dearer ones are named."""
    for call in before.keys() & after.keys():
        change = after[call] / before[call] - 1
        said = "  dearer" if is_dearer(before[call], after[call]) else ""
        yield f"{call:<10} {before[call]:>12,} {after[call]:>12,} {change:>+8.1%}{said}"


def is_dearer(before: int, after: int) -> bool:
    """Return whether a call takes so many more instructions that somebody should know."""
    return after >= before * (1 + DEARER)


def main(arguments: list[str]) -> int:
    """Print the comparison and return the exit status."""
    if len(arguments) != 1:
        print("bench: name one revision: make bench-compare REV=main", file=sys.stderr)
        return 2
    try:
        counter = find_counter()
        with worktree(arguments[0]) as tree:
            before = count(tree, counter).calls
        after = count(ROOT, counter).calls
    except OSError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    print(f"instructions of one call ({counter}): {arguments[0]}, the working tree, the change")
    for line in sorted(lines(before, after)):
        print(line)
    return int(any(is_dearer(before[call], after[call]) for call in before.keys() & after.keys()))


if __name__ == "__main__":
    with ending_by_signals("bench"):
        sys.exit(main(sys.argv[1:]))
