"""mprotect: memory with a frame but without rights, and the signal that ends a process which accesses it."""

from __future__ import annotations

from shared.uapi.mman import Prot
from shared.uapi.page import PAGE_SIZE
from target.child import Child, describe_wait_status
from target.scenario import Beats, Note, Scenario, Step
from target.stage import READ_WRITE, Stage

_PAGES = 4
_SECRET = "a secret"


def _play(stage: Stage) -> Beats:
    page, process, mem = stage.window.page, stage.process, stage.process.mem

    def read_secret() -> str:
        return mem[page(1) : page(1) + len(_SECRET)].decode()

    yield Step(f"mmap {_PAGES} pages at {page(0):#x} and write to each: {_PAGES} entries MAPPED.")
    stage.map_and_write(_PAGES, _SECRET)

    yield Step(
        f"mprotect(PROT_NONE) on [{page(1):#x}, {page(3):#x}). The two pages lose all rights, which splits the VMA in "
        "three. Their frames and what is in them stay, so the entries stay MAPPED with the same pfn: the table tells "
        "what is there, not what is allowed."
    )
    process.mprotect(page(1), 2 * PAGE_SIZE, Prot.NONE)
    yield Note(f"Now: {stage.frames(page(0), _PAGES)}")

    yield Step(
        f"A child is forked and reads at {page(1):#x}. The kernel finds a VMA that allows nothing and sends SIGSEGV: "
        "the child dies of it, a real process of a real signal. In this process's table nothing moves."
    )
    with Child(process, {"read": read_secret}) as child:
        answer = child.order("read")
        status = child.wait()
    if answer:
        yield Note(f'The child read "{answer}", which it should not have.')
    yield Note(describe_wait_status(child.pid, status))

    yield Step(
        f"mprotect(PROT_READ | PROT_WRITE) gives the rights back; the VMAs merge. A read at {page(1):#x} finds all as "
        "it was."
    )
    process.mprotect(page(1), 2 * PAGE_SIZE, READ_WRITE)
    yield Note(f'Memory reads "{read_secret()}". Now: {stage.frames(page(0), _PAGES)}')


PROTECT = Scenario(
    "protect",
    "mprotect and SIGSEGV",
    "Rights belong to the VMA and are enforced by the entry: a page can have a frame and still be out of reach.",
    _play,
)
