"""The table of what is graded: each row with its points, its rule and the usual mistake. Owns the words and defaults.

The points are a proposal: a course edits them in its checklist. A row names the part of the work that decides it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Part(StrEnum):
    """The parts of the work on a submission. Each needs the parts before it only where its row says so."""

    FILES = "files"
    PART5 = "part5"
    BUILD = "build"
    INSPECTOR = "inspector"
    TARGET = "target"


class Row(NamedTuple):
    """One row of the checklist."""

    name: str
    part: Part
    points: float
    title: str
    expected: str
    mistake: str


ROWS: tuple[Row, ...] = (
    Row("references", Part.FILES, 1, "The list of references is there",
        "references.txt in the top directory, with text in it", "the template was not edited, or not added to git"),
    Row("readme", Part.FILES, 1, "The README is there",
        "a README beside linux/ and user/, with text in it", "the README lies in user/, or in another branch"),
    Row("header_user", Part.FILES, 2, "The UAPI header is there, and says what the assignment says",
        "linux/include/uapi/linux/shadowpt.h, with the structures, flags, macros and the limit of the assignment",
        "a field was added, or the header needs another header of the kernel"),
    Row("header_kernel", Part.FILES, 1, "The kernel's own header is there",
        "linux/include/linux/shadowpt.h, which includes <uapi/linux/shadowpt.h>",
        "everything is in the UAPI header, and users see it"),
    Row("part5_form", Part.PART5, 1, "part5.txt has the form that a diff needs",
        "each function alone on its line, as the question writes it; URLs of v6.8 with a line",
        "bullets, numbers or blanks before the names; URLs of another version"),
    Row("part5_order", Part.PART5, 4, "part5.txt has the functions in the order in which they run",
        "the same lines as the traced order", "functions of a fault that is settled, which do not run here"),
    Row("build", Part.BUILD, 3, "The Makefile in user/part4 builds inspector and target",
        "make ends with 0, and there are two programs", "the Makefile has other names, or was not added to git"),
    Row("inspector_usage", Part.INSPECTOR, 1, "Wrong arguments are an error",
        "without its arguments: a line of text, and an exit status that is not 0, at once",
        "argv is read before argc is looked at"),
    Row("inspector_errors", Part.INSPECTOR, 2, "A call that fails ends the inspector",
        "for a process that does not exist: a line of text, and an exit status that is not 0, at once",
        "the result of shadowpt_open is not looked at"),
    Row("inspector_opens", Part.INSPECTOR, 3, "The inspector opens and starts the table that it was asked for",
        "open of that process and range, and start, seen by the kernel",
        "the addresses are read as decimal numbers, or start is forgotten"),
    Row("inspector_rhythm", Part.INSPECTOR, 2, "The table is printed once a second",
        "a print each second", "no sleep, or a print only when something has changed"),
    Row("inspector_addresses", Part.INSPECTOR, 2, "The addresses are printed",
        "the address of each allocated page of the range", "an index is printed, or the last page is left out"),
    Row("inspector_pfns", Part.INSPECTOR, 3, "The frame numbers are printed",
        "the pfn of each mapped page, as the table held it", "the field is printed as an int, or shifted"),
    Row("inspector_flags", Part.INSPECTOR, 3, "The states are printed",
        "allocated, anonymous and mapped of each page can be told from the text, as the table held them",
        "one flag is tested by the macro of another"),
    Row("inspector_live", Part.INSPECTOR, 4, "Each print shows the table of that moment",
        "after each change of the target, the next print but one shows it", "the entries are copied once"),
    Row("inspector_large", Part.INSPECTOR, 2, "The inspector has room for the largest range",
        "2,048 pages are opened and printed", "the memory for the entries is one page, or not rounded up"),
    Row("inspector_closes", Part.INSPECTOR, 4, "Ctrl+C closes the table",
        "the call shadowpt_close, seen by the kernel", "SIGINT has no handler: the kernel has to clean up"),
    Row("inspector_ends", Part.INSPECTOR, 1, "Ctrl+C ends the inspector",
        "the end within three seconds, without a crash", "the handler sets a flag that the loop does not read"),
    Row("target_maps", Part.TARGET, 2, "The target maps memory (mmap, malloc)",
        "an anonymous mapping that the program itself makes", "static memory, which is there from the start"),
    Row("target_writes", Part.TARGET, 2, "The target writes: a page gets its frame",
        "a new page-table entry by a write, in memory that the program has mapped", "memory is mapped, not written"),
    Row("target_cow", Part.TARGET, 2, "The target makes a copy-on-write",
        "a write that gives a page another frame, after fork or after a read of a fresh page",
        "the child of fork does not write"),
    Row("target_unmaps", Part.TARGET, 2, "The target unmaps memory (munmap, free)",
        "a mapping with frames that goes away", "free of a small block, which munmaps nothing"),
    Row("target_stack", Part.TARGET, 2, "The target grows a stack (VM_GROWSDOWN)",
        "a stack, or a mapping with MAP_GROWSDOWN, that a fault below it extends",
        "an array too small to leave the first 132 KiB"),
    Row("target_execve", Part.TARGET, 2, "The target calls execve", "an execve after main has begun",
        "execve is not made, or fails"),
    Row("target_exit", Part.TARGET, 1, "The target ends", "an exit, by itself or after Ctrl+C, without a crash",
        "the program crashes, or cannot be ended"),
    Row("target_visible", Part.TARGET, 3, "An inspector that prints once a second sees the changes",
        "in the table of the range that the target prints: frames that come and go, with a pause between",
        "no pause between the changes, or the range is not printed"),
)  # fmt: skip
BY_NAME = {row.name: row for row in ROWS}
