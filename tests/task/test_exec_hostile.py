"""execve of files that somebody has tampered with: an errno or a program, never anything else, and no frame lost."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.uapi.page import PAGE_SIZE
from tests.support.effort import examples
from tests.support.elf_files import ET_DYN, ET_EXEC, LD_PATH, Elf, Phdr, R, W, X, errno_of, new_world, with_interp

pytestmark = pytest.mark.slow

SEGMENTS = (
    Phdr(flags=R | X, vaddr=0x40_0000, filesz=PAGE_SIZE, memsz=PAGE_SIZE),
    Phdr(flags=R | W, offset=0x1000, vaddr=0x40_3000, filesz=0x100, memsz=0x2800),
)
_PHDRS, _TEXTS = with_interp(SEGMENTS)
PROGRAMS = (
    Elf(SEGMENTS).build(),
    Elf(SEGMENTS, e_type=ET_DYN).build(),
    Elf(_PHDRS, texts=_TEXTS).build(),
    Elf(_PHDRS, e_type=ET_DYN, texts=_TEXTS).build(),
)
INTERPRETERS = (Elf(SEGMENTS, e_type=ET_DYN).build(), Elf(SEGMENTS, e_type=ET_EXEC).build())

words = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([base + step for base in (1 << 12, 1 << 32, 1 << 47, 1 << 63) for step in (-0x1000, -1, 0, 1)]),
    st.builds(lambda high, low: ((high << 12) + low) % (1 << 64), st.integers(0, 1 << 52), st.integers(-2, 2)),
    st.builds(lambda page: 0x7FFF_FFFF_F000 - (page << 12), st.integers(-2, 40)),
)
"""Numbers at which something happens: ends of pages, of user space, of the stack, of 32, 63 and 64 bits."""
word_edits = st.tuples(st.integers(3, (64 + 3 * 56) // 8 - 1).map(lambda index: index * 8), words)
byte_edits = st.tuples(st.integers(0, 64 + 3 * 56), st.binary(min_size=1, max_size=4))
edits = st.tuples(st.lists(word_edits, max_size=4), st.lists(byte_edits, max_size=1))
cuts = st.one_of(*[st.none()] * 7, st.integers(0, 4 * PAGE_SIZE))


def tampered(data: bytes, edit: tuple[list[tuple[int, int]], list[tuple[int, bytes]]]) -> bytes:
    changed = bytearray(data)
    for at, word in edit[0]:
        changed[at : at + 8] = struct.pack("<Q", word)
    for at, text in edit[1]:
        changed[at : at + len(text)] = text
    return bytes(changed)


@settings(max_examples=examples(200))
@given(st.sampled_from(PROGRAMS), st.sampled_from(INTERPRETERS), edits, edits, cuts, st.booleans())
def test_a_tampered_file_is_a_program_or_an_errno(
    program: bytes,
    interpreter: bytes,
    program_edit: tuple[list[tuple[int, int]], list[tuple[int, bytes]]],
    interpreter_edit: tuple[list[tuple[int, int]], list[tuple[int, bytes]]],
    cut: int | None,
    superuser: bool,
) -> None:
    with new_world(ram_bytes=2 << 20, superuser=superuser) as world:
        world.file(tampered(interpreter, interpreter_edit), LD_PATH)
        before, free = world.mm, world.frames.free_pages
        data = tampered(program, program_edit)
        code = errno_of(world.execve, data[:cut])
        world.check()
        if code:
            assert world.mm is before
            assert world.frames.free_pages == free
        del before


@settings(max_examples=200)
@given(
    st.sampled_from((ET_EXEC, ET_DYN)), st.lists(st.tuples(words, words, words, words, words), min_size=1, max_size=8)
)
def test_segments_of_any_numbers(e_type: int, segments: list[tuple[int, int, int, int, int]]) -> None:
    phdrs = tuple(
        Phdr(flags=flags & 7, offset=vaddr & 0xFFF | offset & 0x3000, vaddr=vaddr, filesz=filesz, memsz=memsz)
        for flags, offset, vaddr, filesz, memsz in segments
    )
    with new_world(ram_bytes=2 << 20) as world:
        errno_of(world.execve, Elf(phdrs, e_type=e_type))
        world.check()


small = st.integers(0, 0x7000)


@settings(max_examples=200)
@given(
    st.sampled_from((ET_EXEC, ET_DYN)),
    st.lists(st.tuples(st.integers(0, 7), small, small, small, small), min_size=1, max_size=8),
)
def test_segments_on_top_of_one_another(e_type: int, segments: list[tuple[int, int, int, int, int]]) -> None:
    """All addresses near one another, so that most of them can be mapped, over what came before."""
    base = 0x40_0000
    phdrs = tuple(
        Phdr(flags=flags, offset=vaddr & 0xFFF | offset & -4096, vaddr=base + vaddr, filesz=size, memsz=size + more)
        for flags, offset, vaddr, size, more in segments
    )
    with new_world(ram_bytes=2 << 20) as world:
        errno_of(world.execve, Elf(phdrs, e_type=e_type, pages=8))
        world.check()
