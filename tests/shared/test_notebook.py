"""What a notebook shows of a process."""

from __future__ import annotations

import os
from pathlib import Path

from shared.client import Process, realmem
from shared.client.notebook import MAX_ROWS, maps_html, shadow_html
from shared.uapi.mman import Map, Prot
from shared.uapi.page import PAGE_SIZE
from shared.uapi.shadowpt import SHADOW_PTE, Layout
from tests.support.daemons import private_socket, running_daemon


def entries(*rows: tuple[int, int]) -> bytes:
    return b"".join(SHADOW_PTE.pack(number << 12, pfn, flags) for number, (pfn, flags) in enumerate(rows))


def test_equal_entries_are_one_row() -> None:
    shown = shadow_html(entries((0, 3), (0, 3), (1, 7), (2, 7), (3, 7), (1, 7), (1, 7)))
    assert shown.count("<tr>") == 1 + 4  # No frame; the zero page; frames 2 and 3; the zero page again.
    assert "<td>0x3000</td><td>2</td><td>0x2</td><td>VADDR_ALLOCATED VADDR_ANONYMOUS PTE_MAPPED</td>" in shown
    assert "PTE_WRITEABLE" in shadow_html(entries((5, 31)), Layout.F23)


def test_a_name_is_text() -> None:
    shown = maps_html("1000-3000 rw-p 00000000 00:00 0    <script>x\n")
    assert "<td>2</td><td>rw-p</td><td>&lt;script&gt;x</td>" in shown


def test_a_long_table_is_cut_and_says_so() -> None:
    shown = maps_html("".join(f"{n:x}000-{n + 1:x}000 r--p 0 00:00 0 {n}\n" for n in range(MAX_ROWS + 7)))
    assert shown.count("<tr>") == 1 + MAX_ROWS
    assert "… 7 more rows" in shown


def test_a_process_shows_its_mappings_then_its_table(tmp_path: Path) -> None:
    path = private_socket(tmp_path)
    with running_daemon(path):
        process = Process.attach(str(path))
        vaddr = process.mmap(0, PAGE_SIZE, Prot.READ | Prot.WRITE, Map.PRIVATE | Map.ANONYMOUS)
        assert f"<td>{vaddr:#x}</td>" in process._repr_html_()
        assert "[stack]" in process._repr_html_()
        memory = realmem.map_anonymous(PAGE_SIZE)
        process.shadowpt_open(process.pid, vaddr, vaddr + PAGE_SIZE, memory)
        process.shadowpt_start()
        assert (
            f"<td>{vaddr:#x}</td><td>1</td><td></td><td>VADDR_ALLOCATED VADDR_ANONYMOUS</td>" in process._repr_html_()
        )
        process.shadowpt_close()
        realmem.unmap(memory, PAGE_SIZE)
        process.close()
        assert f"Process {os.getpid()} no longer attached" in process._repr_html_()
