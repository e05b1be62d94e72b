"""Marks in the head of a record, from a page that saves it, or from anybody."""

from __future__ import annotations

from typing import Any

import pytest

from inspector.replay import summary_lines
from shared.recording.chunks import KEY, make_chunk, pack_head
from shared.recording.head import make_head
from shared.recording.marks import MOST_MARKS, Mark, marks_of, parse_marks, with_marks
from shared.recording.reader import Recording


def test_marks_are_saved_and_read_in_their_order() -> None:
    marks = parse_marks("300:B,120:A")
    assert marks == [Mark(120, "A"), Mark(300, "B")]
    head = with_marks(make_head(pids=(), superuser=True), marks)
    recording = Recording(pack_head(head) + make_chunk(KEY, b"", 0, 0).pack())
    assert marks_of(recording.head) == marks
    assert list(summary_lines(recording, "file"))[-2:] == ["Mark A: event 120", "Mark B: event 300"]
    assert parse_marks("") == []


@pytest.mark.parametrize(
    "text", ["120", "120:", ":A", "-1:A", "1:<b>", "1:A,", "1:ABCDEFGHI", ",".join(["1:A"] * 1001)]
)
def test_what_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=str(MOST_MARKS)):
        parse_marks(text)


@pytest.mark.parametrize(
    "marks",
    [None, 7, "A", {"at": 1}, [7, None, {"at": "1", "name": "A"}, {"at": True, "name": "A"}, {"at": -1, "name": "A"}],
     [{"at": 1, "name": "<script>"}], [{"at": 1, "name": 5}], [{"name": "A"}]],
)  # fmt: skip
def test_a_head_may_have_anything(marks: Any) -> None:
    assert marks_of({"marks": marks}) == []
