"""Equal pages are merged inside, as the host's kernel merges them: what a program sees of it, and its contents."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.native.inside import Inside

PYTHON = Path("/usr/bin/python3")
KNOBS = Path("/sys/kernel/mm/ksm")
SET = ("run", "sleep_millisecs", "pages_to_scan", "use_zero_pages", "smart_scan")
needs_python = pytest.mark.skipif(not PYTHON.exists(), reason="this host has no /usr/bin/python3")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root writes to /sys")

# It tells of its pages after each step: what smaps and ksm_stat say, and the first byte of each page.
STEPS = """
import mmap, os
PAGE, MERGEABLE, UNMERGEABLE = 4096, 12, 13
def knob(name, value=None):
    with open("/sys/kernel/mm/ksm/" + name, "r" if value is None else "w") as file:
        return file.read().strip() if value is None else file.write(str(value))
def scans(count):
    until = int(knob("full_scans")) + count
    while int(knob("full_scans")) < until:
        os.sched_yield()  # nothing tells when a scan is over
memory = mmap.mmap(-1, 16 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
def letters():
    return bytes(memory[::PAGE]).replace(bytes(1), b"0").decode()
def tell(what, counted=True):
    lines = [line.split() for line in open("/proc/self/smaps_rollup")]
    kilobytes = next(line[1] for line in lines if line[0] == "KSM:")
    stat = dict(line.split() for line in open("/proc/self/ksm_stat"))
    merged = stat["ksm_merging_pages"], open("/proc/self/ksm_merging_pages").read().strip()
    print(what, kilobytes, *(merged if counted else ()), stat["ksm_zero_pages"], letters())
for name, value in ("sleep_millisecs", 0), ("pages_to_scan", 10000), ("smart_scan", 0), ("run", 1):
    knob(name, value)
def fill(text):
    for number, letter in enumerate(text):
        memory[number * PAGE : (number + 1) * PAGE] = (b"\\0" if letter == "0" else letter.encode()) * PAGE
fill("aaabbcd0" "0aefgbbb")
memory.madvise(MERGEABLE)
scans(4)
tell("merged")
memory[0:1] = b"x"
memory[PAGE : PAGE + 1] = b"y"
tell("stored", counted=False)  # the next scan counts
if not os.fork():
    memory[2 * PAGE : 2 * PAGE + 1] = b"z"
    print("child", letters(), flush=True)
    os._exit(0)
os.wait()
scans(4)
tell("again")
memory.madvise(UNMERGEABLE, 0, 9 * PAGE)
scans(3)
tell("unmerged")
knob("use_zero_pages", 1)
memory.madvise(MERGEABLE)
scans(4)
tell("zeros")
knob("run", 2)
tell("off")
"""

EXPECTED = [
    "merged 44 11 11 0 aaabbcd00aefgbbb",
    "stored 36 0 xyabbcd00aefgbbb",
    "child xyzbbcd00aefgbbb",
    "again 36 9 9 0 xyabbcd00aefgbbb",
    "unmerged 16 4 4 0 xyabbcd00aefgbbb",
    "zeros 28 7 7 2 xyabbcd00aefgbbb",
    "off 0 0 0 0 xyabbcd00aefgbbb",
]
"""Each line: kB in smaps, pages in ksm_stat and in ksm_merging_pages, zero pages, the first byte of each page."""


@contextmanager
def settings_of_the_host() -> Iterator[dict[str, str]]:
    """Let no other suite change them meanwhile, and put them back."""
    with (KNOBS / "run").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = {name: (KNOBS / name).read_text() for name in SET}
        try:
            yield before
        finally:
            for name, value in before.items():
                (KNOBS / name).write_text(value)


def has_mergeable(smaps: Path) -> bool:
    """Return whether a process of the host has mergeable memory; no if it has ended."""
    try:
        return " mg" in smaps.read_text()
    except OSError:
        return False


def why_not_outside() -> str:
    """Return why this host cannot be the referee; nothing if it can."""
    if not os.access(KNOBS / "smart_scan", os.W_OK) or not Path("/proc/self/ksm_stat").exists():
        return "this host has no KSM, or one before Linux 6.7, or nobody may set it here"
    runs = (KNOBS / "run").read_text() != "0\n"
    if runs or any(has_mergeable(smaps) for smaps in Path("/proc").glob("[0-9]*/smaps")):
        return "other programs of this host have memory that would be merged, too"
    return ""


@needs_root
@needs_python
def test_what_a_program_sees_of_merged_pages(inside: Inside) -> None:
    if not KNOBS.exists():
        pytest.skip("a program inside opens only files that the host has too, and it has no /sys/kernel/mm/ksm")
    with settings_of_the_host() as before:
        end = inside.run([str(PYTHON), "-c", STEPS])
        assert {name: (KNOBS / name).read_text() for name in SET} == before
    assert (end.errors, end.output.splitlines()) == ("", EXPECTED)


@needs_root
@needs_python
def test_the_host_says_the_same(inside: Inside) -> None:
    reason = why_not_outside()
    if reason:
        pytest.skip(reason)
    with settings_of_the_host():
        end = inside.outside([str(PYTHON), "-c", STEPS])
    assert (end.errors, end.output.splitlines()) == ("", EXPECTED)
