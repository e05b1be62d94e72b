"""execve of this machine's own programs, compared with where its own kernel puts them without randomisation."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from kerneld.fs.file_table import FileTable
from kerneld.mm.calls.access import read_remote_vm
from kerneld.mm.files.file import File
from kerneld.mm.space.pace import drain
from kerneld.mm.vm_flags import VM_WRITE
from kerneld.task.exec import Binprm, do_execve
from kerneld.task.exec_stack import Strings
from shared.uapi.page import PAGE_MASK, page_align
from tests.support.elf_files import World, new_world

PROGRAMS = sorted(
    {str(Path(path).resolve()) for path in ("/bin/true", "/bin/cat", sys.executable) if Path(path).exists()}
)


@dataclass
class Machine:
    """A world whose files are the real ones."""

    world: World
    files: FileTable
    held: list[File]

    def execve(self, path: str) -> None:
        file = self.files.open_fd(os.open(path, os.O_RDONLY))
        self.held.append(file)
        bprm = Binprm(file, path.encode(), Strings.of([path.encode()], [b"LANG=C"]))
        drain(do_execve(self.world.process, bprm, self._open_interpreter))
        while self.held:
            self.files.put_unused(self.held.pop())
        self.world.check(self.files.kept.mappings)

    def _open_interpreter(self, path: str) -> File:
        self.held.append(self.files.open_path(path, self.world.process.cred))
        return self.held[-1]


@pytest.fixture
def machine() -> Iterator[Machine]:
    with new_world(ram_bytes=32 << 20) as world:
        made = Machine(world, FileTable(world.frames), [])
        yield made
        world.process.exit_mm()
        assert len(made.files) == 0
        made.files.close()


@functools.cache
def host_maps() -> dict[str, list[tuple[int, int]]] | str:
    """Return the mappings by path of a `cat` that runs without randomisation, or why there is none to be had."""
    setarch = shutil.which("setarch")
    if setarch is None or not Path("/bin/cat").exists():
        return "no setarch or cat here"
    run = subprocess.run([setarch, "-R", "/bin/cat", "/proc/self/maps"], capture_output=True, text=True, check=False)
    if run.returncode:
        return f"setarch -R does not work here: {run.stderr.strip()}"
    found: dict[str, list[tuple[int, int]]] = {}
    for line in run.stdout.splitlines():
        fields = line.split(maxsplit=5)
        start, end = (int(field, 16) for field in fields[0].split("-"))
        found.setdefault(fields[5] if len(fields) > 5 else "", []).append((start, end))
    return found


def extent(ranges: list[tuple[int, int]]) -> tuple[int, int]:
    return min(start for start, _ in ranges), max(end for _, end in ranges)


@pytest.mark.parametrize("path", PROGRAMS)
def test_memory_holds_what_the_file_says(machine: Machine, path: str) -> None:
    """Every segment of the file, read back from the program's memory, with zeros where the file has no bytes."""
    machine.execve(path)
    mm = machine.world.mm
    assert mm.exe_path == path
    with open(path, "rb") as stream:
        elf = ELFFile(stream)
        loads = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
        low = min(segment["p_vaddr"] & PAGE_MASK for segment in loads)
        bias = 0 if elf["e_type"] == "ET_EXEC" else min(vma.start for vma in mm.vmas) - low
        for segment in loads:
            start = bias + segment["p_vaddr"]
            filesz, memsz = segment["p_filesz"], segment["p_memsz"]
            assert read_remote_vm(mm, start, filesz) == segment.data()
            assert read_remote_vm(mm, start + filesz, memsz - filesz) == bytes(memsz - filesz)
            vma = mm.vmas.lookup(start)
            assert vma is not None
            assert bool(vma.vm_flags & VM_WRITE) is bool(segment["p_flags"] & 2)
        assert mm.brk == page_align(bias + max(segment["p_vaddr"] + segment["p_memsz"] for segment in loads))


def test_addresses_are_those_of_the_host(machine: Machine) -> None:
    host = host_maps()
    if isinstance(host, str):
        pytest.skip(host)
    path = str(Path("/bin/cat").resolve())
    machine.execve(path)
    mm = machine.world.mm
    ours: dict[str, list[tuple[int, int]]] = {}
    for vma in mm.vmas:
        name = vma.file.path if vma.file is not None else "[stack]" if vma.start <= mm.start_stack < vma.end else ""
        ours.setdefault(name, []).append((vma.start, vma.end))
    assert extent(ours[path]) == extent(host[path])
    interpreter = next(name for name in ours if name not in ("", "[stack]", path))
    assert extent(ours[interpreter]) == extent(host[interpreter])
    assert extent(host["[stack]"])[1] == extent(ours["[stack]"])[1]
    assert mm.brk == extent(host["[heap]"])[0]


def test_one_program_after_another_leaves_no_frame_and_no_file_behind(machine: Machine) -> None:
    machine.execve(PROGRAMS[0])
    machine.files.kept.drop_all()
    free, files = machine.world.frames.free_pages, len(machine.files)
    for path in (*PROGRAMS, PROGRAMS[0]):
        machine.execve(path)
    machine.files.kept.drop_all()
    assert (machine.world.frames.free_pages, len(machine.files)) == (free, files)
