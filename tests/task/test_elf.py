"""Headers of ELF files: what is taken over, and each way to be refused."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kerneld.errors import SysError
from kerneld.mm.files.file import File
from kerneld.task.elf import ElfImage, ElfSegment, read_interpreter, read_program
from shared.uapi.mman import Prot
from shared.uapi.page import PAGE_SIZE
from tests.support.elf_files import (
    EM_386,
    ET_DYN,
    ET_REL,
    PT_GNU_STACK,
    PT_INTERP,
    PT_NOTE,
    BytesBacking,
    Elf,
    Phdr,
    R,
    W,
    World,
    X,
    errno_of,
    new_world,
    with_interp,
)

BASE = 0x40_0000
PLAIN = Elf((Phdr(flags=R | X, vaddr=BASE, filesz=PAGE_SIZE, memsz=PAGE_SIZE),))
U64 = (1 << 64) - 1


@pytest.fixture
def world() -> Iterator[World]:
    with new_world() as made:
        yield made


def refused(world: World, content: Elf | bytes | File, read: Any = read_program) -> int:
    file = content if isinstance(content, File) else world.file(content)
    return errno_of(read, world.frames, file)


def test_takes_over_every_number_of_a_segment(world: World) -> None:
    phdr = Phdr(flags=R | W, offset=U64, vaddr=U64 - 1, filesz=U64 - 2, memsz=U64 - 3, align=U64 - 4)
    elf = replace(PLAIN, phdrs=(PLAIN.phdrs[0], phdr), entry=U64 - 5, e_type=ET_DYN)
    assert read_program(world.frames, world.file(elf)) == ElfImage(
        is_dyn=True,
        entry=U64 - 5,
        phoff=64,
        phnum=2,
        segments=(
            ElfSegment(BASE, 0, PAGE_SIZE, PAGE_SIZE, PAGE_SIZE, (Prot.READ | Prot.EXEC).value),
            ElfSegment(U64 - 1, U64, U64 - 2, U64 - 3, U64 - 4, (Prot.READ | Prot.WRITE).value),
        ),
        interpreter=None,
        executable_stack=False,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"magic": b"\x7fELG"},
        {"magic": b"#!/b"},
        {"machine": EM_386},
        {"machine": 65_535},
        {"e_type": ET_REL},
        {"e_type": 4},
        {"e_type": 65_535},
        {"phentsize": 55},
        {"phentsize": 0},
        {"phnum": 0},
        {"phnum": 74},
        {"phnum": 65_535},
        {"phoff": 4 * PAGE_SIZE - 55},
        {"phoff": 1 << 62},
        {"phoff": 1 << 63},
        {"phoff": U64},
    ],
)
def test_a_bad_header_is_no_program_and_no_interpreter(world: World, change: dict[str, Any]) -> None:
    elf = replace(PLAIN, **change)
    assert refused(world, elf) == errno.ENOEXEC
    assert refused(world, elf, read_interpreter) == errno.ELIBBAD


@pytest.mark.parametrize("change", [{"elf_class": 1}, {"elf_class": 9}, {"data": 2}, {"data": 0}])
def test_linux_does_not_look_at_the_class_and_the_byte_order(world: World, change: dict[str, Any]) -> None:
    assert read_program(world.frames, world.file(replace(PLAIN, **change))).phnum == len(PLAIN.phdrs)


def test_a_header_may_be_as_large_as_a_page_and_no_larger(world: World) -> None:
    note = Phdr(PT_NOTE)
    assert read_program(world.frames, world.file(replace(PLAIN, phdrs=(note,) * 73))).phnum == 73
    assert refused(world, replace(PLAIN, phdrs=(note,) * 74)) == errno.ENOEXEC


@pytest.mark.parametrize("phoff", [PAGE_SIZE - 56, PAGE_SIZE - 8, 2 * PAGE_SIZE + 40, 4 * PAGE_SIZE - 56])
def test_headers_that_lie_elsewhere(world: World, phoff: int) -> None:
    elf = replace(PLAIN, phoff=phoff, texts={64: b"", phoff: PLAIN.phdrs[0].pack()})
    assert read_program(world.frames, world.file(elf)) == replace(
        read_program(world.frames, world.file(PLAIN)), phoff=phoff
    )


def test_the_headers_of_most_files_are_read_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    phdrs, texts = with_interp(PLAIN.phdrs)
    file = world.file(replace(PLAIN, phdrs=phdrs, texts=texts))
    reads, read_at = [], BytesBacking.read_at

    def counted(self: BytesBacking, offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return read_at(self, offset, length)

    monkeypatch.setattr(BytesBacking, "read_at", counted)
    assert read_program(world.frames, file).interpreter is not None
    assert reads == [(0, PAGE_SIZE)]


@pytest.mark.parametrize("length", [0, 3, 4, 5, 17, 63])
def test_a_file_shorter_than_the_header(world: World, length: int) -> None:
    data = PLAIN.build()[:length]
    assert refused(world, data) == errno.ENOEXEC
    assert refused(world, data, read_interpreter) == errno.EIO


def test_fields_that_linux_does_not_look_at_may_hold_anything(world: World) -> None:
    data = bytearray(PLAIN.build())
    data[6:16] = b"\xff" * 10
    data[20:24] = b"\xff" * 4
    data[48:54] = b"\xff" * 6
    assert read_program(world.frames, world.file(bytes(data))).segments[0].vaddr == BASE


def test_the_path_of_the_interpreter_ends_at_its_first_nul(world: World) -> None:
    phdrs, texts = with_interp(PLAIN.phdrs, b"/lib/one\0two\0")
    second = Phdr(PT_INTERP, offset=2053, filesz=9, memsz=9)
    file = world.file(replace(PLAIN, phdrs=(*phdrs, second), texts=texts))
    assert read_program(world.frames, file).interpreter == "/lib/one"


def test_an_interpreter_s_own_interpreter_is_not_looked_at(world: World) -> None:
    elf = replace(PLAIN, phdrs=(Phdr(PT_INTERP, offset=U64, filesz=U64), *PLAIN.phdrs))
    assert read_interpreter(world.frames, world.file(elf)).interpreter is None


@pytest.mark.parametrize(
    ("offset", "filesz", "code"),
    [
        (2048, 0, errno.ENOEXEC),
        (2048, 1, errno.ENOEXEC),
        (2048, 4097, errno.ENOEXEC),
        (2048, U64, errno.ENOEXEC),
        (2048, 5, errno.ENOEXEC),
        (4 * PAGE_SIZE - 4, 5, errno.EIO),
        (1 << 62, 5, errno.EIO),
        (1 << 63, 5, errno.EINVAL),
        (U64, 5, errno.EINVAL),
    ],
)
def test_a_bad_path_of_an_interpreter(world: World, offset: int, filesz: int, code: int) -> None:
    phdrs = (Phdr(PT_INTERP, offset=offset, filesz=filesz), *PLAIN.phdrs)
    assert refused(world, replace(PLAIN, phdrs=phdrs)) == code


@pytest.mark.parametrize(
    ("flags", "executable"), [((), False), ((R | W,), False), ((R | W | X,), True), ((7, 6), False)]
)
def test_the_last_gnu_stack_decides(world: World, flags: tuple[int, ...], executable: bool) -> None:
    stacks = tuple(Phdr(PT_GNU_STACK, flags=each) for each in flags)
    image = read_program(world.frames, world.file(replace(PLAIN, phdrs=(*stacks, *PLAIN.phdrs))))
    assert image.executable_stack is executable


def test_the_whole_mapping_and_its_alignment(world: World) -> None:
    phdrs = (
        Phdr(vaddr=0x5010, filesz=1, memsz=0x20, align=1 << 21),
        Phdr(vaddr=0x2FF0, filesz=1, memsz=1, align=3 << 21),
    )
    image = read_program(world.frames, world.file(replace(PLAIN, phdrs=phdrs)))
    assert (image.total_mapping_bytes, image.maximum_alignment) == (0x5030 - 0x2000, 1 << 21)
    none = read_program(world.frames, world.file(replace(PLAIN, phdrs=(Phdr(PT_NOTE),))))
    assert (none.total_mapping_bytes, none.maximum_alignment) == (0, 0)


def test_a_file_that_cannot_be_read(world: World) -> None:
    file = world.file(PLAIN)
    backing = file.mapping.backing
    assert isinstance(backing, BytesBacking)
    backing.fails = True
    assert refused(world, file) == errno.EIO


def test_cached_pages_are_newer_than_the_file(world: World) -> None:
    """A header written through a shared mapping, and not yet to the file, counts."""
    file = world.file(PLAIN)
    pfn = file.mapping.ensure_page(0)
    world.ram.write((pfn << 12) + 24, (0x1234_5678_9ABC).to_bytes(8, "little"))
    assert read_program(world.frames, file).entry == 0x1234_5678_9ABC
    file.mapping.pages.clear()
    world.frames.put_page(pfn)


@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_an_image_or_an_errno(noise: bytes, after_header: bool) -> None:
    with new_world(ram_bytes=1 << 20) as world:
        data = PLAIN.build()[:64] + noise if after_header else noise
        for read in (read_program, read_interpreter):
            try:
                image = read(world.frames, world.file(data))
            except SysError:
                continue
            assert len(image.segments) <= image.phnum
