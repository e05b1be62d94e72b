"""execve and exit: the address space of a real program replaces the old one; then the process ends."""

from __future__ import annotations

import os
import shutil
import struct

from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import MAX_SPT_RANGE
from shared.uapi.syscalls import Access
from target.proc_maps import Mapping, read_maps
from target.scenario import Beats, Note, Scenario, Step, Watch
from target.stage import Stage

_PAGES = 4
_CANDIDATES = ("true", "ls", "cat")
_ELF_HEADER = struct.Struct("<4s5B7xHH")
"""The head of an Elf64_Ehdr: magic, class, data, version, OS ABI, ABI version, padding, type, machine."""
_ELFCLASS64, _ELFDATA2LSB, _EM_X86_64 = 2, 1, 62


def is_x86_64_elf(head: bytes) -> bool:
    """Return whether a file that begins with `head` is an x86-64 ELF file."""
    if len(head) < _ELF_HEADER.size:
        return False
    magic, elf_class, encoding, *_, machine = _ELF_HEADER.unpack_from(head)
    return bool(magic == b"\x7fELF" and (elf_class, encoding, machine) == (_ELFCLASS64, _ELFDATA2LSB, _EM_X86_64))


def find_program(names: tuple[str, ...] = _CANDIDATES) -> str | None:
    """Return the path of the first of `names` on PATH that is an x86-64 ELF file, or None."""
    for name in names:
        path = shutil.which(name)
        if path is None:
            continue
        real = os.path.realpath(path)
        with open(real, "rb") as file:
            if is_x86_64_elf(file.read(_ELF_HEADER.size)):
                return real
    return None


def _image(mappings: list[Mapping], path: str) -> list[Mapping]:
    """Return the mappings of the program's own file."""
    name = os.path.basename(path)
    return [m for m in mappings if os.path.basename(m.name) == name]


def _play_exec(stage: Stage) -> Beats:
    page, process = stage.window.page, stage.process
    path = find_program()
    if path is None:
        yield Note(
            f"Skipped: none of {', '.join(_CANDIDATES)} on PATH is an x86-64 ELF file, and the machine in kerneld is "
            "an x86-64."
        )
        return
    yield Step(f"mmap {_PAGES} pages at {page(0):#x} and write to each, so that there is something to lose.")
    stage.map_in_window(0, _PAGES)
    process.mem[page(0) : page(_PAGES)] = b"x" * (_PAGES * PAGE_SIZE)

    yield Step(
        f"execve of a real program, {path}. The whole address space is dropped and a new one laid out as the ELF file "
        "says: its segments, its interpreter, a new stack, an empty heap. In the window all goes to nothing. (The "
        "file is real, the pages are real; its instructions are not run: this process goes on as the tour.)"
    )
    process.execve(path, [path], ["LANG=C"])
    mappings = read_maps(process)
    yield Note("\n".join(["/proc/self/maps is now:", *(f"  {m.line}" for m in mappings)]))
    image = _image(mappings, path)
    if not image:
        return
    start, end = image[0].start, min(image[-1].end, image[0].start + MAX_SPT_RANGE)
    yield Watch(process.pid, start, end, f"the image of {path}: not ANONYMOUS, a file is behind it")
    yield from _run_image(stage, image)


def _run_image(stage: Stage, image: list[Mapping]) -> Beats:
    """Touch the new program's text and data as the processor would in its first steps."""
    process = stage.process
    text = next((m for m in image if "x" in m.rights), None)
    if text is not None:
        yield Step(
            f"An instruction fetch at {text.start:#x}, in the program's text ({text.rights}). The page comes out of "
            "the file through the page cache; its neighbours may come with it (fault-around)."
        )
        process.mem.touch(text.start, PAGE_SIZE, Access.FETCH)
        yield Note(f"Now: {stage.frames(text.start, 1)}")
    data = next((m for m in image if "w" in m.rights), None)
    if data is not None:
        yield Step(
            f"A write at {data.start:#x}, in its data ({data.rights}). A program's data is a private file mapping: "
            "unless loading it has written there already, the page is copied now, and the entry has a frame of its "
            "own, which the file never sees."
        )
        process.mem.touch(data.start, PAGE_SIZE, Access.WRITE)
        yield Note(f"Now: {stage.frames(data.start, 1)}")


def _play_exit(stage: Stage) -> Beats:
    """Announce the exit. The program makes it after the end of the tour."""
    page, process = stage.window.page, stage.process
    yield Step(f"mmap {_PAGES} pages at {page(0):#x} and write to each: {_PAGES} entries MAPPED.")
    stage.map_in_window(0, _PAGES)
    process.mem[page(0) : page(_PAGES)] = b"x" * (_PAGES * PAGE_SIZE)
    yield Step(
        "exit: the address space goes as a whole. All entries lose flags and pfn; an inspector says that its target "
        "has exited, and keeps the table."
    )


EXEC = Scenario(
    "exec",
    "execve of a real program",
    "execve keeps the process and replaces its memory: after it only what the new program's file asks for is "
    "allocated.",
    _play_exec,
)
EXIT = Scenario(
    "exit",
    "exit",
    "The end of a process gives back all that it had, whether it cleaned up or not.",
    _play_exit,
    ends_process=True,
)
