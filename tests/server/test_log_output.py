"""The log's way out: a descriptor that nobody reads, or that is closed, stops nobody."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator

import pytest

from kerneld.server.logs import LogFormat, Output

PIPE_BYTES = 4096
LINE = "x" * 99 + "\n"


class Pipe:
    """A pipe of one page."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        fcntl.fcntl(self.writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def read(self) -> str:
        return os.read(self.reader, 1 << 20).decode()

    def close(self) -> None:
        for fd in (self.reader, self.writer):
            os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def test_a_pipe_that_nobody_reads_loses_lines_and_says_so_later(pipe: Pipe) -> None:
    output = Output(pipe.writer, LogFormat.CONSOLE)
    for _line in range(1000):
        assert output.write(LINE) == len(LINE)
    kept = pipe.read()
    assert kept == LINE * (len(kept) // len(LINE))
    lost = 1000 - len(kept) // len(LINE)
    assert lost > 900
    output.write("next\n")
    assert pipe.read() == f"{lost} lines of the log are lost: nobody has read it\nnext\n"
    output.write("again\n")
    assert pipe.read() == "again\n"


def test_in_json_the_notice_is_json(pipe: Pipe) -> None:
    output = Output(pipe.writer, LogFormat.JSON)
    for _line in range(1000):
        output.write(LINE)
    kept = pipe.read().count("\n")
    output.write("{}\n")
    notice, line = pipe.read().splitlines()
    assert json.loads(notice)["count"] == 1000 - kept
    assert line == "{}"


def test_a_line_that_is_longer_than_the_room_is_cut(pipe: Pipe) -> None:
    output = Output(pipe.writer, LogFormat.CONSOLE)
    output.write("y" * (3 * PIPE_BYTES) + "\n")
    assert pipe.read() == "y" * PIPE_BYTES
    output.write("next\n")
    assert pipe.read() == "1 lines of the log are lost: nobody has read it\nnext\n"


def test_a_reader_that_has_gone_is_no_error(pipe: Pipe) -> None:
    output = Output(pipe.writer, LogFormat.CONSOLE)
    os.close(pipe.reader)
    assert output.write(LINE) == len(LINE)
    pipe.reader = os.open(os.devnull, os.O_RDONLY)


def test_a_closed_descriptor_is_no_error(pipe: Pipe) -> None:
    output = Output(pipe.writer, LogFormat.CONSOLE)
    os.close(pipe.writer)
    assert output.write(LINE) == len(LINE)
    pipe.writer = os.open(os.devnull, os.O_WRONLY)
