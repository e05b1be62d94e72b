"""part5.txt: its form, and its functions by diff against the order in which they were traced.

Owns the diff. The words say where the first difference is, and not what would be right there: they are for students.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence

from kerneld.commands.grade.cell.files import Text
from kerneld.commands.grade.model import Finding, failed, judged, skipped

_URL = re.compile(r"https?://\S+")
_GOOD_URL = re.compile(r"https://elixir\.bootlin\.com/linux/v6\.8/source/\S+\.[chS]#L\d+")
_WORD = re.compile(r"[A-Za-z_]\w*")


def judge_part5(file: Text, functions: Sequence[str], order: Sequence[str], why_no_order: str) -> Iterator[Finding]:
    """Yield the findings of part5_form and part5_order.

    `functions` are those that the question lists; `order` is the traced one, empty where it could not be traced, and
    `why_no_order` says why.
    """
    if file.text is None:
        yield failed("part5_form", f"there is no {file.name}")
        yield failed("part5_order", f"there is no {file.name}")
        return
    lines = file.text.replace("\r\n", "\n").split("\n")
    yield judged("part5_form", _why_bad_form(lines, set(functions)), "each function alone on its line")
    answer = [line for line in lines if line in set(functions)]
    if not order:
        yield skipped("part5_order", f"the order was not traced here: {why_no_order}")
        return
    yield judged("part5_order", _why_other_order(answer, order), f"{len(answer)} functions in the traced order")


def _why_bad_form(lines: Sequence[str], functions: set[str]) -> str:
    for number, line in enumerate(lines, 1):
        for url in _URL.findall(line):
            if not _GOOD_URL.fullmatch(url.rstrip(".,;)")):
                return f"line {number}: {url[:100]} is not of the form …/linux/v6.8/source/FILE#LINE"
        bare = _URL.sub("", line)
        named = functions.intersection(_WORD.findall(bare))
        if named and line not in functions and _is_answer(bare, named):
            return f"line {number}: {line[:60]!r} has more than the name of the function"
    if not functions.intersection(lines):
        return "no line is the name of a function that the question lists"
    return ""


def _is_answer(line: str, named: set[str]) -> bool:
    """Return whether a line is meant as an answer: a name with a bullet, a number or blanks, and no sentence."""
    return len([word for word in _WORD.findall(line) if word not in named]) == 0 and len(named) == 1


def _why_other_order(answer: Sequence[str], order: Sequence[str]) -> str:
    """Return what `diff` counts, without the right lines."""
    if list(answer) == list(order):
        return ""
    matcher = difflib.SequenceMatcher(None, answer, order, autojunk=False)
    blocks = [(op, a, b, c, d) for op, a, b, c, d in matcher.get_opcodes() if op != "equal"]
    too_many = sum(b - a for _op, a, b, _c, _d in blocks)
    too_few = sum(d - c for _op, _a, _b, c, d in blocks)
    _op, first, *_rest = blocks[0]
    after = f"after line '{answer[first - 1]}'" if first else "before the first function"
    return f"{too_many} lines of {len(answer)} are not in the right place, {too_few} are missing; first {after}"
