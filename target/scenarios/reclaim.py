"""Memory that is short: pages of a file that reclaim drops, pages that go to the swap file, and the OOM killer."""

from __future__ import annotations

from pathlib import Path

from shared.client import Process
from shared.uapi.mman import Madv, Map
from shared.uapi.page import PAGE_SIZE
from target.child import Child, describe_wait_status
from target.scenario import Beats, Note, Scenario, Step
from target.scenarios.files import open_file
from target.stage import PRIVATE_ANONYMOUS, READ_WRITE, Stage

_PAGES = 4
_PIECE_BYTES = 16 << 20
_MOST_KB = 2 << 20
"""In a larger machine the OOM killer would take long to come."""


def _rows(text: str) -> dict[str, int]:
    """Return the rows of a meminfo, most of them in KiB."""
    rows = (line.split() for line in text.splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows}


def meminfo(process: Process) -> dict[str, int]:
    """Return the rows of /proc/meminfo, in KiB."""
    return _rows(process.read_proc("meminfo").decode())


def _host_free_kb() -> int:
    """Return MemAvailable of the real machine, in KiB."""
    return _rows(Path("/proc/meminfo").read_text()).get("MemAvailable", 0)


def _swapped(stage: Stage) -> str:
    rows = meminfo(stage.process)
    return f"The swap file holds {rows['SwapTotal'] - rows['SwapFree']} KiB."


def _play_reclaim(stage: Stage) -> Beats:
    page, process = stage.window.page, stage.process
    with open_file(stage) as (path, descriptor):
        yield Step(
            f"mmap of a real file, {path}, {_PAGES} pages at {page(0):#x}, MAP_SHARED, and a read of each page: "
            f"{_PAGES} entries ALLOCATED and MAPPED, with frames of the page cache."
        )
        start = stage.map_in_window(0, _PAGES, flags=Map.SHARED, fd=descriptor)
        for index in range(_PAGES):
            process.mem.load_u8(page(index))
        yield Note(f"Now: {stage.frames(start, _PAGES)}")

        yield Step(
            "madvise(MADV_PAGEOUT) of the first two pages. Reclaim takes their frames, as it does when memory is "
            "short. The file has the same bytes: nothing is written, the frames are free. The two entries lose MAPPED "
            "and pfn. They stay ALLOCATED."
        )
        process.madvise(start, 2 * PAGE_SIZE, Madv.PAGEOUT)
        yield Note(f"Now: {stage.frames(start, _PAGES)}")

        yield Step(
            f"A read at {page(0):#x}. It faults. The page is not in the page cache any more: the kernel reads the file "
            "again (a major fault), and the entry gets a frame. Its neighbour may come with it (fault-around)."
        )
        process.mem.load_u8(page(0))
        yield Note(f"Now: {stage.frames(start, _PAGES)}")


def _play_swap(stage: Stage) -> Beats:
    page, process = stage.window.page, stage.process
    yield Step(
        f"mmap {_PAGES} pages at {page(0):#x} and write to each: {_PAGES} entries MAPPED. No file has these bytes: "
        "their frames cannot simply be dropped."
    )
    start = stage.map_and_write(_PAGES, "swapped")
    yield Note(f"Now: {stage.frames(start, _PAGES)}")
    if not meminfo(process)["SwapTotal"]:
        yield Note(
            "This kerneld has no swap file, so that reclaim cannot take these pages. `kerneld start --swap 64M` has "
            "one: there this scenario goes on."
        )
        return

    yield Step(
        "madvise(MADV_PAGEOUT) of the first two pages. Reclaim writes them to the swap file and takes their frames. "
        "An entry in the page table now has a swap slot in place of a frame. In the table the two lose MAPPED and pfn. "
        "They stay ALLOCATED and ANONYMOUS."
    )
    process.madvise(start, 2 * PAGE_SIZE, Madv.PAGEOUT)
    yield Note(f"Now: {stage.frames(start, _PAGES)}. {_swapped(stage)}")

    yield Step(
        f"A read at {page(0):#x}. It faults, and the kernel reads the page from the swap file (a major fault). The "
        "entry is MAPPED again. Its frame is any free one: the pfn is another, the bytes are the same."
    )
    text = process.mem[start : start + 7].decode()
    yield Note(f'Memory reads "{text}". Now: {stage.frames(start, _PAGES)}. {_swapped(stage)}')

    yield Step("munmap: frames and swap slots go back. A swapped page is given up without being read.")
    process.munmap(start, _PAGES * PAGE_SIZE)
    yield Note(_swapped(stage))


def _why_no_oom(process: Process) -> str:
    """Return why memory is not used up here; "" if it is."""
    if not process.is_superuser:
        return "only root and the user that runs kerneld use up its memory in this tour"
    rows = meminfo(process)
    total = rows["MemTotal"] + rows["SwapTotal"]
    if total > _MOST_KB or _host_free_kb() < 2 * total:
        return (
            f"this machine has {total >> 10} MiB with its swap file, which the host would have to give. `kerneld start "
            "--ram 256M` is a small one"
        )
    if rows["MemAvailable"] + rows["SwapFree"] < total // 2:
        return "other processes use most of this machine: the OOM killer could choose one of them"
    return ""


def _play_oom(stage: Stage) -> Beats:
    page, process = stage.window.page, stage.process
    why = _why_no_oom(process)
    if why:
        yield Note(f"Skipped: {why}.")
        return

    def use_up() -> str:
        while True:
            start = process.mmap(0, _PIECE_BYTES, READ_WRITE, PRIVATE_ANONYMOUS)
            process.madvise(start, _PIECE_BYTES, Madv.POPULATE_WRITE)

    def free_mb() -> int:
        return meminfo(process)["MemFree"] >> 10

    yield Step(f"mmap {_PAGES} pages at {page(0):#x} and write to each: {_PAGES} entries MAPPED.")
    stage.map_and_write(_PAGES, "parent")
    yield Note(f"Now: {stage.frames(page(0), _PAGES)}. {free_mb()} MiB are free.")

    yield Step(
        "fork, and the child maps and writes 16 MiB again and again. Soon few frames are free: reclaim takes frames "
        "that were not used for long (of files, and with a swap file any), also from this process. At last it finds "
        "none. Then the OOM killer chooses the process with the most pages, and kills it: SIGKILL."
    )
    with Child(process, {"use up": use_up}) as child:
        child.order("use up")
        yield Note(describe_wait_status(child.pid, child.wait()))
    yield Note(f"Now: {stage.frames(page(0), _PAGES)}. {free_mb()} MiB are free.")

    yield Step(
        f"The parent reads its {_PAGES} pages. It has lost nothing: a page that reclaim has taken comes back from the "
        "swap file. All its entries are MAPPED."
    )
    texts = {process.mem[page(index) : page(index) + 6].decode() for index in range(_PAGES)}
    yield Note(f"Memory reads {', '.join(sorted(texts))}. Now: {stage.frames(page(0), _PAGES)}")


RECLAIM = Scenario(
    "reclaim",
    "Reclaim of a file's pages",
    "A frame with a page of a file can be taken at any time: the next access reads the file again.",
    _play_reclaim,
)
SWAP = Scenario(
    "swap",
    "Swap",
    "A page without a file is written to the swap file before its frame is taken. The next access brings it back.",
    _play_swap,
)
OOM = Scenario(
    "oom",
    "Out of memory",
    "mmap promises more than there is. When no frame can be found, the process with the most pages is killed.",
    _play_oom,
)
